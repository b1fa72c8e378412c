"""Filterbanks, windows and frame operations of spectral features, as plain functions on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import valid_mask

WINDOWS = ("povey", "hamming", "hanning", "rectangular", "blackman")


def add_deltas(data: Tensor, lengths: Tensor, order: int, window: int = 2) -> Tensor:
    """Append differences in time, as Kaldi's add-deltas does (DeltaFeatures: regression over +-`window` frames).

    The second order applies the squared filter to the features themselves, and frames beyond either end of a clip
    repeat its first or last frame.

    Args:
        data: (B, T, D), lengths: (B,) valid frames, order: 1 or 2.

    Returns:
        (B, T, D * (1 + order)).
    """
    ramp = torch.arange(-window, window + 1, dtype=torch.float64)
    ramp = ramp / ramp.pow(2).sum()
    kernel, parts = torch.ones(1, dtype=torch.float64), [data]
    time = torch.arange(data.shape[1], device=data.device)
    last = (lengths - 1).clamp(min=0)[:, None]
    for _ in range(order):
        # convolving with the ramp is correlating with its mirror image; full, so that the filter grows by 2 * window
        kernel = F.conv1d(kernel[None, None], ramp.flip(0)[None, None], padding=2 * window)[0, 0]
        reach = len(kernel) // 2
        total = torch.zeros_like(data)
        for offset, weight in zip(range(-reach, reach + 1), kernel.tolist(), strict=True):
            index = torch.minimum((time + offset).clamp(min=0)[None], last)
            total = total + weight * data.gather(1, index[..., None].expand_as(data))
        parts.append(total)
    return torch.cat(parts, dim=-1)


def normalize_frames(data: Tensor, lengths: Tensor, *, variance: bool, eps: float = 1e-10) -> Tensor:
    """Subtract each clip's mean over its valid frames, and with `variance` divide by its standard deviation.

    Args:
        data: (B, T, D), zero past each length.
        lengths: (B,) valid frames.
        eps: floor of the variance (Kaldi's apply-cmvn uses 1e-20 in double precision).
    """
    valid = valid_mask(lengths, data.shape[1])[..., None]
    count = lengths.clamp(min=1)[:, None, None].to(data.dtype)
    centred = (data - data.masked_fill(~valid, 0).sum(1, keepdim=True) / count).masked_fill(~valid, 0)
    if not variance:
        return centred
    return centred / (centred.pow(2).sum(1, keepdim=True) / count).clamp(min=eps).sqrt()


def fft_size(window: int) -> int:
    """Smallest power of two that holds a window (Kaldi's round_to_power_of_two)."""
    return 1 << max(window - 1, 1).bit_length()


def window_function(name: str, size: int) -> Tensor:
    """Kaldi's symmetric window functions (feature-window.cc), (size,) float32."""
    phase = torch.arange(size) * (2 * math.pi / (size - 1))
    hann = torch.hann_window(size, periodic=False)
    windows = {
        "povey": hann.pow(0.85),
        "hanning": hann,
        "hamming": torch.hamming_window(size, periodic=False),
        "rectangular": torch.ones(size),
        "blackman": 0.42 - 0.5 * torch.cos(phase) + 0.08 * torch.cos(2 * phase),
    }
    if name not in windows:
        raise ConfigError(f"window_type must be one of {', '.join(WINDOWS)}, got {name!r}.")
    return windows[name]


def _edges(num_bins: int, sample_rate: int, low: float, high: float) -> tuple[float, float]:
    nyquist = sample_rate / 2
    high = high + nyquist if high <= 0 else high
    if num_bins < 1 or not 0 <= low < high <= nyquist:
        raise ConfigError(
            f"A mel filterbank needs at least one filter and 0 <= low_freq < high_freq <= {nyquist:g} Hz, "
            f"got {num_bins} filters from {low:g} to {high:g} Hz."
        )
    return low, high


def kaldi_mel_bank(num_bins: int, n_fft: int, sample_rate: int, low: float, high: float) -> Tensor:
    """Kaldi's filters, triangular in mel (mel-computations.cc): (n_fft / 2 + 1, num_bins) float32.

    The bin at half the sample rate has no weight.
    """
    low, high = _edges(num_bins, sample_rate, low, high)
    mel_low, mel_high = (1127.0 * math.log1p(f / 700.0) for f in (low, high))
    # float32 throughout, as in Kaldi: where a filter barely touches a bin its weight is mostly rounding
    points = mel_low + torch.arange(num_bins + 2) * ((mel_high - mel_low) / (num_bins + 1))
    bins = 1127.0 * (1.0 + torch.arange(n_fft // 2) * (sample_rate / n_fft) / 700.0).log()
    return F.pad(_triangles(bins, points), (0, 0, 0, 1))


def mel_bank(
    num_bins: int, n_fft: int, sample_rate: int, low: float, high: float, scale: str = "htk", norm: str | None = None
) -> Tensor:
    """Filters triangular in Hz, as librosa and torchaudio have them: (n_fft // 2 + 1, num_bins) float32."""
    low, high = _edges(num_bins, sample_rate, low, high)
    if scale not in _MEL or norm not in (None, "slaney"):
        raise ConfigError(f"mel_scale must be htk or slaney and norm none or slaney, got {scale!r} and {norm!r}.")
    to_mel, from_mel = _MEL[scale]
    mels = torch.linspace(to_mel(low), to_mel(high), num_bins + 2, dtype=torch.float64)
    points = torch.tensor([from_mel(m) for m in mels.tolist()], dtype=torch.float64)
    bank = _triangles(torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64), points)
    if norm == "slaney":
        bank = bank * (2.0 / (points[2:] - points[:-2]))
    return bank.float()


def _triangles(x: Tensor, points: Tensor) -> Tensor:
    """Triangles over `x` (F,) that rise and fall between neighbours of `points` (N + 2,): (F, N)."""
    gaps = points.diff()
    slopes = x[:, None] - points
    return torch.minimum(slopes[:, :-2] / gaps[:-1], -slopes[:, 2:] / gaps[1:]).clamp(min=0)


def _slaney_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _slaney_from_mel(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


_MEL = {
    "htk": (lambda hz: 2595 * math.log10(1 + hz / 700), lambda mel: 700 * (10 ** (mel / 2595) - 1)),
    "slaney": (_slaney_to_mel, _slaney_from_mel),
}


def liftered_dct(num_bins: int, num_ceps: int, lifter: float) -> Tensor:
    """Orthonormal DCT-II with Kaldi's liftering, (num_bins, num_ceps) float32."""
    n, k = torch.arange(num_bins, dtype=torch.float64)[:, None], torch.arange(num_ceps, dtype=torch.float64)[None]
    dct = math.sqrt(2 / num_bins) * torch.cos(math.pi / num_bins * (n + 0.5) * k)
    dct[:, 0] = math.sqrt(1 / num_bins)
    if lifter:
        dct = dct * (1 + 0.5 * lifter * torch.sin(math.pi * k / lifter))
    return dct.float()
