"""Clips of unequal length laid end to end: no padding is computed, so that none can reach a feature.

What treats each frame on its own (linear layers, layer norms) runs on the whole; what looks along time (convolutions,
attention, norms over time) runs clip by clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.lengths import pad
from mmssl.types import Padded


@dataclass(frozen=True)
class Packed:
    """Sequences laid end to end.

    Attributes:
        data: (N, ...), the steps of all clips, N the sum of `lengths`.
        lengths: steps of each clip, in order.
    """

    data: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Tensor]) -> Packed:
        """Lay sequences (T_b, ...) end to end."""
        data = sequences[0] if len(sequences) == 1 else torch.cat(list(sequences))
        return cls(data, tuple(len(s) for s in sequences))

    @classmethod
    def from_padded(cls, padded: Padded) -> Packed:
        """Take the valid steps of a padded batch (B, T, ...)."""
        return cls.of(padded.unpad())

    def split(self) -> tuple[Tensor, ...]:
        """One view (T_b, ...) per clip."""
        return (self.data,) if len(self.lengths) == 1 else self.data.split(list(self.lengths))

    def pad(self) -> Padded:
        """A batch (B, max T, ...) with zeros past each length."""
        return Padded(*pad(self.split()))

    def replace(self, data: Tensor) -> Packed:
        """Other data (N, ...) of the same clips."""
        return Packed(data, self.lengths)


def runs_without_grad(*tensors: Tensor) -> bool:
    """Whether nothing computed from these tensors will be differentiated, so that it may be computed in place."""
    return not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors)


def runs_on_fast_path(*tensors: Tensor) -> bool:
    """Whether the CPU kernels apply that write in place: float32, on the CPU, not differentiated."""
    return runs_without_grad(*tensors) and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def gelu_of_own(x: Tensor) -> Tensor:
    """Exact GELU of a tensor that the caller owns and no longer needs: in place where no gradient is asked for."""
    return torch.ops.aten.gelu_(x) if runs_without_grad(x) else F.gelu(x)


def add_to_own(own: Tensor, x: Tensor) -> Tensor:
    """Sum of a tensor that the caller owns and no longer needs, and another: in place where no gradient is wanted."""
    return own.add_(x) if own.dtype == x.dtype and runs_without_grad(own, x) else own + x
