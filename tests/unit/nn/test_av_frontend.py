from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.nn.av_frontend import MouthFrontEnd, StackedFilterbank, mouth_crops, rounded_mel_bank


def test_a_whole_40_ms_makes_a_frame() -> None:
    filterbank = StackedFilterbank()
    for length, frames in ((640, 1), (1279, 1), (1280, 2), (16000, 25), (17600, 27)):
        found = filterbank(torch.randn(length) * 0.1)
        assert found.shape == (frames, 104)
        assert int(filterbank.output_lengths(torch.tensor(length))) == frames
        assert found.dtype == torch.float32


def test_frames_have_mean_zero_and_deviation_one_unless_told_otherwise() -> None:
    clip = torch.randn(6400) * 0.1
    found = StackedFilterbank()(clip)
    assert torch.allclose(found.mean(1), torch.zeros(10), atol=1e-5)
    assert torch.allclose(found.std(1, correction=0), torch.ones(10), atol=1e-3)
    assert float(StackedFilterbank(normalize=False)(clip).mean()) > 5


def test_silence_is_finite_and_has_gradients() -> None:
    clip = torch.zeros(1280, requires_grad=True)
    found = StackedFilterbank()(clip)
    found.pow(2).sum().backward()
    assert bool(found.isfinite().all())
    assert clip.grad is not None
    assert bool(clip.grad.isfinite().all())


def test_filters_rise_and_fall_between_bins() -> None:
    bank = rounded_mel_bank(26, 512, 16000)
    assert bank.shape == (257, 26)
    assert float(bank.min()) == 0
    assert bank.max(dim=0).values.tolist() == [1.0] * 26
    assert not bank[0].any()


def test_a_rate_whose_window_is_longer_than_the_fft_is_refused() -> None:
    with pytest.raises(ConfigError, match="up to 20480 Hz"):
        StackedFilterbank(sample_rate=22050)


def test_crops_are_the_grey_middle() -> None:
    grey = torch.rand(3, 1, 96, 96)
    crop = mouth_crops(grey, 88, 0.421, 0.165)
    assert torch.allclose(crop, (grey[:, :, 4:92, 4:92] - 0.421) / 0.165)
    assert torch.allclose(mouth_crops(grey.expand(3, 3, 96, 96), 88, 0.421, 0.165), crop, atol=1e-5)
    red = torch.zeros(1, 3, 96, 96)
    red[:, 0] = 1
    assert torch.allclose(mouth_crops(red, 88, 0.0, 1.0), torch.tensor(0.299))
    with pytest.raises(InputError, match="got 2 channels"):
        mouth_crops(torch.rand(3, 2, 96, 96), 88, 0.0, 1.0)


@torch.no_grad()
def test_the_mouth_network_keeps_clips_apart() -> None:
    net = MouthFrontEnd(width=2).eval()
    clips = [torch.randn(n, 1, 24, 24) for n in (4, 1, 6)]
    together = net(clips)
    assert together.lengths == (4, 1, 6)
    assert together.data.shape == (11, 16)
    for clip, found in zip(clips, together.split(), strict=True):
        assert torch.allclose(found, net([clip]).data, atol=1e-6)
