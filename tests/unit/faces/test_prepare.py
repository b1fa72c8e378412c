from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.data.manifest import read_manifest, write_manifest
from mmssl.errors import ConfigError, DataError
from mmssl.faces import clip as clip_module
from mmssl.faces.detectors import DETECTORS, CentreBox
from mmssl.faces.prepare import prepare_faces
from mmssl.media.sync import AudioVideo, load_audio_video
from mmssl.stages.cli import main
from mmssl.types import Clip

Write = Callable[..., Path]
EXACT: dict[str, Any] = {"detector": "given", "region": "face", "margin": 0.0, "window": 1}


def boxes(path: Path, **content: Any) -> dict[str, str]:
    path.write_text(json.dumps(content))
    return {"file": str(path)}


def onsets(both: AudioVideo) -> tuple[np.ndarray, np.ndarray]:
    """Seconds at which clicks and flashes begin."""
    step = both.sample_rate // 1000
    level = both.waveform[: len(both.waveform) // step * step].reshape(-1, step).abs().amax(1).numpy()
    loud = np.flatnonzero(level > 0.2)
    clicks = [k for k in loud if not (level[max(0, k - 100) : k] > 0.2).any()]
    lit = (both.video.amax((1, 2, 3)) > 0.8).numpy()
    return np.array(clicks) / 1000, np.flatnonzero(lit & ~np.roll(lit, 1)) / both.fps


def test_given_boxes_cut_exactly_these_pixels(tmp_path: Path, square_and_click: Write) -> None:
    source = square_and_click(tmp_path / "a.mp4")
    moving = [[10 + k % 20, 8, 42 + k % 20, 40] for k in range(40)]
    given = boxes(tmp_path / "b.json", a=moving)
    clips = [Clip("a", video=str(source), speaker="s", labels={"x": "y"})]
    summary = prepare_faces(clips, tmp_path / "out", arguments=given, size=32, **EXACT)
    (clip,) = read_manifest(summary.manifest)
    assert (clip.speaker, clip.labels, clip.start) == ("s", {"x": "y"}, 0.0)
    assert clip.video is not None
    assert clip.audio == clip.video
    before = load_audio_video(source, mono=False, as_uint8=True)
    after = load_audio_video(clip.video, duration=clip.duration, mono=False, as_uint8=True)
    assert len(after.video) == len(before.video) == 40
    for index, (left, top, right, bottom) in enumerate(moving):
        assert torch.equal(after.video[index], before.video[index, :, top:bottom, left:right])
    assert torch.equal(after.waveform, before.waveform)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("b.mp4", {"fps": Fraction(30_000, 1001)}),
        ("late.mp4", {"sound_delay": Fraction(31, 100)}),
        ("a.mpg", {"codec": "mpeg1video"}),
    ],
)
def test_flash_and_click_stay_together(tmp_path: Path, square_and_click: Write, name: str, how: dict[str, Any]) -> None:
    source = square_and_click(tmp_path / name, **how)
    clips = [Clip("whole", video=str(source)), Clip("part", video=str(source), start=0.9, duration=0.5)]
    summary = prepare_faces(clips, tmp_path / "out", detector="centre", region="face", size=48)
    for clip, flashes in zip(read_manifest(summary.manifest), (2, 1), strict=True):
        assert clip.video is not None
        both = load_audio_video(clip.video, duration=clip.duration)
        clicks, lit = onsets(both)
        assert len(clicks) == len(lit) == flashes
        assert np.abs(clicks - lit).max() <= 1 / both.fps + 0.002


def test_sound_of_its_own_is_taken_into_the_crop(tmp_path: Path, square_and_click: Write) -> None:
    import soundfile

    source = square_and_click(tmp_path / "a.mp4", sound=False)
    waveform = np.random.default_rng(0).integers(-3000, 3000, 16_000 * 8 // 5).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, subtype="PCM_16")
    clips = [
        Clip("with", video=str(source), audio=str(tmp_path / "a.wav"), start=0.4, duration=0.8),
        Clip("mute", video=str(source)),
    ]
    summary = prepare_faces(clips, tmp_path / "out", detector="centre")
    sounding, mute = read_manifest(summary.manifest)
    assert mute.audio is None
    assert mute.duration == pytest.approx(1.6)
    assert sounding.video is not None
    both = load_audio_video(sounding.video)
    assert np.array_equal(both.waveform.numpy() * 32768, waveform[6400 : 6400 + 12_800])


class Counting(CentreBox):
    """Counts the clips it sees; finds nothing in some frames, and dies when told to."""

    seen: list[str]
    absent: range = range(0)
    dies: bool = False

    def detect(self, pictures: np.ndarray, clip_id: str) -> list[list[Any]]:
        if Counting.dies and clip_id == "c1":
            raise KeyboardInterrupt
        Counting.seen.append(clip_id)
        faces = super().detect(pictures, clip_id)
        return [[] if clip_id == "c1" and k in Counting.absent else face for k, face in enumerate(faces)]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    Counting.seen, Counting.absent, Counting.dies = [], range(0), False
    clip_module.cached_detector.cache_clear()
    DETECTORS.register("counting", Counting)
    yield Counting
    DETECTORS.unregister("counting")


def test_a_killed_run_goes_on_and_a_second_one_computes_nothing(
    tmp_path: Path, square_and_click: Write, counting: Any
) -> None:
    source = square_and_click(tmp_path / "a.mp4", seconds=0.6)
    clips = [Clip(f"c{k}", video=str(source)) for k in range(3)]
    out = tmp_path / "out"
    counting.dies = True
    with pytest.raises(KeyboardInterrupt):
        prepare_faces(clips, out, detector="counting")
    with (out / "boxes.jsonl").open("ab") as file:
        file.write(b'{"id": "c1", "bo')  # the kill fell into a line
    counting.dies = False
    assert prepare_faces(clips, out, detector="counting").computed == 2
    assert counting.seen == ["c0", "c1", "c2"]
    page = (out / "mouth_96/quality.json").read_bytes()
    kept = {p: p.stat().st_mtime_ns for p in (out / "mouth_96/crops").iterdir()}
    again = prepare_faces(clips, out, detector="counting")
    assert again.computed == 0
    assert again.cropped == 3
    assert (out / "mouth_96/quality.json").read_bytes() == page
    assert kept == {p: p.stat().st_mtime_ns for p in (out / "mouth_96/crops").iterdir()}
    # another region takes the boxes that are there; a crop that is gone is made again
    prepare_faces(clips, out, detector="counting", region="face", size=32)
    next(iter(kept)).unlink()
    assert prepare_faces(clips, out, detector="counting").computed == 1
    assert counting.seen == ["c0", "c1", "c2"]
    # the result is that of a run without a kill
    whole = prepare_faces(clips, tmp_path / "whole", detector="counting")
    for path in (out / "mouth_96/crops").iterdir():
        assert path.read_bytes() == (whole.folder / "crops" / path.name).read_bytes()
    # a changed file is done anew
    source.touch()
    assert prepare_faces(clips, out, detector="counting").computed == 3


def test_other_settings_are_refused(tmp_path: Path, square_and_click: Write) -> None:
    clips = [Clip("a", video=str(square_and_click(tmp_path / "a.mp4", seconds=0.4)))]
    prepare_faces(clips, tmp_path / "out", detector="centre")
    with pytest.raises(DataError, match=r"other settings .*share"):
        prepare_faces(clips, tmp_path / "out", detector="centre", arguments={"share": 0.5})
    with pytest.raises(DataError, match="window: 12 there, 3 asked for"):
        prepare_faces(clips, tmp_path / "out", detector="centre", window=3)


def test_missing_faces_are_interpolated_and_counted(tmp_path: Path, square_and_click: Write, counting: Any) -> None:
    source = square_and_click(tmp_path / "a.mp4")
    clips = [Clip(f"c{k}", video=str(source)) for k in range(2)]
    counting.absent = range(10, 20)
    summary = prepare_faces(clips, tmp_path / "out", detector="counting")
    quality = json.loads((summary.folder / "quality.json").read_text())
    assert [c["id"] for c in quality["clips"]] == ["c1", "c0"]  # worst first
    assert (quality["clips"][0]["no_face"], quality["clips"][0]["longest_gap"]) == (0.25, 10)
    counting.absent = range(21)
    lost = prepare_faces(clips, tmp_path / "lost", detector="counting")
    assert lost.cropped == 1
    assert "no face in 21 of 40 frames" in lost.broken["c1"]
    assert [c.id for c in read_manifest(lost.manifest)] == ["c0"]


def test_broken_clips_and_what_is_wrong_are_on_the_page(tmp_path: Path, square_and_click: Write) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    clips = [
        Clip("fine", video=str(square_and_click(tmp_path / "a.mp4", seconds=0.8))),
        Clip("dark", video=str(square_and_click(tmp_path / "d.mp4", seconds=0.8, black=range(5, 15)))),
        Clip("short sound", video=str(square_and_click(tmp_path / "s.mp4", sound_seconds=1.0))),
        Clip("<b>&", video=str(tmp_path / "bad.mp4")),
        Clip("gone", video=str(tmp_path / "gone.mp4")),
        Clip("none", audio="x.wav"),
    ]
    summary = prepare_faces(clips, tmp_path / "out", detector="centre", region="face")
    assert sorted(summary.broken) == ["<b>&", "gone", "none"]
    assert [c.id for c in read_manifest(summary.manifest)] == ["fine", "dark", "short sound"]
    quality = json.loads((summary.folder / "quality.json").read_text())
    assert quality["counts"] == {"clips": 6, "cropped": 3, "broken": 3}
    order = [c["id"] for c in quality["clips"]]
    assert set(order[:3]) == set(summary.broken)
    assert order[-1] == "fine"
    found = {c["id"]: c for c in quality["clips"]}
    assert found["dark"]["black"] == found["dark"]["black_crops"] == 0.5
    assert found["short sound"]["audio_minus_video"] == pytest.approx(-0.6, abs=0.1)
    page = (summary.folder / "quality.html").read_text()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    assert page.count("data:image/jpeg") == 3


def test_wrong_arguments(tmp_path: Path) -> None:
    clips = [Clip("a", video="a.mp4")]
    with pytest.raises(DataError, match="No clip of the manifest has a video"):
        prepare_faces([Clip("a", audio="a.wav")], tmp_path, detector="centre")
    with pytest.raises(DataError, match="Ids come twice: a"):
        prepare_faces(clips * 2, tmp_path, detector="centre")
    wrong: list[dict[str, Any]] = [{"region": "mout"}, {"size": 4}, {"window": 0}, {"margin": -1}, {"max_missing": 2}]
    for argument in wrong:
        with pytest.raises(ConfigError):
            prepare_faces(clips, tmp_path, detector="centre", **argument)
    with pytest.raises(DataError, match="None of the 1 clips could be cropped"):
        prepare_faces(clips, tmp_path / "out", detector="centre")


def test_the_command(tmp_path: Path, square_and_click: Write, capsys: pytest.CaptureFixture[str]) -> None:
    clips = [Clip("a", video=str(square_and_click(tmp_path / "a.mp4", seconds=0.4))), Clip("b", audio="b.wav")]
    write_manifest(tmp_path / "m.jsonl", clips)
    words = ["faces", str(tmp_path / "m.jsonl"), str(tmp_path / "out"), "--region", "face", "--size", "64"]
    assert main([*words, "--detector", "centre", "share=0.5"]) == 0
    printed = capsys.readouterr()
    assert "1 clips cropped, 1 broken (2 computed now)" in printed.out
    assert "broken b: " in printed.err
    assert (tmp_path / "out/face_64/quality.html").is_file()
    assert main([*words, "--detector", "centre"]) == 1
    assert "begun with other settings" in capsys.readouterr().err
    assert main([*words, "--nj", "0"]) == 1


@pytest.mark.data
def test_the_real_grid(corpora: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra faces")
    files = sorted(corpora("grid").glob("*.mpg"))
    clips = [Clip(file.stem, video=str(file)) for file in files]
    summary = prepare_faces(clips, tmp_path)
    assert summary.cropped == 6
    quality = json.loads((summary.folder / "quality.json").read_text())
    assert all(c["no_face"] == 0 and c["black"] == 0 and c["faces"] < 1.05 for c in quality["clips"])
    assert all(75 < c["side"] < 105 and c["outside"] < 1e-6 for c in quality["clips"])
    crop = load_audio_video(read_manifest(summary.manifest)[0].video or "", mono=False, as_uint8=True)
    source = load_audio_video(files[0], mono=False, as_uint8=True)
    assert torch.equal(crop.waveform, source.waveform)
    assert crop.video.shape == (len(source.video), 3, 96, 96)
