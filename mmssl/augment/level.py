"""Level, sign and bandwidth of waveforms."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Range, checked_range, require_dims, uniform
from mmssl.errors import ConfigError

STOPBAND = 65.0
"""Attenuation outside the band, in dB."""


class Gain(Augmentation):
    """Another level; the waveform may leave [-1, 1] (see `LimitPeak`).

    Args:
        decibels: range of the gain.
    """

    def __init__(self, decibels: Range = (-6.0, 6.0)) -> None:
        self.decibels = checked_range("decibels", decibels)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        require_dims(x, (1,), "a waveform (T,)")
        return x * 10 ** (uniform(*self.decibels, generator) / 20)


class Polarity(Augmentation):
    """The waveform with its sign turned round; use it inside `With`."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        require_dims(x, (1,), "a waveform (T,)")
        return -x


class LimitPeak(Augmentation):
    """Scale a waveform down where its peak is too high, so that nothing is clipped.

    Args:
        peak: highest magnitude, greater than 0.

    Raises:
        ConfigError: a peak that is not positive.
    """

    def __init__(self, peak: float = 1.0) -> None:
        if not peak > 0:
            raise ConfigError(f"peak must be greater than 0, got {peak}.")
        self.peak = peak

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        require_dims(x, (1,), "a waveform (T,)")
        largest = float(x.abs().max())
        return x * (self.peak / largest) if largest > self.peak else x


class BandLimit(Augmentation):
    """Leave a band of frequencies, with a linear-phase filter whose delay is taken out.

    Outside of the band, `transition` Hz away from its edges, at least 60 dB are taken off.

    Args:
        low: range of the lower edge in Hz; 0 for none.
        high: range of the upper edge in Hz; half the sample rate for none.
        sample_rate: in Hz.
        transition: width in Hz over which an edge falls; the edge (-6 dB) is at its middle.

    Raises:
        ConfigError: edges that leave no band.
    """

    def __init__(
        self,
        low: Range = (0.0, 300.0),
        high: Range = (3400.0, 8000.0),
        sample_rate: int = 16000,
        transition: float = 200.0,
    ) -> None:
        if not 0 < transition < sample_rate / 2:
            raise ConfigError(f"transition must be between 0 and {sample_rate / 2:g} Hz, got {transition}.")
        self.low = checked_range("low", low, 0)
        self.high = checked_range("high", high, 0, sample_rate / 2)
        if self.low[1] + transition >= self.high[0]:
            raise ConfigError(
                f"The lower edge {self.low} must stay {transition} Hz below the upper edge {self.high}: nothing would "
                "be left."
            )
        self.sample_rate, self.transition = sample_rate, transition

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        from torchaudio.functional import fftconvolve

        require_dims(x, (1,), "a waveform (T,)")
        low, high = (round(uniform(*edge, generator)) for edge in (self.low, self.high))
        taps = _band_filter(low, high, self.sample_rate, self.transition)
        if taps is None:
            return x
        delay = len(taps) // 2
        return fftconvolve(x, taps.to(x))[delay : delay + len(x)]


@functools.lru_cache(maxsize=256)
def _band_filter(low: int, high: int, sample_rate: int, transition: float) -> Tensor | None:
    """Odd, symmetric taps; None where the band is everything. An edge nearer to an end than half a step is none."""
    from scipy.signal import firwin, kaiserord

    half = sample_rate / 2
    edges = [edge for edge in (low, high) if transition / 2 < edge < half - transition / 2]
    if not edges:
        return None
    count, beta = kaiserord(STOPBAND, transition / half)
    starts_open = not math.isclose(edges[0], low)
    taps = firwin(count | 1, edges, window=("kaiser", beta), pass_zero=starts_open, fs=sample_rate)
    return torch.from_numpy(taps)
