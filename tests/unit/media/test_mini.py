from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.errors import DataError
from mmssl.media.audio import audio_info
from mmssl.media.mini import EMOTIONS, SENTENCES, SILENCE, make_mini, read_phones
from mmssl.types import Clip

SMALL = {"num_speakers": 2, "num_sentences": 3, "sentences_per_speaker": 2}
VOWELS = set("aeiouæɑɒɔəɛɜɪʊʌɐᵻ")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("mini")
    return folder, make_mini(folder, **SMALL)


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_counts_labels_and_files(small: tuple[Path, list[Clip]]) -> None:
    folder, clips = small
    assert len(clips) == len({clip.id for clip in clips}) == 2 * 4 * 2
    for clip in clips:
        assert set(clip.labels) == {"emotion", "sentence", "gender", "text"}
        assert clip.id == f"{clip.speaker}-{clip.labels['sentence']}-{clip.labels['emotion']}"
        assert clip.labels["text"] == SENTENCES[int(clip.labels["sentence"][1:]) - 1]
        assert clip.split is None
        assert clip.audio == str(folder / "wav" / f"{clip.id}.wav")
        info = soundfile.info(clip.audio)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert clip.duration == audio_info(clip.audio).duration
        assert 0.8 < clip.duration < 4.0
    for speaker, gender in (("spk01", "male"), ("spk02", "female")):
        own = [clip for clip in clips if clip.speaker == speaker]
        assert {clip.labels["gender"] for clip in own} == {gender}
        assert [clip.labels["emotion"] for clip in own] == list(EMOTIONS) * 2
    assert len(SENTENCES) == len(set(SENTENCES)) == 20
    assert not list(folder.rglob("*.tmp"))


def test_the_same_to_the_bit_here_and_in_another_process(small: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    folder, _ = small
    make_mini(tmp_path / "here", **SMALL)
    code = f"from mmssl.media.mini import make_mini; make_mini({str(tmp_path / 'there')!r}, **{SMALL!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sums(tmp_path / "here") == sums(tmp_path / "there") == sums(folder)


def test_a_clip_is_the_same_in_a_larger_corpus_and_another_under_another_seed(
    small: tuple[Path, list[Clip]], tmp_path: Path
) -> None:
    folder, clips = small
    make_mini(tmp_path / "more", num_speakers=3, num_sentences=3, sentences_per_speaker=2)
    make_mini(tmp_path / "other", seed=1, num_speakers=2, num_sentences=3, sentences_per_speaker=3)
    here, more, other = sums(folder), sums(tmp_path / "more"), sums(tmp_path / "other")
    for clip in clips:
        name = f"wav/{clip.id}.wav"
        assert here[name] == more[name] != other[name]


def test_phones_cover_the_clip_without_gaps(small: tuple[Path, list[Clip]]) -> None:
    folder, clips = small
    for clip in clips:
        phones = read_phones(folder / "phones" / f"{clip.id}.tsv")
        assert phones[0].start == 0.0
        assert phones[0].symbol == phones[-1].symbol == SILENCE
        assert phones[-1].end == pytest.approx(clip.duration, abs=1e-6)
        assert all(phone.start < phone.end for phone in phones)
        assert all(a.end == b.start for a, b in itertools.pairwise(phones))
        assert sum(phone.symbol != SILENCE for phone in phones) > 10


def test_phones_lie_where_they_are_heard(small: tuple[Path, list[Clip]]) -> None:
    folder, clips = small
    crossings: dict[str, list[float]] = {"vowel": [], "s": []}
    for clip in clips:
        samples, rate = soundfile.read(str(clip.audio))
        pieces = {"vowel": [], SILENCE: [], "s": []}
        for phone in read_phones(folder / "phones" / f"{clip.id}.tsv"):
            kind = "vowel" if phone.symbol[0] in VOWELS else phone.symbol
            piece = samples[round(phone.start * rate) : round(phone.end * rate)]
            if kind in pieces and len(piece) > 200:
                pieces[kind].append(piece)
            if kind in crossings:
                crossings[kind].append(float(np.mean(np.diff(np.sign(piece - piece.mean())) != 0)))
        loud, quiet = (np.sqrt(np.mean(np.concatenate(pieces[kind]) ** 2)) for kind in ("vowel", SILENCE))
        assert loud > 5 * quiet > 0
        assert min(np.sqrt(np.mean(piece**2)) for piece in pieces["vowel"]) > 1.5 * quiet
    assert np.median(crossings["s"]) > 2 * np.median(crossings["vowel"])


def test_levels_differ_and_nothing_clips(small: tuple[Path, list[Clip]]) -> None:
    levels: dict[str, list[float]] = {emotion: [] for emotion in EMOTIONS}
    for clip in small[1]:
        samples, _ = soundfile.read(str(clip.audio))
        assert 0.02 < np.abs(samples).max() <= 0.96
        levels[clip.labels["emotion"]].append(20 * np.log10(np.sqrt(np.mean(samples**2))))
    assert np.mean(levels["angry"]) > np.mean(levels["neutral"]) > np.mean(levels["sad"])


def test_a_complete_folder_is_reused_and_a_damaged_one_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"num_speakers": 1, "num_sentences": 1, "sentences_per_speaker": 1}
    clips = make_mini(tmp_path, **tiny)
    before = sums(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mmssl.media.mini.synthesize", lambda _: pytest.fail("made anew"))
        assert make_mini(tmp_path, **tiny) == clips
    first = Path(str(clips[0].audio))
    for damage in (first.unlink, lambda: first.write_bytes(b"x"), lambda: (tmp_path / "mini.json").write_text("{")):
        damage()
        assert make_mini(tmp_path, **tiny) == clips
        assert sums(tmp_path) == before


def test_other_settings_leave_no_clip_behind(tmp_path: Path) -> None:
    make_mini(tmp_path, num_speakers=2, num_sentences=1, sentences_per_speaker=1)
    clips = make_mini(tmp_path, num_speakers=1, num_sentences=1, sentences_per_speaker=1)
    assert {path.stem for path in (tmp_path / "wav").iterdir()} == {clip.id for clip in clips}
    assert {path.stem for path in (tmp_path / "phones").iterdir()} == {clip.id for clip in clips}
    assert json.loads((tmp_path / "mini.json").read_text())["settings"]["num_speakers"] == 1


@pytest.mark.parametrize(
    "wrong", [{"num_speakers": 0}, {"num_sentences": 21}, {"sentences_per_speaker": 21}, {"seed": -1}, {"seed": 1.5}]
)
def test_wrong_settings(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        make_mini(tmp_path, **wrong)


def test_an_unwritable_folder_and_a_bad_table_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        make_mini(tmp_path / "file", num_speakers=1, num_sentences=1, sentences_per_speaker=1)
    (tmp_path / "a.tsv").write_text("start\tend\tphone\nx\n")
    for name in ("a.tsv", "none.tsv"):
        with pytest.raises(DataError, match=name):
            read_phones(tmp_path / name)
