"""Silence at both ends of clips, which tells no speaker from another but is what a short crop may consist of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.errors import ConfigError, DataError

FRAME, MARGIN = 0.01, 0.05  # seconds
LOUD = 98  # percentile of the frames' energies; the loudest frame may be a click


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
        raise ConfigError(f"trim_silence must be above 0 dB, or null for no cut, got {below}.")
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
