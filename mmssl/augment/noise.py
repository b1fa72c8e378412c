"""Noise at a true signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Range, checked_range, integer, require_dims, uniform
from mmssl.errors import ConfigError, DataError


class AdditiveNoise(Augmentation):
    """Noise added at a ratio: 10 log10 of the clip's mean square over that of the noise just where it was added.

    A noise clip that is shorter than the clip is repeated; it starts at a random place. A silent clip stays silent, and
    where the piece of noise that was drawn is silent nothing is added.

    Args:
        snr: range in dB.
        noises: noise clips, as tensors (N,) at the clip's sample rate or as audio files; None makes coloured noise on
            the spot.
        exponent: range of the exponent of coloured noise, whose power falls as 1 / f ** exponent: 0 white, 1 pink, 2
            brown.
        sample_rate: to which files are brought, in Hz.

    Raises:
        ConfigError: a range that is none, or an empty list of noises.
        DataError: a noise clip is silent or no mono waveform.
        MediaError: a file cannot be read.
    """

    def __init__(
        self,
        snr: Range = (0.0, 20.0),
        noises: Sequence[Tensor | str] | None = None,
        exponent: Range = (0.0, 2.0),
        sample_rate: int = 16000,
    ) -> None:
        self.snr, self.exponent = checked_range("snr", snr), checked_range("exponent", exponent, -4, 4)
        self.noises = None if noises is None else read_clips(noises, sample_rate, "noise")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        from torchaudio.functional import add_noise

        require_dims(x, (1,), "a waveform (T,)")
        snr = uniform(*self.snr, generator)
        noise = self._draw(len(x), generator).to(x)
        if not bool(x.any()) or not bool(noise.any()):
            return x.clone()
        return add_noise(x.double(), noise.double(), torch.tensor(snr, dtype=torch.float64, device=x.device)).to(x)

    def _draw(self, size: int, generator: torch.Generator) -> Tensor:
        if self.noises is None:
            return coloured_noise(size, uniform(*self.exponent, generator), generator)
        noise = self.noises[integer(0, len(self.noises) - 1, generator)]
        if len(noise) >= size:
            start = integer(0, len(noise) - size, generator)
            return noise[start : start + size]
        start = integer(0, len(noise) - 1, generator)
        return noise.repeat(size // len(noise) + 2)[start : start + size]


def coloured_noise(size: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise (size,) of mean square 1 whose power falls as 1 / f ** exponent, without a constant part.

    Source: Timmer and Koenig 1995, "On generating power law noise": a Gaussian spectrum, scaled.
    """
    white = torch.randn(size, dtype=torch.float64, generator=generator)
    if size < 2:
        return white.sign().float()
    spectrum = torch.fft.rfft(white)
    index = torch.arange(len(spectrum), dtype=torch.float64)
    scale = torch.where(index > 0, index.clamp(min=1) ** (-exponent / 2), 0.0)
    noise = torch.fft.irfft(spectrum * scale, n=size)
    return (noise / noise.square().mean().sqrt()).float()


def read_clips(clips: Sequence[Tensor | str], sample_rate: int, what: str) -> list[Tensor]:
    """Waveforms (N,) of a list of tensors and files.

    Raises:
        ConfigError: an empty list.
        DataError: a clip is silent, not finite or no mono waveform.
        MediaError: a file cannot be read.
    """
    from mmssl.media.audio import load_audio

    if not clips:
        raise ConfigError(f"The list of {what} clips is empty: give at least one, or null for clips made on the spot.")
    found = []
    for number, clip in enumerate(clips):
        wave = clip if isinstance(clip, Tensor) else load_audio(str(clip), sample_rate=sample_rate)[0]
        if wave.dim() != 1 or not bool(wave.any()) or not bool(torch.isfinite(wave).all()):
            name = clip if isinstance(clip, str) else f"number {number}"
            raise DataError(f"The {what} clip {name} must be a mono waveform (N,), finite and not silent.")
        found.append(wave.detach().cpu().float())
    return found
