"""Does this sound belong to this picture? Cross entropy on true and false pairs.

Sources: Arandjelovic and Zisserman 2017, "Look, Listen and Learn"; Owens and Efros 2018, "Audio-Visual Scene Analysis
with Self-Supervised Multisensory Features".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import InputError
from mmssl.objectives.losses.base import Loss, LossOutput, select_rows


class MatchCrossEntropy(Loss):
    """Cross entropy of a yes-or-no answer: one logit (of "yes"), or two (of "no" and "yes")."""

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean over pairs; logs "accuracy", "positives" (the share of true pairs) and "ln_n" = ln 2.

        Args:
            prediction: logits (B,), (B, 1) or (B, 2).
            target: (B,), 1 or True for a true pair, 0 or False for a false one.
            where: (B,) bool; None for all pairs.
            generator: not used.
        """
        if prediction.dim() == 1:
            prediction = prediction[:, None]
        if target is None or prediction.dim() != 2 or prediction.shape[1] not in (1, 2) or target.dim() != 1:
            given = "none" if target is None else tuple(target.shape)
            raise InputError(
                f"Matching takes logits (B,), (B, 1) or (B, 2) and labels (B,), got {tuple(prediction.shape)}, {given}."
            )
        logits = select_rows(prediction, where).float()
        labels = select_rows(target, where, like=0)
        # two logits decide by their difference: the softmax over both is the sigmoid of it
        answer = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        truth = labels.to(answer.dtype)
        if ((truth != 0) & (truth != 1)).any():
            raise InputError("Labels of matching must be 0 or 1.")
        hit = ((answer > 0) == (truth > 0.5)).float().mean()
        logs = {"accuracy": hit, "positives": truth.mean(), "ln_n": torch.tensor(math.log(2.0))}
        return LossOutput(F.binary_cross_entropy_with_logits(answer, truth), len(answer), logs)
