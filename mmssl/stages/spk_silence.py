"""Silence at both ends of clips, which tells no speaker from another but is what a short crop may consist of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mmssl.errors import ConfigError, DataError, MediaError
from mmssl.media.audio import load_audio
from mmssl.types import Clip

FRAME, MARGIN = 0.01, 0.05  # seconds
LOUD = 98  # percentile of the frames' energies; the loudest frame may be a click


def trimmed(clips: Sequence[Clip], below: float, on_error: str) -> tuple[list[Clip], dict[str, str]]:
    """Clips without the silence at their ends, see `speech_extent`; each is read once.

    Args:
        clips: with sound.
        below: in dB.
        on_error: "raise", or "skip" to leave out clips that cannot be read.

    Returns:
        The clips, and id -> reason of those that were left out.

    Raises:
        ConfigError: `below` is not above 0.
        MediaError: a file cannot be read, with "raise".
    """
    found: list[Clip] = []
    unreadable: dict[str, str] = {}
    for clip in clips:
        try:
            wave, rate = load_audio(str(clip.audio), start=clip.start, duration=clip.duration)
        except MediaError as error:
            if on_error == "raise":
                raise MediaError(f"{error} To leave such clips out and list them: data.on_error=skip.") from error
            unreadable[clip.id] = str(error)
            continue
        start, end = speech_extent(wave.numpy(), rate, below)
        found.append(replace(clip, start=clip.start + start, duration=end - start))
    return found, unreadable


def speech_extent(wave: npt.ArrayLike, sample_rate: int, below: float) -> tuple[float, float]:
    """Where a clip begins and ends to be loud.

    The energies of frames of 10 ms, each the mean of itself and its neighbours, are compared with their 98th
    percentile. Silence between two loud frames stays.

    Args:
        wave: (T,).
        sample_rate: in Hz.
        below: frames that are by more dB below the loud ones are silence.

    Returns:
        Start and end in seconds, 50 ms around the first and the last loud frame; the whole clip where it is shorter
        than a frame.

    Raises:
        ConfigError: `below` is not above 0.
        DataError: the clip is empty.
    """
    if not below > 0:
        raise ConfigError(f"speaker.trim_silence must be above 0 dB, or null for no cut, got {below}.")
    samples = np.asarray(wave, dtype=np.float64)
    if not len(samples):
        raise DataError("A clip without samples has no speech.")
    size = max(round(FRAME * sample_rate), 1)
    if len(samples) < size:
        return 0.0, len(samples) / sample_rate
    energies = _smoothed((samples[: len(samples) // size * size].reshape(-1, size) ** 2).mean(1))
    (loud,) = np.nonzero(energies >= np.percentile(energies, LOUD) * 10 ** (-below / 10))
    first, last = loud[0] * size / sample_rate, (loud[-1] + 1) * size / sample_rate
    return max(float(first) - MARGIN, 0.0), min(float(last) + MARGIN, len(samples) / sample_rate)


def _smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean of each value and its neighbours."""
    padded = np.pad(values, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3
