"""The training loop of a lot of stacked heads: steps, evaluations, early stopping, taking out what has stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.probing.groups import Clips, Group, Head, class_weights_of, padded
from mmssl.probing.plan import flat_weights, state_from
from mmssl.probing.scoring import split_metrics
from mmssl.probing.stack import RowOptimizer, Shape, Stack
from mmssl.training.fit import FitResult
from mmssl.training.selection import better

CLIPS_AT_ONCE = 512
REPACK_SHARE = 0.6
OPTIMIZERS = ("adam", "adamw")


@dataclass(frozen=True)
class Settings:
    """How all heads are trained, as `mmssl.training.fit.fit` takes it.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    max_steps: int
    batch_size: int
    optimizer: str
    grad_clip: float | None
    eval_every: int | None
    patience: int | None
    monitor: str | None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "eval_every", "grad_clip", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}.")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"The optimizer is {' or '.join(map(repr, OPTIMIZERS))}, got {self.optimizer!r}.")

    @property
    def every(self) -> int:
        """Steps between two evaluations."""
        return min(self.max_steps, self.eval_every or max(1, self.max_steps // 20))


@dataclass
class _Record:
    """What is kept of a head while it runs."""

    history: list[dict[str, Any]]
    best: dict[str, Any] | None = None
    since_best: int = 0
    state: str = "running"


class Race:
    """A lot of heads, trained from the first step to the last.

    Args:
        heads: of one shape.
        groups: of these heads, in their order.
        clips: their features.
        shape: of the heads.
        settings: of the training.
    """

    def __init__(
        self, heads: Sequence[Head], groups: Sequence[Group], clips: Clips, shape: Shape, settings: Settings
    ) -> None:
        self.heads, self.clips, self.settings = heads, clips, settings
        self.groups = list(groups)
        self.monitor = settings.monitor or str(getattr(heads[0].task, "monitor", "dev_loss"))
        self.records = [_Record([]) for _ in heads]
        # numbers of the heads on the grid, group by group; a head may fill several places of its group
        per_group = max(len(group.heads) for group in groups)
        self.grid = [group.heads + group.heads[:1] * (per_group - len(group.heads)) for group in self.groups]
        rows = [flat_weights(head.task, head.plan, clips.layers) for head in heads]
        device, dtype = clips.table.device, clips.table.dtype
        values = torch.zeros(len(heads), shape.row, dtype=dtype, device=device)
        values[:, : sum(shape.sizes)] = torch.stack([row for row, _ in rows]).to(device, dtype)
        fixed = torch.stack([weights for _, weights in rows]).to(device, dtype)
        order = self._places()
        self.best_values = values.clone()
        self.stack = Stack(shape, values[order], fixed[order], self._class_weights(shape))
        rates = [heads[h].learning_rate for h in order]
        decays = [heads[h].weight_decay for h in order]
        self.optimizer = RowOptimizer(self.stack, rates, decays, settings.optimizer)
        self.statistics = clips.statistics(self.groups)
        self.targets = self._targets(shape)

    def run(self) -> list[FitResult | None]:
        """Train; returns a result per head, None for those whose loss stopped being finite."""
        losses: list[Tensor] = []
        settings = self.settings
        for step in range(1, settings.max_steps + 1):
            index, present = self._batch()
            batch = self.clips.gather(index, self.statistics)
            losses.append(self.stack.step(batch, self.targets[index], present))
            if settings.grad_clip is not None:
                self.stack.clip_gradients(settings.grad_clip)
            self.optimizer.step()
            if step % settings.every == 0 or step == settings.max_steps:
                self._evaluate(step, torch.stack(losses))
                losses = []
                if not any(record.state == "running" for record in self.records):
                    break
                self._repack()
        return [self._result(number) for number in range(len(self.heads))]

    def _places(self) -> list[int]:
        return [head for row in self.grid for head in row]

    def _class_weights(self, shape: Shape) -> Tensor | None:
        if shape.loss != "cross_entropy":
            return None
        return class_weights_of(self.groups, shape.num_outputs, self.clips.table)

    def _targets(self, shape: Shape) -> Tensor:
        """Targets of all clips as the loss takes them, checked by the task itself."""
        checked = self.heads[0].task.check_targets(self.clips.targets)  # type: ignore[operator]
        return checked if shape.loss == "cross_entropy" else checked.to(self.clips.table.dtype)

    def _batch(self) -> tuple[Tensor, Tensor]:
        size = self.settings.batch_size
        rows = [group.first.train[group.order.next(size)] for group in self.groups]
        index, present = padded(rows, self.clips.table.device)
        return index, present.to(self.clips.table.dtype)

    def _evaluate(self, step: int, losses: Tensor) -> None:
        """Add a row to the history of every running head; keep its weights if it is the best, stop it if due."""
        train_losses, finite = losses.mean(0).tolist(), losses.isfinite().all(0).tolist()
        rows = self._dev_rows()
        improved: list[tuple[int, int]] = []
        for place, number in enumerate(self._places()):
            record = self.records[number]
            if record.state != "running" or (record.history and record.history[-1]["step"] == step):
                continue
            if not finite[place] or not rows[place]["dev_loss"] < float("inf"):
                record.state = "diverged"
                continue
            row = {"step": step, "train_loss": train_losses[place], **rows[place]}
            record.history.append(row)
            if self.monitor not in row:
                allowed = ", ".join(name for name in row if name.startswith("dev_"))
                raise ConfigError(
                    f"monitor names what selects on the development split: {allowed}; got {self.monitor!r}."
                )
            if record.best is None or better(row, record.best, self.monitor):
                record.best, record.since_best = row, 0
                improved.append((number, place))
                continue
            record.since_best += 1
            if self.settings.patience is not None and record.since_best >= self.settings.patience:
                record.state = "stopped"
        if improved:
            numbers, places = zip(*improved, strict=True)
            self.best_values[list(numbers)] = self.stack.values[list(places)]

    def _dev_rows(self) -> list[dict[str, float]]:
        """Loss and metrics of every place of the grid on its own development clips."""
        index, present = padded([group.first.dev for group in self.groups], self.clips.table.device)
        scores = [
            self.stack.scores(self.clips.gather(part, self.statistics)) for part in index.split(CLIPS_AT_ONCE, dim=1)
        ]
        together = torch.cat(scores, 1)
        there = present.to(together.dtype)
        targets = self.targets[index]
        losses = self.stack.losses(together, targets, there).tolist()
        metrics = split_metrics(together, targets, present > 0, self.stack.shape.loss == "cross_entropy")
        return [
            {"dev_loss": loss, **{f"dev_{name}": float(values[place]) for name, values in metrics.items()}}
            for place, loss in enumerate(losses)
        ]

    def _repack(self) -> None:
        """Take stopped heads off the grid once enough places stand idle."""
        alive = [[h for h in dict.fromkeys(row) if self.records[h].state == "running"] for row in self.grid]
        kept = [g for g, row in enumerate(alive) if row]
        width = max(len(alive[g]) for g in kept)
        if len(kept) * width > REPACK_SHARE * len(self.stack):
            return
        per_group = len(self.grid[0])
        rows, grid = [], []
        for g in kept:
            # filled up to a rectangle; a filling place is trained for nothing and never looked at
            filled = alive[g] + alive[g][:1] * (width - len(alive[g]))
            grid.append(filled)
            rows += [g * per_group + self.grid[g].index(h) for h in filled]
        old = self.stack
        self.groups, self.grid = [self.groups[g] for g in kept], grid
        self.stack = Stack(old.shape, old.values[rows], old.fixed[rows], self._class_weights(old.shape))
        self.optimizer.keep(self.stack, rows)
        self.statistics = self.clips.statistics(self.groups)

    def _result(self, number: int) -> FitResult | None:
        record, head = self.records[number], self.heads[number]
        if record.state == "diverged" or record.best is None:
            return None
        return FitResult(
            history=record.history,
            monitor=self.monitor,
            best_step=record.best["step"],
            best_score=record.best[self.monitor],
            state_dict=state_from(self.best_values[number], head.task, head.plan, self.stack.shape.layers),
            stopped_early=record.history[-1]["step"] < self.settings.max_steps,
        )
