"""A sweep over learning rates as one batched computation, with the results of `mmssl.training.sweep.sweep`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmssl.errors import ConfigError, InputError
from mmssl.probing.fit_many import Run, fit_many
from mmssl.probing.plan import plan_of
from mmssl.random import isolated_rng
from mmssl.training.batches import TensorBatches
from mmssl.training.fit import FitResult, Split
from mmssl.training.selection import better
from mmssl.training.sweep import LEARNING_RATES, SweepResult, sweep
from mmssl.types import Layers

ENGINES = ("batched", "lightning")


def sweep_heads(
    build_task: Callable[[], nn.Module],
    train: Split,
    dev: Split,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decay: float = 0.0,
    seed: int = 0,
    engine: str = "batched",
    progress: bool = False,
    description: str = "",
    **settings: Any,
) -> SweepResult:
    """Train a task once per learning rate and keep the run that the development split likes best.

    The same as `mmssl.training.sweep.sweep`, all rates at once where the clips have one frame per layer and the task
    has a plan (`mmssl.probing.plan`); otherwise, and with the engine "lightning", it is that function.

    Args:
        build_task: returns a new task each time it is called.
        train: as `mmssl.training.fit.fit` takes it.
        dev: the same; never the test split.
        learning_rates: which to try.
        weight_decay: of the optimizer.
        seed: of the initial weights and the order of the clips.
        engine: "batched" or "lightning".
        progress: print what comes out of each rate.
        description: what the progress display calls the sweep.
        **settings: the other arguments of `fit_many` (or of `fit`), for all runs.

    Raises:
        ConfigError: no learning rate, one that is given twice, or a wrong setting.
        InputError: a split is empty or does not fit the task, or every rate diverged.
    """
    if engine not in ENGINES:
        raise ConfigError(f"The engine is {' or '.join(map(repr, ENGINES))}, got {engine!r}.")
    if not learning_rates or len(set(learning_rates)) != len(learning_rates):
        raise ConfigError(f"A sweep takes one or more different learning rates, got {list(learning_rates)}.")
    one, other = TensorBatches.of(train), TensorBatches.of(dev)
    with isolated_rng(seed):
        plan = plan_of(build_task())
    if engine == "lightning" or plan is None or one is None or other is None:
        both = {"weight_decay": weight_decay, "seed": seed, "progress": progress, "description": description}
        chosen = {"learning_rates": learning_rates, **both, **settings}
        return sweep(build_task, one or train, other or dev, **chosen)
    clips = joined(one, other)
    parts = torch.arange(len(one)), torch.arange(len(one), len(clips))
    runs = [Run(build_task, *parts, rate, weight_decay, seed) for rate in learning_rates]
    best: tuple[FitResult, float, nn.Module] | None = None
    table: list[dict[str, Any]] = []
    for run, trained in zip(runs, fit_many(runs, clips, **settings), strict=True):
        rate, fit = run.learning_rate, trained.fit
        label = f"{description} lr {rate:g}".strip()
        if fit is None:
            table.append({"learning_rate": rate, "diverged": True})
            _say(progress, f"{label}: diverged")
            continue
        _say(progress, f"{label}: {fit.monitor} {fit.best_score:.4f} at step {fit.best_step}")
        row = {key: value for key, value in fit.best.items() if key != "step"}
        table.append({"learning_rate": rate, "diverged": False, "best_step": fit.best_step, **row})
        if best is None or better(fit.best, best[0].best, fit.monitor):
            best = (fit, rate, trained.task)
    if best is None:
        raise InputError(
            f"Training diverged at every learning rate ({', '.join(f'{rate:g}' for rate in learning_rates)}). "
            "Try lower ones; if they fail too, look for NaN or infinity in the features."
        )
    return SweepResult(*best, table=table)


def joined(*splits: TensorBatches) -> TensorBatches:
    """Splits one after the other."""
    layers = zip(*(split.layers.hidden_states for split in splits), strict=True)
    hidden = tuple(torch.cat(rows) for rows in layers)
    targets = torch.cat([split.targets for split in splits])
    ones = torch.ones(len(targets), dtype=torch.int64, device=targets.device)
    return TensorBatches(Layers(hidden, (ones,) * len(hidden)), targets)


def _say(wanted: bool, text: str) -> None:
    if wanted:
        print(text, file=sys.stderr, flush=True)
