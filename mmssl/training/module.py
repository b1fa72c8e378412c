"""A task as a Lightning module, which keeps the history and the best weights of a run."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.training.batches import Batch
from mmssl.training.selection import better
from mmssl.types import TaskOutput

OPTIMIZERS = ("adam", "adamw")


class DivergedError(InputError):
    """The loss is not a finite number any more."""


class TaskModule(LightningModule):
    """Trains a task and judges it on the development split after every evaluation.

    An evaluation is better than another if its monitored score is, or if the scores are equal and its dev loss is
    lower. The weights of the best evaluation are kept in memory.

    Args:
        task: `forward(layers, targets) -> TaskOutput` and `metrics(scores, targets) -> dict`, as
            `mmssl.downstream.tasks.UtteranceTask` has them.
        learning_rate: of the optimizer, constant.
        optimizer: "adam" or "adamw".
        weight_decay: of the optimizer.
        monitor: which entry of a history row selects, for example "dev_uar".
        patience: evaluations in a row without a better one after which training stops; None for never.

    Attributes:
        history: one row per evaluation: step, train_loss (mean since the last evaluation), dev_loss and the task's
            metrics with "dev_" before their names.
        best: the best row, None before the first evaluation.
        best_state: its weights.

    Raises:
        ConfigError: the optimizer is unknown, or a number is out of range.
    """

    def __init__(
        self,
        task: nn.Module,
        learning_rate: float,
        optimizer: str,
        weight_decay: float,
        monitor: str,
        patience: int | None,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"The optimizer is {' or '.join(map(repr, OPTIMIZERS))}, got {optimizer!r}.")
        if not learning_rate > 0 or weight_decay < 0 or (patience is not None and patience < 1):
            raise ConfigError(
                "learning_rate must be above 0, weight_decay at least 0 and patience at least 1 (or None); "
                f"got {learning_rate}, {weight_decay} and {patience}."
            )
        self.task = task
        self.learning_rate = learning_rate
        self.optimizer_name = optimizer
        self.weight_decay = weight_decay
        self.monitor = monitor
        self.patience = patience
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_state: dict[str, Tensor] = {}
        self._since_best = 0
        self._losses: list[Tensor] = []
        self._dev: list[tuple[TaskOutput, Tensor]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of all parameters that ask for gradients."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError(f"{type(self.task).__name__} has no parameter to train.")
        build = torch.optim.Adam if self.optimizer_name == "adam" else torch.optim.AdamW
        # one fused call per step: for small heads the unfused steps cost as much as the forward pass
        return build(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of a batch."""
        loss = self.task(*batch).loss
        detached = loss.detach()
        if not bool(torch.isfinite(detached)):
            raise self._diverged("training", float(detached))
        self._losses.append(detached)
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Keep the scores of a batch of the development split."""
        self._dev.append((self.task(*batch), batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Write a row of the history, keep the weights if it is the best, stop if patience has run out."""
        outputs = [output for output, _ in self._dev]
        dev_loss = sum(float(o.loss) * o.count for o in outputs) / sum(o.count for o in outputs)
        if not dev_loss < float("inf"):
            raise self._diverged("development", dev_loss)
        scores = torch.cat([o.predictions for o in outputs])
        metrics = self.task.metrics(scores, torch.cat([targets for _, targets in self._dev]))  # type: ignore[operator]
        row = {"step": self.global_step, "train_loss": float(torch.stack(self._losses).mean()), "dev_loss": dev_loss}
        row |= {f"dev_{name}": value for name, value in metrics.items()}
        self._dev, self._losses = [], []
        self.history.append(row)
        self._select(row)

    def _select(self, row: dict[str, Any]) -> None:
        if self.monitor not in row:
            allowed = ", ".join(name for name in row if name.startswith("dev_"))
            raise ConfigError(f"monitor names what selects on the development split: {allowed}; got {self.monitor!r}.")
        if self.best is None or better(row, self.best, self.monitor):
            self.best, self._since_best = row, 0
            self.best_state = {k: v.detach().cpu().clone() for k, v in self.task.state_dict().items()}
            return
        self._since_best += 1
        if self.patience is not None and self._since_best >= self.patience:
            self.trainer.should_stop = True

    def _diverged(self, split: str, loss: float) -> DivergedError:
        return DivergedError(
            f"The {split} loss became {loss} at step {self.global_step} with learning rate {self.learning_rate:g}. "
            "Lower the learning rate; if a low one fails too, look for NaN or infinity in the features."
        )
