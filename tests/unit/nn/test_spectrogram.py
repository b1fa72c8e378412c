from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.spectrogram import LogSpectrogram


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_lengths_are_exact(center: bool, frames: int) -> None:
    spectrogram = LogSpectrogram(64, 20, center=center)
    shortest = spectrogram.min_length(frames)
    for length in (shortest, shortest + 1, shortest + 20):
        found = spectrogram(torch.randn(2, length))
        assert found.shape[2] == int(spectrogram.output_lengths(torch.tensor(length))) >= frames
    assert found.shape[1] == spectrogram.num_bins == 33
    below = int(spectrogram.output_lengths(torch.tensor(shortest - 1)))
    assert below < frames or (center and shortest == 33)


def test_the_own_scale_of_a_clip_is_mean_zero_and_deviation_one() -> None:
    frames = LogSpectrogram(64, 20, mean=None)(torch.randn(2, 500) * 0.01)
    assert torch.allclose(frames.mean(2), torch.zeros(2, 33), atol=1e-5)
    assert torch.allclose(frames.std(2, correction=0), torch.ones(2, 33), atol=1e-4)


def test_the_range_in_decibels_is_the_clips_own() -> None:
    loud, quiet = torch.randn(1, 500), torch.randn(1, 500) * 1e-3
    spectrogram = LogSpectrogram(64, 64, decibels=True, dynamic_range=20.0)
    both = spectrogram(torch.cat([loud, quiet]))
    assert torch.equal(both[1:], spectrogram(quiet))
    assert float(both[0].max() - both[0].min()) == pytest.approx(20.0, abs=1e-3)


def test_gradients_are_finite_in_silence() -> None:
    for options in ({}, {"decibels": True}, {"mean": None}):
        waveform = torch.zeros(1, 500, requires_grad=True)
        (LogSpectrogram(64, 20, **options)(waveform) * torch.randn(33, 1)).sum().backward()
        assert waveform.grad is not None
        assert bool(waveform.grad.isfinite().all())


@pytest.mark.parametrize("sizes", [(63, 20, None), (64, 0, None), (64, 20, 65), (64, 20, 1)])
def test_sizes_that_do_not_go_together_are_refused(sizes: tuple[int, int, int | None]) -> None:
    with pytest.raises(ConfigError, match="even n_fft"):
        LogSpectrogram(*sizes)


def test_a_narrow_window_cannot_be_centred() -> None:
    with pytest.raises(ConfigError, match="if centred"):
        LogSpectrogram(64, 20, 32, center=True)
