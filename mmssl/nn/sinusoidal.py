"""Fixed positions of a transformer over frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.packed import Packed


class SinusoidalPositions(nn.Module):
    """Sines at even and cosines at odd features, of wavelengths from 2 pi to 10000 * 2 pi frames.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5. Each clip counts from 0.

    Args:
        hidden_size: width of the frames.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def table(self, size: int) -> Tensor:
        """Positions (size, hidden_size) float32, computed in float64."""
        feature = torch.arange(self.hidden_size)
        exponent = 2 * (feature // 2).double() / self.hidden_size
        angle = torch.arange(size, dtype=torch.float64)[:, None] / 10000**exponent
        return torch.where(feature % 2 == 0, angle.sin(), angle.cos()).float()

    def forward(self, frames: Packed) -> Tensor:
        """What is added to packed frames (N, D)."""
        table = self.table(max(frames.lengths)).to(frames.data)
        return Packed.of([table[:size] for size in frames.lengths]).data
