"""Barlow Twins: bring the cross-correlation of two views to the identity.

Source: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", equations 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.objectives.losses.base import Loss, LossOutput, both_rows, require_positive, require_rows
from mmssl.objectives.losses.gather import gather_rows

_EPS = 1e-5  # of the authors' batch norm


class BarlowTwins(Loss):
    """sum (1 - C_ii)^2 + weight * sum over i != j of C_ij^2, C the correlations over the batch.

    Args:
        redundancy_weight: weight of the second sum.
        gather: correlations over the clips of all ranks.

    Raises:
        ConfigError: a weight that is not positive.
    """

    compares_rows = True

    def __init__(self, redundancy_weight: float = 5e-3, gather: bool = False) -> None:
        super().__init__()
        require_positive(redundancy_weight=redundancy_weight)
        self.redundancy_weight, self.gather = redundancy_weight, gather

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """The loss of two views (B, D); logs both sums. See `Loss.forward`."""
        a, b = (x.float() for x in both_rows(prediction, target, where))
        if self.gather:
            (a, b), _ = gather_rows(a, b)
        require_rows(len(a), self)
        correlation = _standardized(a).t() @ _standardized(b) / len(a)
        diagonal = correlation.diagonal()
        on = (diagonal - 1).square().sum()
        off = correlation.square().sum() - diagonal.square().sum()
        logs = {"invariance": on.detach(), "redundancy": off.detach()}
        return LossOutput(on + self.redundancy_weight * off, len(a), logs)


def _standardized(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) / (variance + _EPS).sqrt()
