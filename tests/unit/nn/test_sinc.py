from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.sinc import SincConv


def test_each_filter_passes_its_band_and_not_the_others() -> None:
    conv = SincConv(8, 251).requires_grad_(False)
    gains = torch.fft.rfft(conv.filters()[:, 0], n=4096).abs()
    hertz = torch.linspace(0, 8000, gains.shape[1])
    for row in range(8):
        low = 50 + float(conv.low_hz[row])
        high = low + 50 + float(conv.band_hz[row])
        inside, outside = (hertz > low + 60) & (hertz < high - 60), (hertz < low - 120) | (hertz > high + 120)
        if inside.any():
            assert gains[row][inside].min() > 10 * gains[row][outside].max()


def test_filters_are_symmetric_and_bands_are_learned() -> None:
    conv = SincConv(4, 31)
    filters = conv.filters()[:, 0]
    torch.testing.assert_close(filters, filters.flip(1))
    assert conv(torch.randn(2, 1, 100)).shape == (2, 4, 70)
    conv(torch.randn(2, 1, 100)).square().sum().backward()
    assert conv.low_hz.grad.abs().min() > 0
    # the last band ends at half the sample rate already, where it is cut
    assert conv.band_hz.grad[:-1].abs().min() > 0


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="odd number of taps"):
        SincConv(4, 250)
