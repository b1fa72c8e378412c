"""Clips with any number of labels each, such as the sounds of AudioSet."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmssl.downstream.tasks import UtteranceTask
from mmssl.errors import InputError
from mmssl.metrics.multilabel import LabelRanking, mean_over_labels


class UtteranceMultiLabel(UtteranceTask):
    """Which of C labels a clip has, each by itself, by binary cross entropy.

    The loss is the mean over clips and labels, as AV-SUPERB's on AudioSet-20K (Tseng et al., ICASSP 2024).

    Attributes:
        monitor: mean average precision on the development clips.
    """

    monitor = "dev_map"

    def check_targets(self, targets: Tensor) -> Tensor:
        """(B, C) float, 1 where a clip has a label, else 0."""
        labels = self.head.num_outputs
        if targets.dim() != 2 or targets.shape[1] != labels:
            raise InputError(f"Targets must be (B, {labels}), one column for each label, got {tuple(targets.shape)}.")
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise InputError("Targets must be 1 where a clip has a label, and 0 where it has not.")
        return targets.float()

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy, mean over clips and labels."""
        return F.binary_cross_entropy_with_logits(scores, targets)

    def answer(self, scores: Tensor) -> Tensor:
        """(B, C) probability of each label."""
        return scores.sigmoid()

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """ "map" and "auc", means over the labels that some clip has, each in [0, 1]; 0 where no clip has any."""
        ranking = LabelRanking(scores.cpu().numpy(), self.check_targets(targets).cpu().numpy())
        found = {"map": mean_over_labels(ranking.average_precision()), "auc": mean_over_labels(ranking.roc_auc())}
        return {name: value if value == value else 0.0 for name, value in found.items()}
