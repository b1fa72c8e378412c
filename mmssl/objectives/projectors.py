"""Heads on clips: from one vector of a view to the space in which views are compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError


class MLP(nn.Module):
    """Linear layers with batch norm and ReLU between them: the projector of SimCLR and BYOL, the predictor of BYOL.

    Batch norm takes its statistics from all rows that come together, so rows must be clips, or frames without padding.

    Args:
        sizes: widths from the input to the output, at least two.
        batch_norm: after each layer but the last.
        last_norm: batch norm after the last layer too, without scale and shift.

    Raises:
        ConfigError: fewer than two widths, or one below 1.
    """

    def __init__(self, sizes: tuple[int, ...], batch_norm: bool = True, last_norm: bool = False) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ConfigError(f"An MLP needs at least two widths, all positive, got {tuple(sizes)}.")
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            last = index == len(sizes) - 2
            layers.append(nn.Linear(inputs, outputs, bias=last or not batch_norm))
            if not last:
                layers += [nn.BatchNorm1d(outputs)] if batch_norm else []
                layers.append(nn.ReLU())
            elif last_norm:
                layers.append(nn.BatchNorm1d(outputs, affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D').

        Raises:
            InputError: a single row in training, which has no variance.
        """
        rows = x.reshape(-1, x.shape[-1])
        _require_several_rows(rows, [layer for layer in self.layers if isinstance(layer, nn.BatchNorm1d)])
        return self.layers(rows).unflatten(0, x.shape[:-1])


class DinoHead(nn.Module):
    """An MLP with GELU, a bottleneck of unit length, and a linear layer whose rows have unit length.

    The last layer is weight-normalised with its gains fixed at 1, so that a logit is a cosine.

    Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (DINO), appendix C; layers
    are drawn as in the authors' code (truncated normal, deviation .02; the last one as any linear layer). The length
    of the last layer's rows does not change a logit, but sets how far Adam's steps turn them: rows of the length that
    a normal distribution of deviation 1 gives would be turned 16 times less.

    Args:
        input_size: D.
        num_outputs: K, 65536 in the paper.
        hidden_size: 2048 in the paper.
        bottleneck_size: 256 in the paper.
        batch_norm: after the two hidden layers. The paper's heads have none (it is an option of the authors' code);
            without it, all clips of a small encoder start with nearly the same outputs.

    Attributes:
        frozen: while it is true, the last layer gets a gradient of zero.

    Raises:
        ConfigError: fewer than 2 outputs.
    """

    frozen: Tensor

    def __init__(
        self,
        input_size: int,
        num_outputs: int = 65536,
        hidden_size: int = 2048,
        bottleneck_size: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_outputs < 2:
            raise ConfigError(f"DINO needs at least 2 outputs, got {num_outputs}.")
        layers: list[nn.Module] = []
        for inputs in (input_size, hidden_size):
            norm = [nn.BatchNorm1d(hidden_size)] if batch_norm else []
            layers += [nn.Linear(inputs, hidden_size), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_size, bottleneck_size))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(torch.empty(num_outputs, bottleneck_size))
        nn.init.uniform_(self.directions, -(bottleneck_size**-0.5), bottleneck_size**-0.5)
        # a buffer, because a run that is resumed in the first epoch must go on as it was
        self.register_buffer("frozen", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) in [-1, 1]."""
        directions: Tensor = self.directions
        if bool(self.frozen):
            # zero, not none: distributed training waits for a gradient of every parameter
            directions = directions.detach() + 0 * directions
        norms = [layer for layer in self.mlp if isinstance(layer, nn.BatchNorm1d)]
        _require_several_rows(x.reshape(-1, x.shape[-1]), norms)
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(directions, dim=-1).to(x.dtype).t()


def _require_several_rows(rows: Tensor, norms: Sequence[nn.Module]) -> None:
    # asked of the norms themselves: a teacher's use the batch though the rest of it is in eval mode
    if len(rows) < 2 and any(norm.training for norm in norms):
        raise InputError(
            f"The batch norm of a projector needs at least 2 clips in a batch, got {len(rows)}: use larger batches."
        )
