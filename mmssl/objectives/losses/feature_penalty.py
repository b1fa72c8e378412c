"""Penalty on the size of features.

Source: the mean of squares of the front end's outputs, with weight 10 in the published configurations of wav2vec 2.0
and HuBERT (Baevski et al. 2020; Hsu et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.objectives.losses.base import Loss, LossOutput, select_rows


class FeaturePenalty(Loss):
    """Mean of squares of the selected frames."""

    needs_target = False

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean of squares of (B, T, D) or (B, D) where selected; see `Loss.forward`."""
        rows = select_rows(prediction, where).float()
        return LossOutput(rows.square().mean(), len(rows))
