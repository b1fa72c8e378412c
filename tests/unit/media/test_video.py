from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.errors import MediaError
from mmssl.lengths import frames_on_screen, seconds_to_frames
from mmssl.media.pictures import Pictures
from mmssl.media.video import load_video, video_info

Write = Callable[..., Path]
NTSC = Fraction(30_000, 1001)
UNEVEN = [Fraction(k * 40 + (k * 7) % 23, 1000) for k in range(100) if k % 9 not in (3, 7)]
CASES = {
    "a.mp4": {"fps": NTSC},
    "b.mp4": {"times": UNEVEN},
    "a.mkv": {"fps": NTSC},
    "b.mkv": {"times": UNEVEN},
    "a.mov": {"video_codec": "mpeg4", "fps": 30},
    "a.avi": {"video_codec": "mpeg4", "audio_codec": "mp2"},
    "a.mpg": {"video_codec": "mpeg1video", "audio_codec": "mp2", "fps": NTSC},
    "a.ts": {"video_codec": "mpeg2video", "audio_codec": "mp2"},
    "a.webm": {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "fps": 30},
}


def lower_half(video: torch.Tensor) -> np.ndarray:
    """The number of each picture, modulo the period of the fixture, from the grey of its lower half."""
    return (video[:, :, -12:].float().mean((1, 2, 3)) * (255 if video.dtype == torch.float32 else 1)).numpy()


@pytest.mark.parametrize("name", CASES)
def test_segments_equal_slices_of_the_whole(tmp_path: Path, flash_and_click: Write, name: str) -> None:
    path = flash_and_click(tmp_path / name, **CASES[name])
    whole, rate = load_video(path, as_uint8=True)
    info = video_info(path)
    assert (info.num_frames, info.fps, info.height, info.width) == (len(whole), rate, 48, 64)
    assert info.duration == pytest.approx(4.0, abs=0.08)
    assert whole.dtype == torch.uint8
    exact = Fraction(rate).limit_denominator(1001)
    for start, duration in ((0.0, 0.5), (0.7001, 0.3), (2.5, 0.25), (3.3333, 0.55)):
        first, count = seconds_to_frames(start, exact), seconds_to_frames(duration, exact)
        segment, _ = load_video(path, start=start, duration=duration, as_uint8=True)
        assert torch.equal(segment, whole[first : first + count])
    rest, _ = load_video(path, start=3.1, as_uint8=True)
    assert torch.equal(rest, whole[seconds_to_frames(3.1, exact) :])
    at_ten, ten = load_video(path, fps=10, as_uint8=True)
    assert ten == 10.0
    assert torch.equal(load_video(path, fps=10, start=2.6, duration=0.7, as_uint8=True)[0], at_ten[26:33])


@pytest.mark.parametrize("name", [name for name in CASES if "times" not in CASES[name]])
def test_at_its_own_rate_every_picture_comes_once(tmp_path: Path, flash_and_click: Write, name: str) -> None:
    path = flash_and_click(tmp_path / name, **CASES[name])
    fps = Fraction(CASES[name].get("fps", 25))
    video, rate = load_video(path)
    assert rate == float(fps)
    assert len(video) == int(4 * fps)
    expected = np.array([(k * 7) % 200 + 20 for k in range(len(video))])
    assert np.abs(lower_half(video) - expected).max() < 6
    # the rounded name of a rate means that rate
    assert torch.equal(load_video(path, fps=round(float(fps), 2))[0], video)


def test_other_rates_show_what_is_on_screen(tmp_path: Path, flash_and_click: Write) -> None:
    for name, case in (("a.mkv", {"fps": NTSC}), ("b.mkv", {"times": UNEVEN}), ("b.mp4", {"times": UNEVEN})):
        path = flash_and_click(tmp_path / name, **case)
        times = np.array([float(t) for t in case.get("times", [k / NTSC for k in range(119)])])
        for fps in (7.0, 24.0, 50.0):
            video, _ = load_video(path, fps=fps)
            # containers round to a millisecond: near a change both pictures are right
            early, late = (
                np.searchsorted(times, np.arange(len(video)) / fps + d, side="right") - 1 for d in (1e-6, 0.0016)
            )
            grey = lower_half(video)
            wrong = np.minimum(*(np.abs(grey - ((shown * 7) % 200 + 20)) for shown in (early, late)))
            assert wrong.max() < 6
            assert (early == late).mean() > 0.8
            last = 1 / float(case.get("fps", 25))
            assert len(video) == pytest.approx((times[-1] + last) * fps, abs=1.01)


def test_a_segment_is_sought_not_decoded_to(
    tmp_path: Path, flash_and_click: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    leave = Pictures.__exit__
    monkeypatch.setattr(Pictures, "__exit__", lambda self, *e: (decoded.append(self.num_decoded), leave(self, *e))[1])
    for name in ("a.mp4", "a.mkv"):
        path = flash_and_click(tmp_path / name, seconds=12.0)
        whole, _ = load_video(path, as_uint8=True)
        segment, _ = load_video(path, start=10.0, duration=0.4, as_uint8=True)
        assert torch.equal(segment, whole[250:260])
        assert decoded[-2] == 300
        assert decoded[-1] < 40


def test_sizes(tmp_path: Path, flash_and_click: Write) -> None:
    path = flash_and_click(tmp_path / "a.mp4", seconds=1.0)
    whole = load_video(path)[0]
    assert whole.shape == (25, 3, 48, 64)
    assert 0 <= whole.min() < 0.1 < 0.9 < whole.max() <= 1
    assert load_video(path, size=24)[0].shape == (25, 3, 24, 32)
    assert load_video(path, size=(30, 20))[0].shape == (25, 3, 30, 20)
    # shrinking averages what it leaves out
    small = load_video(path, size=(6, 8))[0]
    mean = whole.reshape(25, 3, 6, 8, 8, 8).mean((3, 5))
    assert (small - mean)[:, :, [0, 1, 4, 5]].abs().max() < 0.02


@pytest.mark.parametrize(("quarters", "matrix"), [(-1, (0, 1, -1, 0)), (1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1))])
def test_pictures_are_turned_upright(
    tmp_path: Path, flash_and_click: Write, quarters: int, matrix: tuple[int, ...]
) -> None:
    path = flash_and_click(tmp_path / "a.mp4", seconds=1.0)
    upright = load_video(path, as_uint8=True)[0]
    data = bytearray(path.read_bytes())

    def rows(a: int, b: int, c: int, d: int) -> bytes:
        numbers = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        return b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)

    at = data.index(rows(1, 0, 0, 1), data.index(b"tkhd"))
    data[at : at + 36] = rows(*matrix)
    path.write_bytes(data)
    turned = load_video(path, as_uint8=True)[0]
    assert torch.equal(turned, torch.rot90(upright, quarters, (2, 3)))
    info = video_info(path)
    assert (info.height, info.width) == tuple(turned.shape[2:])
    assert load_video(path, size=(40, 20))[0].shape[2:] == (40, 20)
    assert load_video(path, size=24)[0].shape[2:] == ((24, 32) if quarters == 2 else (32, 24))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("b.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.mpg", "mpeg1video")],
)
@pytest.mark.parametrize("share", [0.4, 0.83])
def test_truncated_files(tmp_path: Path, flash_and_click: Write, name: str, codec: str, share: float) -> None:
    path = flash_and_click(tmp_path / name, codec, None)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match=rf"{name}.*truncated"):
        load_video(path)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("b.mp4", "mpeg4")])
@pytest.mark.parametrize("fill", [0x00, 0xA5])
def test_damaged_packets(tmp_path: Path, flash_and_click: Write, name: str, codec: str, fill: int) -> None:
    path = flash_and_click(tmp_path / name, codec, None, size=(96, 96))
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 3000] = bytes([fill]) * 3000
    path.write_bytes(data)
    with pytest.raises(MediaError, match=name):
        load_video(path)


def test_what_is_no_video(tmp_path: Path, sweep: Callable, encode: Write) -> None:
    sound = encode(tmp_path / "sound.m4a", sweep(44_100, 1.0))
    (tmp_path / "text.mp4").write_text("nothing")
    (tmp_path / "empty.mp4").write_bytes(b"")
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    for path, message in (
        (sound, "holds no video stream, only audio"),
        (tmp_path / "text.mp4", "not a video file"),
        (tmp_path / "empty.mp4", "empty"),
        (tmp_path / "none.mp4", "does not exist"),
        (tmp_path, "folder"),
        (tmp_path / "still.png", "single picture"),
    ):
        for read in (video_info, load_video):
            with pytest.raises(MediaError, match=message) as caught:
                read(path)
            assert path.name in str(caught.value)


def test_a_stream_without_pictures(tmp_path: Path, sweep: Callable, encode: Write) -> None:
    import av

    path = tmp_path / "hollow.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=25)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        container.start_encoding()
    for read in (video_info, load_video):
        with pytest.raises(MediaError, match=r"hollow\.mkv"):
            read(path)


def test_wrong_requests_and_segments_outside(tmp_path: Path, flash_and_click: Write) -> None:
    path = flash_and_click(tmp_path / "a.mp4", audio_codec=None, seconds=2.0)
    for wrong, message in (
        ({"fps": 0}, "frame rate"),
        ({"fps": float("nan")}, "frame rate"),
        ({"size": 0}, "size"),
        ({"size": (1, 2, 3)}, "size"),
        ({"start": -1}, "start"),
        ({"duration": 0}, "duration"),
        ({"duration": 0.01}, "less than one picture"),
        ({"start": 2.0}, "past the end"),
        ({"start": 9.0, "duration": 1.0}, "past the end"),
        ({"start": 1.5, "duration": 0.6}, "by 3 pictures: it lasts 2.000 s"),
    ):
        with pytest.raises(MediaError, match=message):
            load_video(path, **wrong)
    assert len(load_video(path, start=1.5, duration=0.54)[0]) == 12


def test_lengths_are_exact() -> None:
    assert frames_on_screen(Fraction(4), Fraction(25), Fraction(1, 50)) == 100
    assert frames_on_screen(Fraction(4), Fraction(10), Fraction(0)) == 40
    assert frames_on_screen(Fraction(4001, 1000), Fraction(10), Fraction(1, 1000)) == 40
    assert frames_on_screen(Fraction(0), Fraction(10), Fraction(0)) == 0
    assert [seconds_to_frames(t, Fraction(25)) for t in (0.0, 0.019, 0.02, 0.06, Fraction(1, 25))] == [0, 0, 1, 2, 1]


@pytest.mark.data
def test_grid_video(corpora: Callable[[str], Path]) -> None:
    for path in sorted(corpora("grid").glob("*.mpg")):
        info = video_info(path)
        assert (info.fps, info.num_frames, info.height, info.width) == (25.0, 75, 288, 360)
        assert load_video(path, size=72)[0].shape == (75, 3, 72, 90)
