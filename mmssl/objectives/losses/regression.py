"""Regression of a target: mean absolute, mean squared and smooth absolute error.

Sources: TERA (Liu et al. 2021) uses L1, MAE (He et al. 2022) MSE, data2vec (Baevski et al. 2022, equation 2) the smooth
one.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.objectives.losses.base import Loss, LossOutput, both_rows


class Regression(Loss):
    """Mean over the selected rows and their values of an elementwise error; logs the error of predicting the mean.

    "baseline" is the error of a constant prediction, the mean of the batch's targets for each dimension: a loss that
    does not fall below it has learnt nothing.
    """

    @abstractmethod
    def error(self, difference: Tensor) -> Tensor:
        """Elementwise error of prediction minus target."""

    def mean_error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean of the error over all values of rows (N, D)."""
        return self.error(prediction - target).mean()

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean error of selected rows of one shape (B, D) or (B, T, D); see `Loss.forward`."""
        guess, truth = (x.float() for x in both_rows(prediction, target, where))
        with torch.no_grad():
            baseline = self.mean_error(truth.mean(0).expand_as(truth), truth)
        return LossOutput(self.mean_error(guess, truth), len(guess), {"baseline": baseline})


class L1(Regression):
    """Mean absolute error."""

    def error(self, difference: Tensor) -> Tensor:
        """|d|."""
        return difference.abs()


class MSE(Regression):
    """Mean squared error.

    Args:
        scale_by_size: divide by sqrt(D) instead of averaging over the D values, that is D times the mean over sqrt(D),
            as data2vec's published speech configuration does.
    """

    def __init__(self, scale_by_size: bool = False) -> None:
        super().__init__()
        self.scale_by_size = scale_by_size

    def error(self, difference: Tensor) -> Tensor:
        """Squared, times sqrt(D) if so asked."""
        squared = difference.square()
        return squared * difference.shape[-1] ** 0.5 if self.scale_by_size else squared

    def mean_error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """See `Regression.mean_error`; without the tensors in between."""
        loss = F.mse_loss(prediction, target)
        return loss * prediction.shape[-1] ** 0.5 if self.scale_by_size else loss


class SmoothL1(Regression):
    """Squared error d^2 / (2 beta) below `beta`, absolute error |d| - beta / 2 above.

    Args:
        beta: where the one passes into the other; greater than 0.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not beta > 0:
            raise ConfigError(f"beta must be greater than 0, got {beta}: use L1 for 0.")
        self.beta = beta

    def error(self, difference: Tensor) -> Tensor:
        """Elementwise smooth absolute error."""
        size = difference.abs()
        return torch.where(size < self.beta, size.square() / (2 * self.beta), size - self.beta / 2)
