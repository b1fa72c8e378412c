"""VICReg: invariance of views, variance of each dimension, no covariance between them.

Source: Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
equations 1 to 6.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.objectives.losses.base import Loss, LossOutput, both_rows, require_rows
from mmssl.objectives.losses.gather import gather_rows


class VICReg(Loss):
    """invariance_weight * s + variance_weight * v + covariance_weight * c.

    As in the authors' code, the variance term is the mean of those of both views, the covariance term their sum.

    Args:
        invariance_weight, variance_weight, covariance_weight: 25, 25 and 1 in the paper.
        gather: statistics over the clips of all ranks.
    """

    compares_rows = True
    eps = 1e-4

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.weights = (invariance_weight, variance_weight, covariance_weight)
        self.gather = gather

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """The loss of two views (B, D); logs the three parts before their weights. See `Loss.forward`."""
        a, b = (x.float() for x in both_rows(prediction, target, where))
        if self.gather:
            (a, b), _ = gather_rows(a, b)
        require_rows(len(a), self)
        invariance = F.mse_loss(a, b)
        variance = (self._variance(a) + self._variance(b)) / 2
        covariance = _covariance(a) + _covariance(b)
        parts = (invariance, variance, covariance)
        loss = sum((w * part for w, part in zip(self.weights, parts, strict=True)), start=a.new_zeros(()))
        names = ("invariance", "variance", "covariance")
        return LossOutput(loss, len(a), {n: p.detach() for n, p in zip(names, parts, strict=True)})

    def _variance(self, x: Tensor) -> Tensor:
        """Mean over dimensions of how far the standard deviation is below 1."""
        return F.relu(1 - (x.var(dim=0) + self.eps).sqrt()).mean()


def _covariance(x: Tensor) -> Tensor:
    """Sum of squared covariances between different dimensions, over the number of dimensions."""
    centred = x - x.mean(0)
    matrix = centred.t() @ centred / (len(x) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / x.shape[1]
