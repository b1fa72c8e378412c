"""A sweep over learning rates, selected on the development split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmssl.errors import ConfigError, InputError
from mmssl.random import isolated_rng
from mmssl.training.batches import TensorBatches
from mmssl.training.fit import FitResult, Split, fit
from mmssl.training.selection import better

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep gives.

    Attributes:
        best: the run that was selected.
        learning_rate: its learning rate.
        task: the task with its weights, in eval mode.
        table: one row per rate, in the order given: learning_rate, diverged, and, where it did not diverge, best_step
            and the history's columns at that step (train_loss, dev_loss, dev_uar ...).
    """

    best: FitResult
    learning_rate: float
    task: nn.Module
    table: list[dict[str, Any]]


def sweep(
    build_task: Callable[[], nn.Module],
    train: Split,
    dev: Split,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    progress: bool = False,
    description: str = "",
    **settings: Any,
) -> SweepResult:
    """Train a task once per learning rate and keep the run that the development split likes best.

    All runs start from the same weights, drawn from the seed, and see the clips in the same order. The highest
    monitored score wins; at a tie the lower dev loss, then the rate that comes first. A rate at which the loss stops
    being finite is marked as diverged and not chosen.

    Args:
        build_task: returns a new task each time it is called.
        train: as `fit` takes it; pooled clips are read into memory once for all rates.
        dev: the same; never the test split.
        learning_rates: which to try.
        seed: of the initial weights, the order of the clips and dropout.
        progress: show a bar per run on a terminal, and one line per run in a log.
        description: what the progress display calls the sweep.
        **settings: the other arguments of `fit`, for all runs.

    Raises:
        ConfigError: no learning rate, one that is given twice, or a wrong setting.
        InputError: a split is empty or does not fit the task, or every rate diverged.
    """
    from mmssl.training.module import DivergedError

    if not learning_rates or len(set(learning_rates)) != len(learning_rates):
        raise ConfigError(f"A sweep takes one or more different learning rates, got {list(learning_rates)}.")
    train, dev = TensorBatches.of(train) or train, TensorBatches.of(dev) or dev
    bars = progress and sys.stderr.isatty()
    chosen: tuple[FitResult, float, nn.Module] | None = None
    table: list[dict[str, Any]] = []
    for rate in learning_rates:
        with isolated_rng(seed):
            task = build_task()
        label = f"{description} lr {rate:g}".strip()
        try:
            run = fit(task, train, dev, learning_rate=rate, seed=seed, progress=bars, description=label, **settings)
        except DivergedError as error:
            table.append({"learning_rate": rate, "diverged": True})
            _say(progress, f"{label}: diverged. {error}")
            continue
        _say(progress and not bars, f"{label}: {run.monitor} {run.best_score:.4f} at step {run.best_step}")
        row = {key: value for key, value in run.best.items() if key != "step"}
        table.append({"learning_rate": rate, "diverged": False, "best_step": run.best_step, **row})
        if chosen is None or better(run.best, chosen[0].best, run.monitor):
            chosen = (run, rate, task)
    if chosen is None:
        raise InputError(
            f"Training diverged at every learning rate ({', '.join(f'{rate:g}' for rate in learning_rates)}). "
            "Try lower ones; if they fail too, look for NaN or infinity in the features."
        )
    return SweepResult(*chosen, table=table)


def _say(wanted: bool, text: str) -> None:
    if wanted:
        print(text, file=sys.stderr, flush=True)
