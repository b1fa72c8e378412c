"""Fine-tuning as a Lightning module: schedule, selection by the development split, and a place to resume from.

Nothing random is kept between batches: dropout, drop path, dropped streams and mixup of batch k are drawn from
generators seeded with the run's seed and k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmssl.errors import ConfigError
from mmssl.random import isolated_rng, mix
from mmssl.training.blocks import layer_factors
from mmssl.training.finetune_model import FineTuneModel
from mmssl.training.finetune_settings import FineTuneSettings
from mmssl.training.mixing import draw_mix
from mmssl.training.module import DivergedError
from mmssl.training.pretrain_batches import PretrainBatch
from mmssl.training.selection import better
from mmssl.types import Inputs

_MIXUP = 1  # a stream of random numbers beside that of the model


class FineTuneModule(LightningModule):
    """Trains a model and judges it on the development split.

    Args:
        model: trained in place.
        loader: from the number of the first batch to a loader of all that follow.
        targets: clip id -> target.
        judge: from the model to a row of development scores; called at every evaluation.
        settings: how it is trained.
        signature: name of the run's clips and settings, which a run that is resumed must have.
        keep: called with the model where an evaluation is the best so far.

    Attributes:
        history: one row per evaluation: step, train_loss, learning_rate and what `judge` gives.
        best: the best row; None before the first.
        resumed_from: steps that were done before this process.
    """

    def __init__(
        self,
        model: FineTuneModel,
        loader: Callable[[int], DataLoader[PretrainBatch]],
        targets: Mapping[str, Tensor],
        judge: Callable[[FineTuneModel], dict[str, float]],
        settings: FineTuneSettings,
        signature: str,
        keep: Callable[[FineTuneModel], None],
    ) -> None:
        super().__init__()
        self.model = model
        self._loader, self._targets, self._judge, self._keep = loader, targets, judge, keep
        self.settings, self.signature = settings, signature
        self.monitor = settings.monitor or model.monitor
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.batches_done = self.resumed_from = 0
        self._losses: list[float] = []

    def train_dataloader(self) -> DataLoader[PretrainBatch]:
        """Batches from where the run stands."""
        return self._loader(self.batches_done)

    def transfer_batch_to_device(self, batch: PretrainBatch, device: torch.device, index: int) -> PretrainBatch:
        """Leave the batch where it is: `training_step` moves its media."""
        return batch

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW in groups, and the learning rate per step."""
        settings = self.settings
        groups = parameter_groups(self.model, settings)
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: PretrainBatch, batch_index: int) -> Tensor:
        """Loss of a batch."""
        inputs = moved(batch.examples.inputs, self.device)
        targets = torch.stack([self._targets[name] for name in batch.examples.ids]).to(self.device)
        mixed, seed = None, self.settings.seed
        if self.settings.mixup:
            order, weight = draw_mix(len(targets), self.settings.mixup, mix(seed, batch.number, _MIXUP))
            mixed = (order.to(self.device), weight)
        with isolated_rng(mix(seed, batch.number)):
            loss = self.model.mixed_loss(inputs, targets, mixed, self.settings.label_smoothing)
        if not bool(torch.isfinite(loss.detach())):
            raise DivergedError(
                f"The loss became {float(loss)} at step {self.global_step} with learning rate "
                f"{self.settings.learning_rate:g}: lower it, or lengthen the warm-up."
            )
        self.batches_done = batch.number + 1
        self._losses.append(float(loss.detach()))
        return loss

    def evaluate_if_due(self) -> bool:
        """After a step: if an evaluation is due, write a row of the history and keep the best model."""
        step = self.global_step
        if step % self.settings.interval and step != self.settings.max_steps:
            return False
        rate = self.settings.learning_rate * self.settings.factor(step - 1)
        row = {"step": float(step), "train_loss": sum(self._losses) / len(self._losses), "learning_rate": rate}
        with isolated_rng(self.settings.seed):
            row |= self._judge(self.model)
        if self.monitor not in row:
            allowed = ", ".join(name for name in row if name.startswith("dev_"))
            raise ConfigError(f"monitor names what selects on the development split: {allowed}; got {self.monitor!r}.")
        self._losses = []
        self.history.append(row)
        if self.best is None or better(row, self.best, self.monitor):
            self.best = row
            self._keep(self.model)
        return True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the place in the data and the log."""
        checkpoint["finetune"] = {
            "batches_done": self.batches_done,
            "history": self.history,
            "best": self.best,
            "signature": self.signature,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the place in the data.

        Raises:
            ConfigError: the run that is resumed had other clips or settings.
        """
        state = checkpoint["finetune"]
        if state["signature"] != self.signature:
            raise ConfigError(
                "The run to resume had other clips, targets or settings, so that it could not go on as it was. Keep "
                "them, or start in another folder."
            )
        self.resumed_from = int(checkpoint["global_step"])
        self.batches_done, self.history, self.best = state["batches_done"], list(state["history"]), state["best"]


def parameter_groups(model: FineTuneModel, settings: FineTuneSettings) -> list[dict[str, object]]:
    """Groups for AdamW: parameters that share a learning rate and a weight decay; vectors are not decayed.

    Raises:
        ConfigError: `layer_decay` for an upstream without blocks, or nothing to train.
    """
    factors = {} if settings.layer_decay == 1 else layer_factors(model.upstream, settings.layer_decay)
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = factors.get(name.removeprefix("upstream."), 1.0) if name.startswith("upstream.") else 1.0
            found.setdefault((factor, parameter.dim() > 1), []).append(parameter)
    if not found:
        raise ConfigError("There is no parameter to train.")
    return [
        {
            "params": found[factor, matrix],
            "lr": settings.learning_rate * factor,
            "weight_decay": settings.weight_decay if matrix else 0.0,
        }
        for factor, matrix in sorted(found, reverse=True)
    ]


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The same inputs on a device."""
    return Inputs(
        waveforms=None if inputs.waveforms is None else inputs.waveforms.to(device),
        video=None if inputs.video is None else inputs.video.to(device),
        images=None if inputs.images is None else inputs.images.to(device),
    )


def as_targets(targets: Mapping[str, int | float | Sequence[float]]) -> dict[str, Tensor]:
    """Targets as tensors: whole numbers stay int64, all else is float32."""
    found = {name: torch.as_tensor(value) for name, value in targets.items()}
    return {name: value.float() if value.is_floating_point() else value.long() for name, value in found.items()}
