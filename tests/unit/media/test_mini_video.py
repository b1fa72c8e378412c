from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.errors import DataError
from mmssl.media import mini_video
from mmssl.media.audio import load_audio
from mmssl.media.face import HAIR_STYLES, Expression, Identity, Pose, backdrop, draw_face
from mmssl.media.mini import EMOTIONS, Phone, make_mini, read_phones
from mmssl.media.sync import load_audio_video
from mmssl.media.talking import VOWELS, make_actor, perform, shapes
from mmssl.media.video import load_video, video_info
from mmssl.types import Clip

SMALL = {"num_speakers": 2, "num_sentences": 1, "sentences_per_speaker": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("mini")
    return folder, make_mini(folder, video=True, **SMALL)


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def identity(**changes: object) -> Identity:
    actor = make_actor(np.random.default_rng(0), "female")
    return replace(actor.identity, hair="bald", extras=(), **changes)


def test_every_clip_has_a_face_and_its_sound(small: tuple[Path, list[Clip]]) -> None:
    folder, clips = small
    assert len(clips) == 8
    for clip in clips:
        assert clip.video == str(folder / "video" / f"{clip.id}.mp4")
        info = video_info(clip.video)
        assert (info.fps, info.height, info.width) == (25.0, 96, 96)
        assert info.has_audio
        assert info.start == info.audio_start == 0.0
        assert 0 <= info.duration - clip.duration < 0.04
        sound, _ = load_audio(str(clip.audio))
        muxed = load_audio_video(clip.video)
        apart = load_audio_video(clip.video, audio=clip.audio)
        # AAC fills its last packet
        assert torch.equal(muxed.video[: len(apart.video)], apart.video)
        assert torch.equal(apart.waveform, sound[: len(apart.waveform)])
        assert len(apart.video) == int(clip.duration * 25)
        assert np.corrcoef(muxed.waveform[:16_000], sound[:16_000])[0, 1] > 0.98


def test_the_same_to_the_bit_here_in_workers_and_in_another_process(
    small: tuple[Path, list[Clip]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = small
    monkeypatch.setattr(mini_video, "_CLIPS_PER_WORKER", 2)
    monkeypatch.setattr(mini_video.os, "sched_getaffinity", lambda _: {0, 1})
    make_mini(tmp_path / "workers", video=True, **SMALL)
    code = f"from mmssl.media.mini import make_mini; make_mini({str(tmp_path / 'there')!r}, video=True, **{SMALL!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sums(tmp_path / "workers") == sums(tmp_path / "there") == sums(folder)


def test_the_sound_is_the_same_with_and_without(small: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    folder, clips = small
    alone = make_mini(tmp_path, **SMALL)
    assert [replace(clip, video=None, audio=None) for clip in clips] == [replace(c, audio=None) for c in alone]
    assert all(clip.video is None for clip in alone)
    both = sums(folder)
    assert sums(tmp_path) == {name: value for name, value in both.items() if "video" not in name}


def test_complete_videos_are_reused_damaged_ones_mended_and_foreign_ones_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"num_speakers": 1, "num_sentences": 1, "sentences_per_speaker": 1}
    clips = make_mini(tmp_path, video=True, **tiny)
    before = sums(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(mini_video, "render", lambda _: pytest.fail("made anew"))
        assert make_mini(tmp_path, video=True, **tiny) == clips
    Path(str(clips[0].video)).write_bytes(b"x")
    assert make_mini(tmp_path, video=True, **tiny) == clips
    assert sums(tmp_path) == before
    make_mini(tmp_path, seed=1, **tiny)
    assert not list((tmp_path / "video").iterdir())
    assert not (tmp_path / "mini_video.json").exists()


def test_a_failing_worker_and_an_unwritable_folder_are_errors(tmp_path: Path) -> None:
    (tmp_path / "mini").mkdir()
    make_mini(tmp_path / "mini", **SMALL)
    (tmp_path / "mini" / "video").write_text("a file")
    with pytest.raises(DataError, match="mini"):
        make_mini(tmp_path / "mini", video=True, **SMALL)


def test_mouths_open_on_vowels_and_shut_on_m_b_p(small: tuple[Path, list[Clip]]) -> None:
    rng = np.random.default_rng(0)
    open_on: dict[str, list[float]] = {"vowel": [], "shut": [], "sil": []}
    for clip in small[1]:
        phones = read_phones(small[0] / "phones" / f"{clip.id}.tsv")
        actor = make_actor(np.random.default_rng(5), "male")
        frames = perform(rng, actor, clip.labels["emotion"], phones, int(clip.duration * 200), 200)
        for index, (expression, _) in enumerate(frames):
            time = (index + 0.5) / 200
            phone = next(p for p in phones if p.start <= time < p.end)
            if 0.35 < (time - phone.start) / (phone.end - phone.start) < 0.65:
                symbol = phone.symbol
                kind = "vowel" if symbol[0] in VOWELS else "shut" if symbol in "mbp" else symbol
                if kind in open_on:
                    open_on[kind].append(expression.opening)
    assert max(open_on["shut"] + open_on["sil"]) < 0.02
    assert min(open_on["vowel"]) > 0.05
    assert np.median(open_on["vowel"]) > 0.2


def test_mouths_move_in_the_pictures_while_there_is_speech(small: tuple[Path, list[Clip]]) -> None:
    for clip in small[1]:
        video, _ = load_video(str(clip.video))
        phones = read_phones(small[0] / "phones" / f"{clip.id}.tsv")
        change = (video[1:, :, 56:80, 32:64] - video[:-1, :, 56:80, 32:64]).abs().mean((1, 2, 3)).numpy()
        speech = np.array([phones[0].end < k / 25 < phones[-1].start for k in range(1, len(video))])
        assert change[speech].mean() > 1.3 * change[~speech].mean()


def test_shapes_of_the_mouth() -> None:
    assert shapes("sil") == [(0.0, 0.0, 0.0, 0.0)]
    assert len(shapes("aɪ")) == len(shapes("tʃ")) == 2
    assert shapes("iː") == shapes("i")
    assert shapes("ɑː")[0][0] > shapes("ə")[0][0] > shapes("uː")[0][0] > shapes("m")[0][0] == 0
    assert shapes("iː")[0][1] > 0 > shapes("uː")[0][1]
    assert len(shapes("ʘ")) == 1


def test_pictures_show_what_the_expression_says() -> None:
    ground = backdrop((120, 160, 120), (90, 130, 90), 96)
    who = identity()

    def draw(**changes: float) -> np.ndarray:
        return draw_face(ground, who, Expression(**changes), Pose()).astype(int)

    rest = draw()
    assert rest.shape == (96, 96, 3)
    assert np.array_equal(rest, draw())
    areas = []
    for opening in (0.0, 0.3, 0.6, 0.9):
        picture = draw(opening=opening)[60:90, 30:66]
        areas.append(int((picture.sum(-1) < 180).sum()))
    assert areas == sorted(areas)
    assert areas[-1] > areas[0] + 25
    upper, lower = slice(20, 52), slice(56, 90)
    for changes, moved, still in (
        ({"corners": 1.0}, lower, upper),
        ({"brow_tilt": 1.0}, upper, lower),
        ({"brow_raise": 1.0}, upper, lower),
        ({"lids": -1.0}, upper, lower),
        ({"gaze": 1.0}, upper, lower),
        ({"spread": -1.0}, lower, upper),
    ):
        difference = np.abs(draw(**changes) - rest)
        assert (difference[moved].sum(-1) > 60).sum() > 8
        assert difference[still].max() == 0
    assert np.abs(draw(brow_tilt=1.0) - draw(brow_tilt=-1.0)).sum() > np.abs(draw(brow_tilt=1.0) - rest).sum()


@pytest.mark.parametrize("hair", HAIR_STYLES)
def test_every_face_can_be_drawn(hair: str) -> None:
    ground = backdrop((0, 255, 0), (0, 255, 0), 96)
    who = replace(identity(), hair=hair, hair_colour=(200, 0, 200), extras=("beard", "glasses"))
    picture = draw_face(ground, who, Expression(opening=0.5, teeth=1.0, tongue=1.0), Pose(yaw=0.5, roll=0.1)).astype(
        int
    )
    bald = draw_face(ground, replace(who, hair="bald"), Expression(), Pose(yaw=0.5, roll=0.1)).astype(int)
    background = ((picture - (0, 255, 0)) == 0).all(-1).mean()
    assert 0.2 < background < 0.8
    hairy = [(np.abs(p - (200, 0, 200)).sum(-1) < 30).mean() for p in (picture, bald)]
    assert hairy[0] > hairy[1] or hair == "bald"


def test_identity_is_the_speaker_s_and_emotions_overlap_but_differ() -> None:
    corners: dict[str, list[float]] = {emotion: [] for emotion in EMOTIONS}
    tilts: dict[str, list[float]] = {emotion: [] for emotion in EMOTIONS}
    phones = [Phone(0.0, 2.0, "sil")]
    for speaker in range(12):
        actor = make_actor(np.random.default_rng((0, 3, speaker)), "female")
        assert actor == make_actor(np.random.default_rng((0, 3, speaker)), "female")
        for emotion in EMOTIONS:
            for clip in range(10):
                frames = perform(np.random.default_rng((speaker, clip)), actor, emotion, phones, 50, 25)
                corners[emotion].append(np.mean([expression.corners for expression, _ in frames]))
                tilts[emotion].append(np.mean([expression.brow_tilt for expression, _ in frames]))
    assert np.mean(corners["happy"]) > np.mean(corners["neutral"]) + 0.4
    assert np.mean(corners["sad"]) < np.mean(corners["neutral"]) - 0.3
    assert np.mean(tilts["sad"]) > np.mean(tilts["neutral"]) + 0.4
    assert np.mean(tilts["angry"]) < np.mean(tilts["neutral"]) - 0.4
    assert max(corners["neutral"]) > min(corners["happy"])
    assert min(tilts["neutral"]) < max(tilts["angry"])
