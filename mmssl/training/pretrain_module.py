"""An objective as a Lightning module: optimizer, learning rate, teachers, and a log; all that is drawn follows a count.

Nothing random is kept between batches: dropout, masks, negatives and noise of batch k are drawn from generators seeded
with the run's seed and k. A run that is resumed from a checkpoint therefore goes on exactly as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from mmssl.errors import ConfigError
from mmssl.objectives.objective import Objective
from mmssl.random import isolated_rng
from mmssl.training.pretrain_batches import PretrainBatch
from mmssl.types import Inputs

DECAYS = ("linear", "cosine", "constant")


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int, decay: str) -> float:
    """Factor of the learning rate at a step: linear warm-up from 1 / warmup_steps to 1, then the decay.

    Args:
        step: optimizer steps done before.
        warmup_steps: of the warm-up; 0 for none.
        max_steps: where "linear" and "cosine" reach 0.
        decay: "linear" (wav2vec 2.0, HuBERT), "cosine" (data2vec, MAE) or "constant".
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    if decay == "linear":
        return 1 - share
    return (1 + math.cos(math.pi * share)) / 2 if decay == "cosine" else 1.0


class PretrainModule(LightningModule):
    """Trains an objective.

    Args:
        objective: what is trained.
        loader: from the number of the first batch to a loader of all that follow.
        learning_rate: the highest.
        warmup_steps, max_steps, decay: see `learning_rate_factor`.
        betas, eps, weight_decay: of AdamW; biases, norms and mask tokens are not decayed.
        accumulate: batches per optimizer step.
        seed: of all that is drawn.
        log_every: steps between two rows of the history.

    Attributes:
        history: one row per `log_every` steps, the means over their batches: step, learning_rate, grad_norm, clips,
            and the objective's logs.
        batches_done: batches seen so far.
        resumed_from: steps that were done before this process; 0 for a new run.
        failed: id -> why, of clips that turned out to be unreadable.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        objective: Objective,
        loader: Callable[[int], DataLoader[PretrainBatch]],
        learning_rate: float,
        max_steps: int,
        warmup_steps: int = 0,
        decay: str = "linear",
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        accumulate: int = 1,
        seed: int = 0,
        log_every: int = 10,
    ) -> None:
        super().__init__()
        if decay not in DECAYS:
            raise ConfigError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}.")
        if not learning_rate > 0 or weight_decay < 0 or not 0 <= warmup_steps <= max_steps:
            raise ConfigError(
                f"learning_rate must be above 0, weight_decay at least 0 and warmup_steps between 0 and max_steps, "
                f"got {learning_rate}, {weight_decay} and {warmup_steps} of {max_steps}."
            )
        self.objective, self._loader = objective, loader
        self.learning_rate, self.max_steps, self.warmup_steps, self.decay = (
            learning_rate,
            max_steps,
            warmup_steps,
            decay,
        )
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.accumulate, self.seed, self.log_every = accumulate, seed, log_every
        self.history: list[dict[str, float]] = []
        self.batches_done = 0
        self.resumed_from = 0
        self.failed: dict[str, str] = {}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._epoch = -1

    def train_dataloader(self) -> DataLoader[PretrainBatch]:
        """Batches from where the run stands."""
        return self._loader(self.batches_done)

    def transfer_batch_to_device(self, batch: PretrainBatch, device: torch.device, index: int) -> PretrainBatch:
        """Move the media of a batch; labels stay where they are."""
        inputs = batch.examples.inputs
        moved = Inputs(
            waveforms=None if inputs.waveforms is None else inputs.waveforms.to(device),
            video=None if inputs.video is None else inputs.video.to(device),
            images=None if inputs.images is None else inputs.images.to(device),
        )
        return replace(batch, examples=replace(batch.examples, inputs=moved))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW in two groups, and the learning rate per step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.warmup_steps, self.max_steps, self.decay)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: PretrainBatch, batch_index: int) -> Tensor:
        """Loss of a batch."""
        if batch.epoch != self._epoch:
            self._epoch = batch.epoch
            self.objective.before_epoch(batch.epoch)
        seed = (self.seed * 1_000_003 + batch.number) % 2**31
        with isolated_rng(seed):
            output = self.objective(batch.examples, self.global_step, torch.Generator().manual_seed(seed))
        self.batches_done = batch.number + 1
        self.failed |= batch.failed
        self._add({name: float(value) for name, value in output.logs.items()} | {"clips": len(batch.examples.ids)})
        return output.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradients, before they are clipped."""
        norms = [p.grad.detach().float().norm() for p in self.parameters() if p.grad is not None]
        norm = torch.stack(norms).norm()
        self._add({"grad_norm": float(norm), "learning_rate": float(optimizer.param_groups[0]["lr"])})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let teachers, centres and queues follow."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.objective.after_step(step)
        if (step + 1) % self.log_every == 0 or step + 1 == self.max_steps:
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
            self.history.append({"step": float(step + 1), **means})
            self._sums, self._counts = {}, {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the place in the data and the log."""
        checkpoint["pretrain"] = {
            "batches_done": self.batches_done,
            "history": self.history,
            "sums": self._sums,
            "counts": self._counts,
            "epoch": self._epoch,
            "seed": self.seed,
            "accumulate": self.accumulate,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the place in the data.

        Raises:
            ConfigError: the run that is resumed had another seed or accumulation.
        """
        state = checkpoint["pretrain"]
        for name in ("seed", "accumulate"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"The run to resume had {name} = {state[name]}, now it is {getattr(self, name)}: it could not "
                    "go on as it was. Keep the value, or start in another folder."
                )
        self.resumed_from = int(checkpoint["global_step"])
        self.batches_done, self.history = state["batches_done"], list(state["history"])
        self._sums, self._counts, self._epoch = dict(state["sums"]), dict(state["counts"]), state["epoch"]

    def _add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
