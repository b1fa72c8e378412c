from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.errors import MediaError
from mmssl.lengths import seconds_to_samples
from mmssl.media import container
from mmssl.media.audio import audio_info, load_audio

Sweep = Callable[..., np.ndarray]
Encode = Callable[..., Path]
# name: rate, codec, seconds of video beside it, largest difference after a seek
CASES = {
    "a.m4a": (44_100, "aac", 0, 1e-6),
    "b.m4a": (16_000, "alac", 0, 0),
    "a.mp4": (48_000, "aac", 6, 1e-6),
    "a.mkv": (44_100, "aac", 6, 1e-6),
    "b.mkv": (48_000, "libopus", 0, 1e-4),
    "c.mkv": (16_000, "pcm_s16le", 0, 0),
    "d.mkv": (22_050, "flac", 0, 0),
    "a.webm": (48_000, "libopus", 0, 1e-4),
    "a.mov": (44_100, "pcm_s24le", 6, 0),
    "a.opus": (48_000, "libopus", 0, 1e-4),
    "a.mpg": (44_100, "mp2", 6, 1e-4),
    "a.ts": (48_000, "aac", 0, 1e-6),
}


@pytest.mark.parametrize("name", CASES)
def test_segments_equal_slices_of_the_whole(tmp_path: Path, sweep: Sweep, encode: Encode, name: str) -> None:
    rate, codec, video, tolerance = CASES[name]
    samples = sweep(rate, 6.0, 2)
    path = encode(tmp_path / name, samples, rate, codec, video=video)
    whole, got = load_audio(path, mono=False)
    info = audio_info(path)
    assert (info.sample_rate, info.num_samples, info.num_channels) == (got, whole.shape[1], 2)
    assert got == rate
    # codecs pad to a whole frame, and a transport stream cannot say how much the codec delays
    assert 0 <= whole.shape[1] - samples.shape[1] < 2500
    delays = {
        round(k): np.corrcoef(whole[0, rate + k : 5 * rate + k], samples[0, rate : 5 * rate])[0, 1]
        for k in range(0, 1100, 4)
    }
    delay = max(delays, key=lambda k: delays[k])
    assert delays[delay] > 0.95
    assert delay == (1024 if name == "a.ts" else 480 if codec == "mp2" else 0)
    for start, duration in ((0.0, 0.5), (0.7001, 0.3), (2.5, 0.25), (3.3333, 1.5), (5.01, 0.9)):
        first, count = seconds_to_samples(start, rate), seconds_to_samples(duration, rate)
        segment, _ = load_audio(path, start=start, duration=duration, mono=False)
        torch.testing.assert_close(segment, whole[:, first : first + count], rtol=0, atol=tolerance)
    rest, _ = load_audio(path, start=3.1, mono=False)
    torch.testing.assert_close(rest, whole[:, seconds_to_samples(3.1, rate) :], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["a.m4a", "a.mkv"])
def test_a_segment_is_sought_not_decoded_to(tmp_path: Path, sweep: Sweep, encode: Encode, name: str) -> None:
    path = encode(tmp_path / name, sweep(44_100, 30.0))
    with container._Sound(path) as sound:
        landed = sound.seek(20.0)
        assert landed is not None
        assert 19 * 44_100 < landed < 20.5 * 44_100


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_time_counts_from_the_first_sample_whatever_its_time_stamp(
    tmp_path: Path, sweep: Sweep, encode: Encode, name: str
) -> None:
    path = encode(tmp_path / name, sweep(44_100), first_pts=0.75, video=7)
    whole, _ = load_audio(path)
    assert 6.0 * 44_100 <= len(whole) < 6.06 * 44_100
    segment, _ = load_audio(path, start=3.2, duration=1.0)
    torch.testing.assert_close(segment, whole[141_120 : 141_120 + 44_100], rtol=0, atol=1e-6)


def test_video_without_sound(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "mute.mp4", None, video=1)
    for read in (audio_info, load_audio):
        with pytest.raises(MediaError, match=r"mute\.mp4 holds no sound stream, only video"):
            read(path)


@pytest.mark.parametrize("name", ["a.m4a", "fast.m4a", "fast.mp4", "a.mkv", "a.mpg"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_containers(tmp_path: Path, sweep: Sweep, encode: Encode, name: str, share: float) -> None:
    options = {"movflags": "faststart"} if name.startswith("fast") else {}
    codec, video = ("mp2" if name.endswith("mpg") else "aac"), (0 if name.endswith("m4a") else 4)
    path = encode(tmp_path / name, sweep(44_100, 4.0), codec=codec, video=video, options=options)
    load_audio(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for read in (audio_info, load_audio):
        with pytest.raises(MediaError, match=f"{name}.*truncated"):
            read(path)


def test_a_damaged_stretch_is_an_error(tmp_path: Path, sweep: Sweep, encode: Encode) -> None:
    path = encode(tmp_path / "a.mkv", sweep(44_100))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8000] = bytes(8000)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mkv"):
        load_audio(path)


def test_segments_outside_the_stream(tmp_path: Path, sweep: Sweep, encode: Encode) -> None:
    path = encode(tmp_path / "a.m4a", sweep(16_000, 5.0), 16_000, "alac")
    with pytest.raises(MediaError, match="past the end"):
        load_audio(path, start=5.0)
    with pytest.raises(MediaError, match="past the end"):
        load_audio(path, start=50.0, duration=1.0)
    with pytest.raises(MediaError, match=r"passes the end .* it lasts 5\.000 s"):
        load_audio(path, start=4.5, duration=0.6)
    assert len(load_audio(path, start=4.5, duration=0.54)[0]) == 8000


def test_no_playlist_opens_other_files(tmp_path: Path, sweep: Sweep, encode: Encode) -> None:
    encode(tmp_path / "a.ts", sweep(48_000, 1.0), 48_000)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile http://localhost:9/a.ts\n")
    with pytest.raises(MediaError, match=r"list\.ffconcat"):
        load_audio(tmp_path / "list.ffconcat")


@pytest.mark.data
def test_grid_video(corpora: Callable[[str], Path]) -> None:
    path = min(corpora("grid").glob("*.mpg"))
    whole, rate = load_audio(path, mono=False)
    assert whole.shape[0] == 2
    assert 2.9 < whole.shape[1] / rate < 3.1
    segment, _ = load_audio(path, start=2.3, duration=0.5, mono=False)
    first = seconds_to_samples(2.3, rate)
    torch.testing.assert_close(segment, whole[:, first : first + segment.shape[1]], rtol=0, atol=1e-4)
