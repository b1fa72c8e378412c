"""Crops and shifts along time, the first dimension of waveforms, spectrograms and videos."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.augment.base import Augmentation, integer, require_dims
from mmssl.errors import ConfigError

_KIND = "a waveform (T,), a spectrogram (T, mels) or a video (T, C, H, W)"


class TemporalCrop(Augmentation):
    """A stretch of a clip from a random place; a clip that is not longer stays whole.

    Args:
        size: steps that are left, at least 1.
        multiple: the stretch starts at multiples of so many steps, such as an encoder's hop.

    Raises:
        ConfigError: a value below 1.
    """

    keeps_length = False

    def __init__(self, size: int, multiple: int = 1) -> None:
        if size < 1 or multiple < 1:
            raise ConfigError(f"size and multiple must be at least 1, got {size} and {multiple}.")
        self.size, self.multiple = size, multiple

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, ...) -> (min(T, size), ...)."""
        require_dims(x, (1, 2, 4), _KIND)
        start = integer(0, max(len(x) - self.size, 0) // self.multiple, generator) * self.multiple
        return x[start : start + self.size]


class TemporalShift(Augmentation):
    """A clip moved earlier or later; what leaves one end is lost, not brought back at the other.

    Args:
        max_shift: most steps, at least 0; a clip always keeps at least one of its own.
        fill: what stands where nothing is left.

    Raises:
        ConfigError: a negative shift.
    """

    def __init__(self, max_shift: int, fill: float = 0.0) -> None:
        if max_shift < 0:
            raise ConfigError(f"max_shift must be at least 0, got {max_shift}.")
        self.max_shift, self.fill = max_shift, fill

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, ...) -> (T, ...)."""
        require_dims(x, (1, 2, 4), _KIND)
        most = min(self.max_shift, len(x) - 1)
        shift = integer(-most, most, generator)
        out = torch.full_like(x, self.fill)
        kept = len(x) - abs(shift)
        out[max(shift, 0) : max(shift, 0) + kept] = x[max(-shift, 0) : max(-shift, 0) + kept]
        return out
