from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.errors import InputError, MediaError
from mmssl.lengths import resampled_length
from mmssl.media import resampling
from mmssl.media.audio import load_audio
from mmssl.media.streaming import AudioStream

Sweep = Callable[..., np.ndarray]
Encode = Callable[..., Path]


def windows(stream: AudioStream, size: int, overlap: int = 0) -> torch.Tensor:
    """All of a stream, from windows that reach into each other."""
    pieces = []
    for first in range(0, stream.num_samples, size):
        begin = max(0, first - overlap)
        window = stream.read(begin, first + size + overlap)
        assert len(window) == min(first + size + overlap, stream.num_samples) - begin
        pieces.append(window[first - begin : first - begin + size])
    return torch.cat(pieces)


@pytest.mark.parametrize("overlap", [0, 700])
@pytest.mark.parametrize(
    ("rate", "new"),
    [(16_000, None), (44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (22_051, 16_000), (16_000, 44_100)],
)
def test_windows_laid_end_to_end_are_the_whole(
    tmp_path: Path, sweep: Sweep, rate: int, new: int | None, overlap: int
) -> None:
    soundfile.write(tmp_path / "a.wav", sweep(rate, 3.3, 2).T, rate, subtype="FLOAT")
    whole, _ = load_audio(tmp_path / "a.wav", sample_rate=new)
    for size in (5000, 12345):
        with AudioStream(tmp_path / "a.wav", sample_rate=new) as stream:
            assert stream.num_samples == len(whole)
            torch.testing.assert_close(windows(stream, size, overlap), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.flac", ""), ("a.ogg", ""), ("a.mp3", "mp3"), ("a.m4a", "aac"), ("a.mkv", "libopus")],
)
@pytest.mark.parametrize(("start", "duration"), [(0.0, None), (4.1, 1.5), (3.2, None)])
def test_every_kind_of_file_and_segments(
    tmp_path: Path, sweep: Sweep, encode: Encode, name: str, codec: str, start: float, duration: float | None
) -> None:
    path, rate = tmp_path / name, 48_000
    if codec:
        encode(path, sweep(rate, 6.0), rate, codec)
    else:
        soundfile.write(path, sweep(rate, 6.0)[0], rate)
    whole, _ = load_audio(path, sample_rate=16_000, start=start, duration=duration)
    with AudioStream(path, sample_rate=16_000, start=start, duration=duration) as stream:
        torch.testing.assert_close(windows(stream, 7000, 100), whole, rtol=0, atol=1e-6)


def test_resampling_does_not_depend_on_its_pieces(monkeypatch: pytest.MonkeyPatch, sweep: Sweep) -> None:
    waveform = torch.from_numpy(sweep(44_100, 2.0, 2))
    whole = resampling.resample(waveform, 44_100, 16_000)
    monkeypatch.setattr(resampling, "_PIECE", 1000)
    torch.testing.assert_close(resampling.resample(waveform, 44_100, 16_000), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rate", "new"), [(44_100, 16_000), (48_000, 16_000), (11_025, 16_000)])
def test_a_short_waveform_is_as_torchaudio_resamples_it(sweep: Sweep, rate: int, new: int) -> None:
    from torchaudio.transforms import Resample

    waveform = torch.from_numpy(sweep(rate, 1.7))
    assert torch.equal(resampling.resample(waveform, rate, new), Resample(rate, new)(waveform))


def test_the_length_of_long_waveforms_is_exact() -> None:
    # torchaudio computes it in float32, where 2,000,000.006 is 2,000,000
    samples = 5_512_501
    found = resampling.resample(torch.zeros(1, samples), 44_100, 16_000)
    assert found.shape == (1, resampled_length(samples, 44_100, 16_000))


def test_windows_go_forwards_and_end_with_the_file(tmp_path: Path, sweep: Sweep) -> None:
    soundfile.write(tmp_path / "a.wav", sweep(16_000, 1.0)[0], 16_000)
    with AudioStream(tmp_path / "a.wav") as stream:
        assert len(stream.read(8000, 99_999)) == 8000
        assert len(stream.read(16_000, 17_000)) == 0
        with pytest.raises(InputError, match="forwards"):
            stream.read(0, 10)


def test_faults_are_those_of_a_whole_read(tmp_path: Path, sweep: Sweep) -> None:
    tone = sweep(16_000, 1.0)[0]
    cases = {
        "silent": (np.zeros(16_000), "silent"),
        "cancel": (np.stack([tone, -tone], axis=1), "cancel each other out"),
        "infinite": (np.concatenate([tone, [np.inf]]), "NaN or infinite"),
        "loud": (tone * 30_000, "integers seem"),
    }
    for name, (samples, message) in cases.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        for read in (
            lambda p: load_audio(p, sample_rate=8000),
            lambda p: windows(AudioStream(p, sample_rate=8000), 999),
        ):
            with pytest.raises(MediaError, match=message):
                read(path)
    with pytest.raises(MediaError, match="past the end"):
        AudioStream(tmp_path / "loud.wav", start=2.0)
    path = tmp_path / "cut.flac"
    soundfile.write(path, tone, 16_000)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(MediaError, match="truncated"), AudioStream(path) as stream:
        windows(stream, 5000)
