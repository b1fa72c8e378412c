"""An objective as a Lightning module: optimizer, learning rate, teachers, and a log; all that is drawn follows a count.

Nothing random is kept between batches: dropout, masks, negatives and noise of batch k are drawn from generators seeded
with the run's seed and k. A run that is resumed from a checkpoint therefore goes on exactly as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.objective import Objective
from mmssl.random import isolated_rng, mix
from mmssl.training.blocks import block_depths
from mmssl.training.pretrain_batches import PretrainBatch
from mmssl.training.pretrain_optim import Optimization, parameter_groups
from mmssl.training.pretrain_optim import learning_rate_factor as learning_rate_factor
from mmssl.training.pretrain_parallel import gathered, spread_parameters
from mmssl.types import Inputs


class PretrainModule(LightningModule):
    """Trains an objective.

    Args:
        objective: what is trained.
        loader: from the number of the first batch, how many are wanted, this process's rank and the number of processes
            to its share of them.
        settings: of the optimizer and its learning rate.
        seed: of all that is drawn.
        log_every: steps between two rows of the history.

    Attributes:
        history: one row per `log_every` steps, the means over their batches and over processes: step, learning_rate
            (the highest of all groups), grad_norm, clips (of all processes), the objective's logs, and what callbacks
            `note`; with precision "16-mixed" also loss_scale, and skipped_steps, the number of steps of the run so far
            that were not taken because gradients had overflowed; left_out_batches, where there are any.
        batches_done: batches seen so far.
        resumed_from: steps that were done before this process; 0 for a new run.
        skipped_steps: of the run so far; they count as steps of the schedule.
        left_out: batches of the run so far that others took the place of, see `mmssl.training.pretrain_joint`.
        failed: id -> why, of clips that turned out to be unreadable.
    """

    def __init__(
        self,
        objective: Objective,
        loader: Callable[[int, int, int, int], Iterable[PretrainBatch]],
        settings: Optimization,
        seed: int = 0,
        log_every: int = 10,
    ) -> None:
        super().__init__()
        self.objective, self._loader, self.settings = objective, loader, settings
        self.seed, self.log_every = seed, log_every
        self.history: list[dict[str, float]] = []
        self.batches_done = self.resumed_from = self.skipped_steps = self.left_out = 0
        self.failed: dict[str, str] = {}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._notes: dict[str, float] = {}
        self._epoch = -1
        self._stepped = False

    def note(self, name: str, value: float) -> None:
        """Put a scalar into the row of the history that belongs to the present step.

        Between two rows it goes to the next one, where the last value of a name counts.
        """
        if self.history and self.history[-1]["step"] == self.global_step:
            self.history[-1][name] = float(value)
        else:
            self._notes[name] = float(value)

    def configure_model(self) -> None:
        """With FSDP, spread the parameters over the processes."""
        if self.device_mesh is not None:
            upstream = self.objective.encoder.upstream
            blocks = [upstream.get_submodule(name) for name in block_depths(upstream)]
            spread_parameters(self.objective, self.device_mesh["data_parallel"], blocks)

    def train_dataloader(self) -> Iterable[PretrainBatch]:
        """Batches from where the run stands, this process's share of each."""
        count = (self.settings.max_steps - self.global_step) * self.settings.accumulate
        return self._loader(self.batches_done, count, self.trainer.global_rank, self.trainer.world_size)

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
        """AdamW in groups, and the learning rate per step."""
        settings = self.settings
        groups = parameter_groups(self.objective, settings)
        # in one pass over each parameter, except where Lightning unscales gradients before they are clipped
        fused = None if self.trainer.precision == "16-mixed" else True
        moments: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps}
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, **moments, fused=fused)
        optimizer.register_step_post_hook(self._note_step)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: PretrainBatch, batch_index: int) -> Tensor:
        """Loss of a batch, or this process's share of it."""
        if batch.epoch != self._epoch:
            self._epoch = batch.epoch
            self.objective.before_epoch(batch.epoch)
        seed = (self.seed * 1_000_003 + batch.number) % 2**31
        if self.trainer.global_rank:
            seed = mix(seed, self.trainer.global_rank)
        with isolated_rng(seed):
            output = self.objective(batch.examples, self.global_step, torch.Generator().manual_seed(seed))
        self.batches_done = batch.number + 1
        self.left_out += batch.left_out
        self.failed |= batch.failed
        self._add({name: float(value) for name, value in output.logs.items()} | {"clips": len(batch.examples.ids)})
        return output.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradients, and clip them.

        Raises:
            InputError: it is not finite, and there is no loss scale that would come down for it.
        """
        trained = [p for p in self.parameters() if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
        scaler = self._scaler()
        self._add({"learning_rate": max(float(group["lr"]) for group in optimizer.param_groups)})
        if scaler is not None:
            self._add({"loss_scale": float(scaler.get_scale())})
        if math.isfinite(norm):
            self._add({"grad_norm": norm})
            if self.settings.grad_clip is not None:
                nn.utils.clip_grads_with_norm_(trained, self.settings.grad_clip, total)
        elif scaler is None:
            raise InputError(
                f"The gradient is {norm} at step {self.global_step}, though the loss is finite: lower the learning "
                "rate, or look for a square root or logarithm of 0. The last checkpoint is sound."
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let teachers, centres and queues follow, unless the loss scale has had the step left out."""
        step, self._stepped = self.global_step, False
        super().optimizer_step(*args, **kwargs)
        if self._stepped:
            self.objective.after_step(step)
        else:
            self.objective.after_skipped_step()
            self.skipped_steps += 1
        if (step + 1) % self.log_every == 0 or step + 1 == self.settings.max_steps:
            row = {"step": float(step + 1), **self._means()}
            if self._scaler() is not None:
                row["skipped_steps"] = float(self.skipped_steps)
            if self.left_out:
                row["left_out_batches"] = float(self.left_out)
            self.history.append({**row, **self._notes})
            self._notes = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the place in the data and the log."""
        parts = gathered((self._sums, self._counts))
        checkpoint["pretrain"] = {
            "batches_done": self.batches_done,
            "history": self.history,
            "sums": [sums for sums, _ in parts],
            "counts": [counts for _, counts in parts],
            "notes": self._notes,
            "skipped_steps": self.skipped_steps,
            "left_out": self.left_out,
            "epoch": self._epoch,
            "seed": self.seed,
            "accumulate": self.settings.accumulate,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the place in the data.

        Raises:
            ConfigError: the run that is resumed had another seed or accumulation.
        """
        state = checkpoint["pretrain"]
        for name, value in (("seed", self.seed), ("accumulate", self.settings.accumulate)):
            if state[name] != value:
                raise ConfigError(
                    f"The run to resume had {name} = {state[name]}, now it is {value}: it could not "
                    "go on as it was. Keep the value, or start in another folder."
                )
        self.resumed_from = int(checkpoint["global_step"])
        self.batches_done, self.history = state["batches_done"], list(state["history"])
        self.skipped_steps, self._notes = state["skipped_steps"], dict(state["notes"])
        # checkpoints that were written before batches were counted lack it
        self.left_out, self._epoch = state.get("left_out", 0), state["epoch"]
        # with another number of processes than before, a row that was begun is finished without what was in it
        sums, counts = state["sums"], state["counts"]
        if len(sums) == self.trainer.world_size:
            self._sums = dict(sums[self.trainer.global_rank])
            self._counts = dict(counts[self.trainer.global_rank])

    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _note_step(self, *args: Any) -> None:
        """Called by the optimizer when it has really stepped."""
        self._stepped = True

    def _add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def _means(self) -> dict[str, float]:
        """Means since the last row, over processes too; clips are those of all processes."""
        parts = gathered((self._sums, self._counts, self.failed))
        means = _joined([part[0] for part in parts], [part[1] for part in parts])
        for _, _, failed in parts:
            self.failed |= failed
        self._sums, self._counts = {}, {}
        return means


def _joined(sums: Sequence[dict[str, float]], counts: Sequence[dict[str, int]]) -> dict[str, float]:
    names = {name: None for part in sums for name in part}
    means = {
        name: sum(part.get(name, 0.0) for part in sums) / sum(part.get(name, 0) for part in counts) for name in names
    }
    if "clips" in means:
        means["clips"] *= len(sums)
    return means
