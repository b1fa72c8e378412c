from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmssl.data.kaldi import export_kaldi, import_kaldi
from mmssl.errors import DataError
from mmssl.types import Clip


def folder(path: Path, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_scp", ".scp")).write_text(text, encoding="utf-8")
    return path


def test_a_hand_written_folder_in_any_order(tmp_path: Path) -> None:
    kaldi = folder(
        tmp_path / "k",
        wav_scp="rec2 /wav/two words.wav\nrec1\t/wav/1.wav  \n",
        segments="u3 rec2 0.5 -1\nu1 rec1 0.1 0.3\n",
        utt2spk="u1 s1\nu3 s2\n",
        text="u3 héllo  wörld\nu1\n",
        utt2emotion="u1 anger\n",
        utt2valence="u1 -0.25\nu3 1\n",
        utt2dur="u1 0.2\n",
        spk2utt="s1 u1\ns2 u3\n",
    )
    first, second = import_kaldi(kaldi, split="train", numeric=("valence",))
    assert first == Clip(
        "u3",
        audio="/wav/two words.wav",
        start=0.5,
        labels={"text": "héllo  wörld", "valence": 1.0},
        speaker="s2",
        split="train",
    )
    labels = {"text": "", "valence": -0.25, "emotion": "anger"}
    assert second == Clip("u1", "/wav/1.wav", start=0.1, duration=0.2, labels=labels, speaker="s1", split="train")


def test_round_trip_of_segments_media_and_labels(tmp_path: Path) -> None:
    clips = [
        Clip("u10", audio="/a/x.wav", start=0.1, duration=0.2, labels={"emotion": "joy", "text": "a b"}, speaker="s1"),
        Clip("u2", audio="/a/x.wav", start=1234.5678901234567, duration=1e-9, speaker="s2", split="test"),
        Clip("u3", audio="/b/x.wav", video="/b/x y.mp4", start=1e-7, labels={"age": 31.5}),
        Clip("é", audio="/b/z.wav", image="https://host/z.png", labels={"gone": None}),
    ]
    export_kaldi(clips, tmp_path / "k")
    again = import_kaldi(tmp_path / "k", numeric=("age",))
    expected = sorted(clips, key=lambda c: c.id)
    expected[-1] = Clip("é", audio="/b/z.wav", image="https://host/z.png")
    assert again == expected


def test_whole_files_need_no_segments_and_files_are_sorted_as_in_the_c_locale(tmp_path: Path) -> None:
    clips = [
        Clip(i, audio=f"/w/{i}.wav", speaker=s)
        for i, s in [("b", "s"), ("B", "t"), ("é", "s"), ("a-1", "s"), ("a1", "t")]
    ]
    export_kaldi(clips, tmp_path / "k")
    assert sorted(p.name for p in (tmp_path / "k").iterdir()) == ["spk2utt", "utt2spk", "wav.scp"]
    keys = [line.split()[0].encode() for line in (tmp_path / "k/wav.scp").read_text().splitlines()]
    assert keys == sorted(keys)
    assert (tmp_path / "k/spk2utt").read_text() == "s a-1 b é\nt B a1\n"
    assert {c.id: c for c in import_kaldi(tmp_path / "k")} == {c.id: c for c in clips}


def test_a_clip_without_speaker_is_its_own_speaker_in_kaldi(tmp_path: Path) -> None:
    export_kaldi([Clip("u1", audio="/w/1.wav")], tmp_path / "k")
    assert (tmp_path / "k/utt2spk").read_text() == "u1 u1\n"
    assert import_kaldi(tmp_path / "k")[0].speaker is None


def test_relative_paths_are_seen_from_the_current_folder_then_from_the_data_folder_or_from_root(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "here").mkdir()
    kaldi = folder(tmp_path / "k", wav_scp="a a.wav\nb b.wav\nc c.wav\n")
    (tmp_path / "here/a.wav").touch()
    (kaldi / "a.wav").touch()
    (kaldi / "b.wav").touch()
    monkeypatch.chdir(tmp_path / "here")
    expected = [tmp_path / "here/a.wav", kaldi / "b.wav", tmp_path / "here/c.wav"]
    assert [c.audio for c in import_kaldi(kaldi)] == [str(p) for p in expected]
    assert [c.audio for c in import_kaldi(kaldi, root="/r")] == ["/r/a.wav", "/r/b.wav", "/r/c.wav"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": "a x.wav\nb sox y.wav -t wav - |\n"}, r"wav.scp:2: 'b' is a command .* is not run"),
        ({"wav_scp": "a -\n"}, "is a command"),
        ({"wav_scp": "a wav.ark:123\n"}, "inside an archive"),
        ({"wav_scp": "a\n"}, r"wav.scp:1: 'a' has no value"),
        ({"wav_scp": "a x\na y\n"}, r"wav.scp:2: 'a' is already in line 1"),
        ({"wav_scp": "\n"}, "is empty"),
        ({"text": "a b\n"}, "has no wav.scp"),
        ({"wav_scp": "rec x\n", "segments": "u recc 0 1\n"}, "Did you mean 'rec'"),
        ({"wav_scp": "rec x\n", "segments": "u rec 1\n"}, "is no segment"),
        ({"wav_scp": "rec x\n", "segments": "u rec 1 nan\n"}, "is no segment"),
        ({"wav_scp": "rec x\n", "segments": "u rec 2 1.5\n"}, "ends at 1.5 s, not after its start at 2 s"),
        ({"wav_scp": "a x\n", "utt2spk": "a s\nb s\n"}, "names 1 utterances .*: b"),
        ({"wav_scp": "a x\n", "utt2emotion": "a\n"}, "utt2emotion:1: 'a' has no value"),
        ({"wav_scp": "a x\n", "utt2age": "a old\n"}, "'old', not a number"),
    ],
)
def test_bad_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_kaldi(folder(tmp_path / "k", **files), numeric=["age"] if "utt2age" in files else [])


def test_a_numeric_label_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no utt2valance .* Did you mean 'valence'"):
        import_kaldi(folder(tmp_path / "k", wav_scp="a x\n", utt2valence="a 1\n"), numeric=["valance"])


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (Clip("a b", audio="/x"), "white space"),
        (Clip("a", audio="/x", speaker="s 1"), "speaker 's 1'"),
        (Clip("a", video="/x"), "have none: a"),
        (Clip("a", audio="/x", labels={"text": "two\nlines"}), "line break"),
        (Clip("a", audio="/x", labels={"e": " x"}), "white space at an end"),
        (Clip("a", audio="/x", labels={"e": ["x"]}), "words and numbers only"),
        (Clip("a", audio="/x", labels={"e": ""}), "words and numbers only"),
        (Clip("a", audio="/x", labels={"spk": "x"}), "Rename the label"),
        (Clip("a", audio="/x", labels={"a/b": "x"}), "Rename the label"),
        (Clip("a", audio="/x |"), "final '|'"),
        (Clip("a", audio="/x", start=-1.0), "starts at -1.0"),
        (Clip("a", audio="/x", duration=0.0), "lasts 0.0"),
    ],
)
def test_what_kaldi_cannot_say_is_refused_and_nothing_is_left(tmp_path: Path, clip: Clip, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        export_kaldi([clip], tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_mixed_with_another(tmp_path: Path) -> None:
    export_kaldi([Clip("a", audio="/x")], tmp_path / "k")
    with pytest.raises(DataError, match="not an empty folder"):
        export_kaldi([Clip("b", audio="/x")], tmp_path / "k")
    (tmp_path / "empty").mkdir()
    export_kaldi([Clip("b", audio="/x")], tmp_path / "empty")
    with pytest.raises(DataError, match="id 'b'"):
        export_kaldi([Clip("b", audio="/x"), Clip("b", audio="/y")], tmp_path / "z")


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        export_kaldi([Clip("a", audio="/x")], tmp_path / "k")
    assert list(tmp_path.iterdir()) == []
