"""The protocols linear and mlp: folds x seeds x learning rates x weight decays as one batched computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from mmssl.downstream.tasks import balanced_class_weights
from mmssl.errors import InputError
from mmssl.probing.choice import HeadChoice
from mmssl.probing.data import Part, ProbeData
from mmssl.probing.fit_many import Run, Trained, fit_many
from mmssl.probing.plan import plan_of
from mmssl.probing.protocols import Answer, dev_score
from mmssl.probing.sweep import sweep_heads
from mmssl.training.batches import TensorBatches
from mmssl.training.fit import FitResult, predict
from mmssl.training.selection import better
from mmssl.types import StreamSpec

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
WEIGHT_DECAYS = (0.0,)


def predict_heads(
    data: ProbeData,
    parts: Sequence[Part],
    *,
    head: str | HeadChoice = "linear",
    layer: int | None = None,
    seeds: Sequence[int] = (0,),
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    class_weights: bool = True,
    hidden_size: int | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Iterator[Answer]:
    """Train heads on every fold and seed, and predict the test part with what the development part selected.

    Args:
        data: features and labels.
        parts: folds.
        head: "linear" or "mlp", on the learned sum of layers; or a pair of interface and head.
        layer: one of the data's layers alone; None for all.
        seeds: of initial weights and order.
        learning_rates: which to try.
        weight_decays: which to try, of AdamW.
        class_weights: weigh classes by their inverse size in training.
        hidden_size: of "linear" and "mlp"; None for 256.
        device: "cpu" or "cuda".
        **settings: of `mmssl.probing.fit_many.fit_many`: max_steps, batch_size, patience ...

    Raises:
        InputError: at every setting of a fold the loss stopped being finite.
    """
    common = {"optimizer": "adamw", "monitor": "dev_loss", "device": device, **settings}
    choice = HeadChoice(head, head_arguments={"hidden_size": hidden_size or 256}) if isinstance(head, str) else head
    builders = [_builder(data, part, choice, layer, class_weights) for part in parts]
    grid = list(product(learning_rates, weight_decays))
    jobs = [(k, seed) for k in range(len(parts)) for seed in seeds]
    if plan_of(builders[0]()) is None:
        for k, seed in jobs:
            yield _one_by_one(data, parts[k], builders[k], seed, learning_rates, weight_decays, common)
        return
    runs = [
        Run(builders[k], parts[k].train, parts[k].dev, rate, decay, seed) for k, seed in jobs for rate, decay in grid
    ]
    outcomes = fit_many(runs, data.batches, **common)
    for k, seed in jobs:
        best: tuple[Trained, FitResult, dict[str, Any]] | None = None
        for rate, decay in grid:
            trained = next(outcomes)
            chosen = {"learning_rate": rate, "weight_decay": decay}
            fit = trained.fit
            if fit is not None and (best is None or better(fit.best, best[1].best, fit.monitor)):
                best = (trained, fit, {**chosen, "best_step": fit.best_step})
        if best is None:
            raise InputError(
                f"Fold {parts[k].name!r}: the loss stopped being finite at every learning rate "
                f"({', '.join(f'{r:g}' for r in learning_rates)}). Look for NaN or infinity in the features."
            )
        yield _answer(data, parts[k], best[0].task, seed, best[2], device)


def _builder(
    data: ProbeData, part: Part, choice: HeadChoice, layer: int | None, class_weights: bool
) -> Callable[[], nn.Module]:
    moments = data.moments(part.train)
    weights = None
    if data.classes and class_weights:
        weights = balanced_class_weights(data.batches.targets[part.train], len(data.classes))
    if layer is not None:
        choice = replace(choice, interface="layer", interface_arguments={"layer": layer})
    stream = StreamSpec(data.widths, (1,) * len(data.widths))
    return lambda: choice.task(stream, moments, len(data.classes), weights)


def _one_by_one(
    data: ProbeData,
    part: Part,
    build: Callable[[], nn.Module],
    seed: int,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    common: dict[str, Any],
) -> Answer:
    """A fold whose heads cannot be stacked (layers of unequal width), by the ordinary trainer."""
    train, dev = (TensorBatches(*data.batches.batch(index)) for index in (part.train, part.dev))
    best: tuple[Any, float] | None = None
    for decay in weight_decays:
        found = sweep_heads(build, train, dev, learning_rates=learning_rates, weight_decay=decay, seed=seed, **common)
        if best is None or better(found.best.best, best[0].best.best, found.best.monitor):
            best = (found, decay)
    assert best is not None  # there is at least one weight decay
    chosen = {"learning_rate": best[0].learning_rate, "weight_decay": best[1], "best_step": best[0].best.best_step}
    return _answer(data, part, best[0].task, seed, chosen, common["device"])


def _answer(data: ProbeData, part: Part, task: nn.Module, seed: int, chosen: dict[str, Any], device: str) -> Answer:
    found: list[np.ndarray] = []
    for index in (part.dev, part.test):
        answers, _ = predict(task, TensorBatches(*data.batches.batch(index)), batch_size=1024, device=device)
        found.append((answers.argmax(1) if data.classes else answers[:, 0]).numpy())
    score = dev_score(data.truth[part.dev.numpy()], found[0], len(data.classes))
    return Answer(part.name, seed, found[1], chosen, score)
