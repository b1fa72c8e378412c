"""Tasks: interface, head and loss in one module, from the layers of a batch to its loss and predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.metrics.classification import confusion_matrix, macro_f1_from, uar_from, weighted_accuracy_from
from mmssl.metrics.regression import ccc, pearson, rmse
from mmssl.types import Layers, TaskOutput

if TYPE_CHECKING:
    from mmssl.downstream.heads import Head
    from mmssl.interfaces.base import Interface
    from mmssl.interfaces.fusion import Fusion

REGRESSION_LOSSES = ("mse", "ccc")
CCC_EPS = 1e-8


class UtteranceTask(nn.Module, ABC):
    """One answer per clip.

    Args:
        interface: layers of one stream -> one sequence; or a fusion, which takes the layers of several.
        head: one sequence -> scores.

    Attributes:
        monitor: the score of the development split that selects by default, as a key of a training history.

    Raises:
        ConfigError: the head does not take the width that the interface gives.
    """

    monitor: str

    def __init__(self, interface: Interface | Fusion, head: Head) -> None:
        super().__init__()
        if interface.output_size != head.input_size:
            raise ConfigError(
                f"The head takes features of width {head.input_size}, the interface gives {interface.output_size}: "
                "build the head with interface.output_size."
            )
        self.interface = interface
        self.head = head

    @property
    def affine(self) -> bool:
        """True where the mean over frames of each layer, given as one frame per clip, yields the same as the frames."""
        return self.interface.affine and self.head.affine_before_pooling

    @abstractmethod
    def check_targets(self, targets: Tensor) -> Tensor:
        """Return targets in the shape and type of the loss; raise InputError where they cannot be the task's."""

    @abstractmethod
    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Scalar, mean over the batch's clips."""

    @abstractmethod
    def answer(self, scores: Tensor) -> Tensor:
        """What `predict` returns, from the head's scores."""

    @abstractmethod
    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of a whole split from the head's scores and the targets."""

    def forward(self, layers: Layers | Mapping[str, Layers], targets: Tensor) -> TaskOutput:
        """Loss and scores of a batch.

        Args:
            layers: of B clips; stream -> layers where a fusion takes them.
            targets: (B,) class indices, or (B,) or (B, D) values.

        Raises:
            InputError: layers or targets do not fit the task.
        """
        scores = self.head(self.interface(layers))
        checked = self.check_targets(targets)
        if len(checked) != len(scores):
            raise InputError(f"There are {len(scores)} clips and {len(checked)} targets in the batch.")
        return TaskOutput(self.loss(scores, checked), len(scores), scores)

    @torch.no_grad()
    def predict(self, layers: Layers | Mapping[str, Layers]) -> Tensor:
        """Answers for a batch, in eval mode and without gradients: (B, C) probabilities or (B, D) values."""
        training = self.training
        self.eval()
        try:
            return self.answer(self.head(self.interface(layers)))
        finally:
            self.train(training)


class UtteranceClassification(UtteranceTask):
    """One class per clip, by cross entropy.

    The loss of a batch is the mean over its clips of w[y] times the cross entropy. It is not divided by the sum of
    the weights (as torch's weighted mean is), so that a clip counts the same in any batch.

    Args:
        interface: layers -> one sequence.
        head: one sequence -> logits.
        class_weights: (C,) fixed weights w, as `balanced_class_weights` gives; None for 1.

    Raises:
        ConfigError: the widths do not fit, or there is not one positive weight per class.
    """

    monitor = "dev_uar"
    class_weights: Tensor | None

    def __init__(
        self, interface: Interface | Fusion, head: Head, class_weights: Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__(interface, head)
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32).clone()
        if weights is not None and (weights.shape != (head.num_outputs,) or not bool((weights > 0).all())):
            raise ConfigError(f"class_weights must be {head.num_outputs} positive numbers, got {class_weights}.")
        # fixed by the training split and of no use afterwards: not part of the saved model
        self.register_buffer("class_weights", weights, persistent=False)

    def check_targets(self, targets: Tensor) -> Tensor:
        """(B,) int64 class indices in [0, C)."""
        classes = self.head.num_outputs
        if targets.dim() != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
            raise InputError(f"Targets must be (B,) integer class indices, got {targets.dtype} {tuple(targets.shape)}.")
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise InputError(
                f"Class indices must lie in 0 to {classes - 1}, got {int(targets.min())} to {int(targets.max())}."
            )
        return targets.long()

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Weighted cross entropy, mean over clips."""
        losses = F.cross_entropy(scores, targets, reduction="none")
        return losses.mean() if self.class_weights is None else (losses * self.class_weights[targets]).mean()

    def answer(self, scores: Tensor) -> Tensor:
        """(B, C) class probabilities."""
        return scores.softmax(-1)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """UAR, weighted accuracy and macro F1, each in [0, 1]."""
        counts = confusion_matrix(targets.cpu().numpy(), scores.argmax(-1).cpu().numpy(), self.head.num_outputs)
        return {
            "uar": float(uar_from(counts)),
            "wa": float(weighted_accuracy_from(counts)),
            "macro_f1": float(macro_f1_from(counts)),
        }


class UtteranceRegression(UtteranceTask):
    """One or more values per clip.

    Args:
        interface: layers -> one sequence.
        head: one sequence -> values.
        loss: "mse", or "ccc" for 1 - CCC over the clips of a batch (mean over the values; needs batches of many
            clips: for a batch of one the loss is 1, without a gradient).

    Raises:
        ConfigError: the widths do not fit, or there is no such loss.
    """

    monitor = "dev_ccc"

    def __init__(self, interface: Interface | Fusion, head: Head, loss: str = "mse") -> None:
        super().__init__(interface, head)
        if loss not in REGRESSION_LOSSES:
            raise ConfigError(f"The loss of a regression is {' or '.join(map(repr, REGRESSION_LOSSES))}, got {loss!r}.")
        self.loss_name = loss

    def check_targets(self, targets: Tensor) -> Tensor:
        """(B, D) float values, all finite."""
        values = targets[:, None] if targets.dim() == 1 else targets
        if values.dim() != 2 or values.shape[1] != self.head.num_outputs or not bool(torch.isfinite(values).all()):
            raise InputError(
                f"Targets must be finite values (B, {self.head.num_outputs}), or (B,) for one value per clip, "
                f"got {tuple(targets.shape)}{'' if bool(torch.isfinite(targets).all()) else ' with NaN or infinity'}."
            )
        return values.float()

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error, or 1 - CCC."""
        return F.mse_loss(scores, targets) if self.loss_name == "mse" else ccc_loss(scores, targets)

    def answer(self, scores: Tensor) -> Tensor:
        """(B, D) values, as they are."""
        return scores

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """CCC, Pearson's r and root mean squared error, each the mean over the D values."""
        predicted, truth = scores.cpu().double().numpy().T, self.check_targets(targets).cpu().double().numpy().T
        return {m.__name__: float(m(truth, predicted).mean()) for m in (ccc, pearson, rmse)}


def ccc_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - CCC over the batch, mean over columns of (B, D). Lin (1989), with variances divided by B; in [0, 2]."""
    mean_p, mean_t = prediction.mean(0), target.mean(0)
    centred_p, centred_t = prediction - mean_p, target - mean_t
    covariance = (centred_p * centred_t).mean(0)
    spread = centred_p.square().mean(0) + centred_t.square().mean(0) + (mean_p - mean_t).square()
    return (1 - 2 * covariance / (spread + CCC_EPS)).mean()


def balanced_class_weights(targets: Sequence[int] | Tensor, num_classes: int) -> Tensor:
    """Weights n / (C n_c) of C classes with n_c of the n clips each: every class then counts the same in sum.

    Args:
        targets: (n,) class indices of the training split.
        num_classes: C.

    Returns:
        (C,) float32, whose mean over the n clips is 1.

    Raises:
        InputError: a class has no clip, or an index is not in [0, C).
    """
    indices = torch.as_tensor(targets)
    if indices.dim() != 1 or len(indices) == 0 or not 0 <= int(indices.min()) <= int(indices.max()) < num_classes:
        raise InputError(f"Class weights need class indices in 0 to {num_classes - 1}, got {indices.tolist()[:10]}.")
    counts = torch.bincount(indices.long(), minlength=num_classes)
    if int(counts.min()) == 0:
        empty = (counts == 0).nonzero().flatten().tolist()
        raise InputError(
            f"Classes {empty} have no clip in the training split, so they have no weight. "
            "Train without class weights, or choose folds that hold every class."
        )
    return len(indices) / (num_classes * counts.float())
