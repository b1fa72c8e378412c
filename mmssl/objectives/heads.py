"""Heads: from what the encoder gives to the space of a target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError


class CosineLogits(nn.Module):
    """Cosine of a projection with one learnt vector per class, over a temperature.

    Source: Hsu et al. 2021, "HuBERT", equation 3.

    Args:
        input_size: D.
        num_classes: C.
        size: of the projection and the vectors (256 in the base model).
        temperature: 0.1 in the paper.

    Raises:
        ConfigError: fewer than 2 classes or a temperature that is not positive.
    """

    def __init__(self, input_size: int, num_classes: int, size: int = 256, temperature: float = 0.1) -> None:
        super().__init__()
        if num_classes < 2 or not temperature > 0:
            raise ConfigError(
                f"CosineLogits needs at least 2 classes and a temperature greater than 0, "
                f"got {num_classes} and {temperature}."
            )
        self.projection = nn.Linear(input_size, size)
        self.classes = nn.Parameter(torch.empty(num_classes, size).uniform_())
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> logits (..., C) in [-1 / temperature, 1 / temperature]."""
        projected = F.normalize(self.projection(x), dim=-1)
        return projected @ F.normalize(self.classes, dim=-1).t() / self.temperature


class GroupedLogits(nn.Module):
    """Linear logits for each of G codebooks (BEST-RQ).

    Args:
        input_size: D.
        num_entries: C.
        num_codebooks: G.
    """

    def __init__(self, input_size: int, num_entries: int, num_codebooks: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, num_codebooks * num_entries)
        self.num_codebooks = num_codebooks

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., G, C)."""
        return self.linear(x).unflatten(-1, (self.num_codebooks, -1))


class FrameDecoder(nn.Module):
    """Dense, GELU, layer norm, dense: from hidden states back to frames (TERA, Mockingjay).

    Args:
        input_size: D.
        output_size: F.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(input_size, input_size), nn.LayerNorm(input_size)
        self.output = nn.Linear(input_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., F)."""
        return self.output(self.norm(F.gelu(self.dense(x))))
