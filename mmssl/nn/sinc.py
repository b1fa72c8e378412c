"""Band-pass filters whose two edges are all that is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError


class SincConv(nn.Module):
    """Convolution of a waveform with ideal band-pass filters under a Hamming window.

    Source: Ravanelli and Bengio 2018, "Speaker Recognition from Raw Waveform with SincNet", equations 4-9. At first the
    bands lie side by side, equally wide in mel from 30 Hz on. The filters are computed in float32.

    Args:
        num_filters: bands.
        kernel: taps of a filter, odd.
        sample_rate: in Hz.
        min_low_hz: lowest lower edge in Hz.
        min_band_hz: narrowest band in Hz.
    """

    def __init__(
        self,
        num_filters: int = 64,
        kernel: int = 251,
        sample_rate: int = 16000,
        min_low_hz: float = 50.0,
        min_band_hz: float = 50.0,
    ) -> None:
        super().__init__()
        if num_filters < 1 or kernel < 3 or kernel % 2 == 0:
            raise ConfigError(f"SincConv takes filters of an odd number of taps, got {num_filters} of {kernel}.")
        self.kernel, self.sample_rate = kernel, sample_rate
        self.min_low_hz, self.min_band_hz = min_low_hz, min_band_hz
        low, high = 30.0, sample_rate / 2 - (min_low_hz + min_band_hz)
        mels = torch.linspace(_mel(low), _mel(high), num_filters + 1, dtype=torch.float64)
        edges = 700 * (10 ** (mels / 2595) - 1)
        self.low_hz = nn.Parameter(edges[:-1].float())
        self.band_hz = nn.Parameter(edges.diff().float())

    def filters(self) -> Tensor:
        """The filters (num_filters, 1, kernel) float32; their middle tap is 1."""
        half = self.kernel // 2
        low_hz, band_hz = self.low_hz.float(), self.band_hz.float()
        low = self.min_low_hz + low_hz.abs()
        high = (low + self.min_band_hz + band_hz.abs()).clamp(self.min_low_hz, self.sample_rate / 2)
        step = torch.arange(half, device=low.device)
        # SincNet's code spaces half a window over kernel / 2 - 1 steps, not over the taps
        window = 0.54 - 0.46 * torch.cos(2 * math.pi * step * ((self.kernel / 2 - 1) / max(half - 1, 1)) / self.kernel)
        time = 2 * math.pi * (step - half) / self.sample_rate
        left = (torch.sin(high[:, None] * time) - torch.sin(low[:, None] * time)) / (time / 2) * window
        band = (high - low)[:, None]
        taps = torch.cat([left, 2 * band, left.flip(1)], dim=1) / (2 * band)
        return taps[:, None]

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, 1, T) -> (B, num_filters, T - kernel + 1), in the type of the waveforms."""
        return F.conv1d(waveforms, self.filters().to(waveforms.dtype))


def _mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)
