"""Heads that need frames: folds, seeds and rates one after the other, by the ordinary trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from mmssl.downstream.tasks import balanced_class_weights
from mmssl.probing.choice import HeadChoice
from mmssl.probing.data import Part
from mmssl.probing.frames import FrameData, FrameSplit
from mmssl.probing.protocols import Answer, dev_score
from mmssl.training.fit import predict
from mmssl.training.selection import better
from mmssl.training.sweep import SweepResult, sweep

LEARNING_RATES = (1e-4, 1e-3)
WEIGHT_DECAYS = (0.0,)


def predict_frames(
    data: FrameData,
    parts: Sequence[Part],
    choice: HeadChoice,
    *,
    seeds: Sequence[int] = (0,),
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    class_weights: bool = True,
    device: str = "cpu",
    **settings: Any,
) -> Iterator[Answer]:
    """Train a head on frames for every fold and seed, and predict the test part with what the dev part selected.

    A batch of clips is read from the store when its step comes, padded to its longest clip; nothing else is in memory.
    Two learning rates are the default instead of five, because each takes a run of its own.

    Args:
        data: frames and labels.
        parts: folds.
        choice: interface and head.
        seeds: of initial weights and order.
        learning_rates: which to try.
        weight_decays: which to try, of AdamW.
        class_weights: weigh classes by their inverse size in training.
        device: "cpu" or "cuda".
        **settings: of `mmssl.training.fit.fit`: max_steps, batch_size, patience ...

    Raises:
        InputError: at every setting of a fold the loss stopped being finite.
    """
    common = {"optimizer": "adamw", "monitor": "dev_loss", "device": device, **settings}
    count = len(data.classes)
    for part in parts:
        moments = data.moments(part.train)
        weights = balanced_class_weights(data.targets[part.train], count) if count and class_weights else None

        def build(moments: Any = moments, weights: Any = weights) -> nn.Module:
            return choice.task(data.spec, moments, count, weights)

        train, dev, test = (FrameSplit(data, index) for index in (part.train, part.dev, part.test))
        for seed in seeds:
            best: tuple[SweepResult, float] | None = None
            for decay in weight_decays:
                found = sweep(build, train, dev, learning_rates=learning_rates, weight_decay=decay, seed=seed, **common)
                if best is None or better(found.best.best, best[0].best.best, found.best.monitor):
                    best = (found, decay)
            assert best is not None  # there is at least one weight decay
            result = best[0]
            chosen = {"learning_rate": result.learning_rate, "weight_decay": best[1]}
            on_dev, on_test = (_predictions(result.task, split, count, common) for split in (dev, test))
            score = dev_score(data.truth[part.dev.numpy()], on_dev, count)
            yield Answer(part.name, seed, on_test, {**chosen, "best_step": result.best.best_step}, score)


def _predictions(task: nn.Module, split: FrameSplit, count: int, settings: dict[str, Any]) -> np.ndarray:
    answers, _ = predict(task, split, batch_size=settings.get("batch_size", 32), device=settings["device"])
    return (answers.argmax(1) if count else answers[:, 0]).numpy()
