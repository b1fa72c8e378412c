"""Masked cross entropy: which cluster does a hidden frame belong to?

Source: Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units",
equation 1 (the sum over masked frames, here a mean); BEST-RQ (Chiu et al. 2022) and AV-HuBERT use the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.losses.base import Loss, LossOutput, select_rows


class MaskedCrossEntropy(Loss):
    """Cross entropy of logits against class indices.

    The target may hold several indices per frame (several codebooks): the logits are then (B, T, G, C), and the loss is
    the mean over frames and codebooks.

    Args:
        label_smoothing: share of the probability spread over all classes, in [0, 1).

    Raises:
        ConfigError: `label_smoothing` out of range.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean cross entropy in nats of the selected frames; logs "accuracy" and "ln_n", the loss of a blind guess.

        Args:
            prediction: logits (B, T, C), (B, C), or (B, T, G, C).
            target: int64 of the same shape without C.
            where: as `Loss.forward`.
            generator: not used.
        """
        if target is None or target.shape != prediction.shape[:-1] or target.is_floating_point():
            given = "none" if target is None else f"{target.dtype} {tuple(target.shape)}"
            raise InputError(
                f"The target of logits {tuple(prediction.shape)} must be integers {tuple(prediction.shape[:-1])}, "
                f"got {given}."
            )
        extra = 0 if where is None else target.dim() - where.dim()
        logits = select_rows(prediction, where, like=1 + extra)
        labels = select_rows(target, where, like=extra)
        classes = logits.shape[-1]
        count = len(logits)
        logits, labels = logits.reshape(-1, classes).float(), labels.reshape(-1)
        if int(labels.max()) >= classes or int(labels.min()) < 0:
            raise InputError(
                f"Class indices must be in 0 ... {classes - 1}, got {int(labels.min())} ... {int(labels.max())}: "
                "the head has another number of classes than the labels."
            )
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(-1) == labels).float().mean()
        return LossOutput(loss, count, {"accuracy": accuracy, "ln_n": torch.tensor(float(classes)).log()})
