"""Rooms: convolution with impulse responses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Range, checked_range, integer, require_dims, uniform
from mmssl.augment.noise import read_clips
from mmssl.errors import ConfigError


class Reverberation(Augmentation):
    """Convolve a clip with the impulse response of a room; length, alignment and level stay.

    The response's highest peak, the direct sound, comes where the clip was; the tail past the clip's end is cut off;
    the root mean square is that of the clip before. The peak may rise above 1 (see `LimitPeak`).

    Args:
        responses: impulse responses, as tensors (N,) at the clip's sample rate or as audio files; None makes them on
            the spot, see `synthetic_response`.
        t60: range of the reverberation time of those that are made, in seconds.
        direct: range of their direct-to-reverberant ratio, in dB.
        sample_rate: in Hz.

    Raises:
        ConfigError: a range that is none, or an empty list.
        DataError: a response is silent or no mono waveform.
        MediaError: a file cannot be read.
    """

    def __init__(
        self,
        responses: Sequence[Tensor | str] | None = None,
        t60: Range = (0.1, 0.6),
        direct: Range = (0.0, 12.0),
        sample_rate: int = 16000,
    ) -> None:
        self.responses = None if responses is None else read_clips(responses, sample_rate, "impulse response")
        self.t60, self.direct = checked_range("t60", t60, 0.01, 10), checked_range("direct", direct)
        self.sample_rate = sample_rate

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        from torchaudio.functional import fftconvolve

        require_dims(x, (1,), "a waveform (T,)")
        if self.responses is None:
            t60, direct = uniform(*self.t60, generator), uniform(*self.direct, generator)
            response = synthetic_response(t60, direct, self.sample_rate, generator)
        else:
            response = self.responses[integer(0, len(self.responses) - 1, generator)]
        peak = int(response.abs().argmax())
        wet = fftconvolve(x, response.to(x))[peak : peak + len(x)]
        return keep_level(wet, x)


def synthetic_response(t60: float, direct: float, sample_rate: int, generator: torch.Generator) -> Tensor:
    """An impulse of 1, then Gaussian noise that decays exponentially: the simplest model of a diffuse room.

    Source: Polack 1988; the decay is 60 dB over `t60` seconds.

    Args:
        t60: reverberation time in seconds.
        direct: ratio of the impulse's energy to that of all that follows, in dB.
        sample_rate: in Hz.
        generator: of the noise.

    Returns:
        (round(t60 * sample_rate) + 1,) float32.

    Raises:
        ConfigError: a time shorter than one sample.
    """
    size = round(t60 * sample_rate)
    if size < 1:
        raise ConfigError(f"t60 must be at least one sample, got {t60} s at {sample_rate} Hz.")
    time = torch.arange(1, size + 1, dtype=torch.float64) / sample_rate
    tail = torch.randn(size, dtype=torch.float64, generator=generator) * torch.exp(-math.log(1000) * time / t60)
    # the impulse must stay the highest peak, or the clip would be moved
    scale = min(10 ** (-direct / 20) / float(tail.norm()), 0.99 / float(tail.abs().max()))
    return torch.cat([torch.ones(1, dtype=torch.float64), tail * scale]).float()


def keep_level(x: Tensor, like: Tensor) -> Tensor:
    """A waveform scaled to the root mean square of another one; unchanged where it is silent."""
    power = x.double().square().mean().sqrt()
    return x * (like.double().square().mean().sqrt() / power).to(x) if float(power) > 0 else x
