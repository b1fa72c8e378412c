"""Train many heads at once on pooled features, with the results of `mmssl.training.fit`, head by head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.probing.groups import Clips, Head, make_groups
from mmssl.probing.plan import Plan, plan_of
from mmssl.probing.race import Race, Settings
from mmssl.probing.stack import Shape
from mmssl.random import isolated_rng
from mmssl.training.batches import TensorBatches
from mmssl.training.fit import FitResult

CPU_BYTES = 96 << 20
GPU_BYTES = 8 << 30
COPIES = 5
"""Copies of a head's values: weights, gradient, two moments, best weights."""


@dataclass(frozen=True, eq=False)
class Run:
    """A head to train.

    Attributes:
        build: returns a new task; what it draws comes from `seed`. It sets statistics and class weights itself.
        train: (n,) indices of the training clips.
        dev: (m,) indices of the development clips; never those of the test split.
        learning_rate: constant.
        weight_decay: of the optimizer.
        seed: of the initial weights and the order of the clips.
    """

    build: Callable[[], nn.Module]
    train: Tensor
    dev: Tensor
    learning_rate: float
    weight_decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What became of a run.

    Attributes:
        task: the run's task with its best weights, in eval mode, on the CPU.
        fit: as `mmssl.training.fit.fit` gives it; None where the loss stopped being finite.
    """

    task: nn.Module
    fit: FitResult | None


def fit_many(
    runs: Sequence[Run],
    clips: TensorBatches,
    *,
    max_steps: int = 400,
    batch_size: int = 32,
    optimizer: str = "adam",
    grad_clip: float | None = 1.0,
    eval_every: int | None = None,
    patience: int | None = 5,
    monitor: str | None = None,
    device: str = "cpu",
    max_bytes: int | None = None,
) -> Iterator[Trained]:
    """Train heads together; each result is that of `mmssl.training.fit.fit` for that head, but for rounding.

    Runs of the same clips and seed that follow each other share their batches. A run stops by its own development
    clips; what has stopped is taken out of the computation. Runs go through in the order given, as many at a time as
    `max_bytes` allow, and are yielded as soon as their lot is done, so that a caller who keeps the best one only needs
    memory for one lot.

    Args:
        runs: what to train. The tasks must have a plan (`mmssl.probing.plan.plan_of`), with one shape for all.
        clips: features and targets of all clips, one frame per layer; runs point into them.
        max_steps: most optimizer steps.
        batch_size: clips per step.
        optimizer: "adam" or "adamw".
        grad_clip: largest norm of a head's gradient; None for no limit.
        eval_every: steps between evaluations; None for a twentieth of max_steps.
        patience: evaluations without a better one after which a head stops; None for never.
        monitor: column of the history that selects; None for the task's own.
        device: "cpu", "cuda" or "cuda:1".
        max_bytes: for the heads trained at a time; None for 96 MiB on a CPU (what stays near its caches) and 8 GiB on
            an accelerator. At least one head is trained, whatever it takes.

    Raises:
        ConfigError: a setting is unknown or out of range, or a task cannot be stacked.
        InputError: a split is empty, an index is no clip, or clips and targets do not fit the task.
    """
    settings = Settings(max_steps, batch_size, optimizer, grad_clip, eval_every, patience, monitor)
    if max_bytes is None:
        max_bytes = CPU_BYTES if device == "cpu" else GPU_BYTES
    done = 0
    prepared: tuple[Clips, Shape, Plan] | None = None
    while done < len(runs):
        first = _head(runs[done], len(clips))
        if (
            prepared is None
            or prepared[2].shape != first.plan.shape
            or not set(first.plan.layers) <= set(prepared[0].layers)
        ):
            prepared = _prepare(runs, done, first.plan, clips, device)
        table, shape, plan = prepared
        at_once = max(1, int(max_bytes) // (COPIES * shape.row * table.table.element_size()))
        heads = [first]
        for run in runs[done + 1 : done + at_once]:
            head = _head(run, len(clips))
            if head.plan.shape != plan.shape or not set(head.plan.layers) <= set(table.layers):
                break
            heads.append(head)
        groups = make_groups(heads)
        with torch.no_grad():
            yield from _outcomes(Race(heads, groups, table, shape, settings).run(), heads)
        done += len(heads)


def _outcomes(fits: Sequence[FitResult | None], heads: Sequence[Head]) -> Iterator[Trained]:
    for head, fit in zip(heads, fits, strict=True):
        if fit is not None:
            head.task.load_state_dict(fit.state_dict)
        yield Trained(head.task.cpu().eval(), fit)


def _head(run: Run, count: int) -> Head:
    """Build a run's task under its seed, and check the run.

    Raises:
        ConfigError: the task has no plan, or a rate is out of range.
        InputError: a split is empty or points outside the clips.
    """
    with isolated_rng(run.seed):
        task = run.build()
    plan = plan_of(task)
    if plan is None:
        raise ConfigError(
            f"Heads of this {type(task).__name__} cannot be stacked (see mmssl.probing.plan): train them one by one "
            "with mmssl.training.sweep."
        )
    if not run.learning_rate > 0 or run.weight_decay < 0:
        raise ConfigError(
            f"learning_rate must be above 0 and weight_decay at least 0; got {run.learning_rate} and "
            f"{run.weight_decay}."
        )
    for name, part in (("train", run.train), ("dev", run.dev)):
        if len(part) == 0 or int(part.min()) < 0 or int(part.max()) >= count:
            raise InputError(
                f"The {name} part of a run must hold one or more of the {count} clips, got {len(part)} indices"
                + (f" from {int(part.min())} to {int(part.max())}." if len(part) else ".")
            )
    return Head(task, plan, run.train, run.dev, run.learning_rate, run.weight_decay, run.seed)


def _prepare(
    runs: Sequence[Run], start: int, plan: Plan, clips: TensorBatches, device: str
) -> tuple[Clips, Shape, Plan]:
    """The table of the layers that this and the following runs of one shape read."""
    layers = set(plan.layers)
    seen: set[int] = set()
    if not plan.joined:
        for run in runs[start:]:
            # runs of one fold, seed and rate share their builder: ask each builder once
            if id(run.build) in seen:
                continue
            seen.add(id(run.build))
            with isolated_rng(run.seed):
                other = plan_of(run.build())
            if other is None or other.shape != plan.shape:
                break
            layers |= set(other.layers)
    used = plan.layers if plan.joined else tuple(sorted(layers))
    table = Clips(clips, plan, used, device)
    if table.table.shape[1] != plan.input_size:
        raise InputError(
            f"The features are {table.table.shape[1]} wide, the heads take {plan.input_size}: give the statistics that "
            "the task's interface expects."
        )
    shape = Shape(table.depth, plan.input_size, plan.hidden_size, plan.num_outputs, plan.relu, plan.loss)
    return table, shape, plan
