"""Speed, pitch and voice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, Range, checked_range, integer, require_dims, uniform
from mmssl.augment.reverb import keep_level
from mmssl.errors import ConfigError

_FFT, _HOP = 1024, 256
_DENOMINATOR = 100
_FILTERS = 10


class SpeedPerturbation(Augmentation):
    """Play a clip faster or slower by resampling: tempo, pitch and timbre all move, and n samples become ceil(n / f).

    Source: Ko et al. 2015, "Audio Augmentation for Speech Recognition".

    Args:
        factors: one of them is drawn; 0.9, 1 and 1.1 in the paper. Each is taken to the nearest hundredth.

    Raises:
        ConfigError: no factors, or one out of [0.25, 4].
    """

    keeps_length = False

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1)) -> None:
        if not factors or not all(0.25 <= f <= 4 for f in factors):
            raise ConfigError(f"factors must be numbers from 0.25 to 4, at least one, got {list(factors)}.")
        self.factors = tuple(Fraction(round(f * _DENOMINATOR), _DENOMINATOR) for f in factors)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (ceil(T / f),)."""
        require_dims(x, (1,), "a waveform (T,)")
        return resampled(x, self.factors[integer(0, len(self.factors) - 1, generator)])


class PitchShift(Augmentation):
    """Another pitch and timbre at the same tempo and length, by a phase vocoder and resampling.

    Args:
        semitones: range of the shift.
    """

    def __init__(self, semitones: Range = (-4.0, 4.0)) -> None:
        self.semitones = checked_range("semitones", semitones, -24, 24)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        require_dims(x, (1,), "a waveform (T,)")
        return shift_pitch(x, 2 ** (uniform(*self.semitones, generator) / 12))


class SpeakerPerturbation(Augmentation):
    """Make a clip sound like another speaker: formants, fundamental frequency and a random equaliser; words stay.

    Source: Choi et al. 2021, "Neural Analysis and Synthesis: Reconstructing Speech from Self-Supervised
    Representations" (NANSY), section 2.1 and appendix B: a ratio is drawn from [1, highest] and inverted half of the
    time; the equaliser has a low shelf, eight peaks at log-spaced frequencies and a high shelf, gains in [-12, 12] dB,
    Q from 2 to 5. There, Praat moves formants and pitch; here the pitch is moved by a phase vocoder and resampling, and
    the spectral envelope, from the cepstrum, is then warped to where the formants should be. The paper's third ratio,
    of the width of the intonation, is left out. Length, alignment and level stay.

    Args:
        formant: highest ratio of the formants (1.4 in the paper); 1 leaves them.
        pitch: highest ratio of the fundamental frequency (2 in the paper); 1 leaves it.
        gain: largest gain of a filter, in dB; 0 for no equaliser.
        sample_rate: in Hz.

    Raises:
        ConfigError: a ratio out of [1, 2] or a negative gain.
    """

    def __init__(self, formant: float = 1.4, pitch: float = 2.0, gain: float = 12.0, sample_rate: int = 16000) -> None:
        if not (1 <= formant <= 2 and 1 <= pitch <= 2 and gain >= 0):
            raise ConfigError(
                f"formant and pitch must be ratios from 1 to 2, gain at least 0 dB, got {formant}, {pitch}, {gain}."
            )
        self.formant, self.pitch, self.gain, self.sample_rate = formant, pitch, gain, sample_rate

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) -> (T,)."""
        require_dims(x, (1,), "a waveform (T,)")
        formant, pitch = (_ratio(highest, generator) for highest in (self.formant, self.pitch))
        out = shift_pitch(x, pitch)
        # the shift has moved the envelope along with the pitch
        out = warp_envelope(out, formant / pitch, self.sample_rate)
        if self.gain:
            out = equalise(out, self.gain, self.sample_rate, generator)
        return keep_level(out, x)


def resampled(x: Tensor, factor: Fraction) -> Tensor:
    """A waveform (T,) read `factor` times as fast: (ceil(T / factor),), frequencies times `factor`, without aliases."""
    from torchaudio.functional import resample

    return resample(x, factor.numerator, factor.denominator)


def shift_pitch(x: Tensor, factor: float) -> Tensor:
    """All frequencies of a waveform (T,) times a factor, at the same length; the factor is taken to about 1/100."""
    from torchaudio.functional import phase_vocoder

    ratio = Fraction(factor).limit_denominator(_DENOMINATOR)
    if ratio == 1:
        return x.clone()
    spectrum = _stft(x)
    advance = torch.linspace(0, math.pi * _HOP, spectrum.shape[0], device=x.device)[:, None]
    stretched = phase_vocoder(spectrum, float(1 / ratio), advance)
    longer = torch.istft(stretched, _FFT, _HOP, window=_window(x), length=math.ceil(len(x) * ratio))
    out = resampled(longer, ratio)[: len(x)]
    return torch.nn.functional.pad(out, (0, len(x) - len(out)))


def warp_envelope(x: Tensor, factor: float, sample_rate: int = 16000) -> Tensor:
    """Move the formants of a waveform (T,) by a factor; its fine structure, and so its pitch, stays.

    The envelope of each frame is the exponential of its cepstrum below 2 ms, which tells voices up to 500 Hz apart from
    their formants. Frames of 64 ms at 16 kHz.
    """
    if abs(factor - 1) < 1e-3:
        return x
    spectrum = _stft(x)
    magnitude = (spectrum.abs() + 1e-6).log()
    cepstrum = torch.fft.irfft(magnitude, n=_FFT, dim=0)
    keep = max(2, round(0.002 * sample_rate))
    lifter = torch.zeros(_FFT, 1, dtype=x.dtype, device=x.device)
    lifter[:keep] = 1
    lifter[-keep + 1 :] = 1
    envelope = torch.fft.rfft(cepstrum * lifter, dim=0).real
    place = (torch.arange(len(envelope), device=x.device) / factor).clamp(max=len(envelope) - 1)
    below = place.floor().long().clamp(max=len(envelope) - 2)
    part = (place - below).to(x.dtype)[:, None]
    moved = envelope[below] * (1 - part) + envelope[below + 1] * part
    return torch.istft(spectrum * (moved - envelope).clamp(max=7).exp(), _FFT, _HOP, window=_window(x), length=len(x))


def equalise(x: Tensor, gain: float, sample_rate: int, generator: torch.Generator) -> Tensor:
    """A random parametric equaliser with ten filters from 60 Hz to 10 kHz (or 90 % of half the sample rate)."""
    from torchaudio.functional import bass_biquad, equalizer_biquad, treble_biquad

    top = min(10000.0, 0.45 * sample_rate)
    # these filters clip to [-1, 1]; ten gains of 12 dB stay far below that from here
    out = x.double() * 1e-7
    for index in range(_FILTERS):
        frequency = 60 * (top / 60) ** (index / (_FILTERS - 1))
        decibels = uniform(-gain, gain, generator)
        quality = 2 * (5 / 2) ** uniform(0, 1, generator)
        kind = {0: bass_biquad, _FILTERS - 1: treble_biquad}.get(index)
        if kind is None:
            out = equalizer_biquad(out, sample_rate, frequency, decibels, quality)
        else:
            out = kind(out, sample_rate, decibels, frequency, quality)
    return (out * 1e7).to(x)


def _ratio(highest: float, generator: torch.Generator) -> float:
    ratio = uniform(1, highest, generator)
    return 1 / ratio if uniform(0, 1, generator) < 0.5 else ratio


def _window(x: Tensor) -> Tensor:
    return torch.hann_window(_FFT, dtype=x.dtype, device=x.device)


def _stft(x: Tensor) -> Tensor:
    """(_FFT / 2 + 1, frames) complex; a clip shorter than a frame is followed by zeros, which `length` takes off."""
    return torch.stft(x, _FFT, _HOP, window=_window(x), center=True, pad_mode="constant", return_complex=True)
