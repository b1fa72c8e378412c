"""How well an objective's own task is solved on clips that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmssl.errors import ConfigError
from mmssl.random import isolated_rng, mix
from mmssl.training.pretrain_batches import PretrainBatches

if TYPE_CHECKING:
    from mmssl.objectives.objective import Objective
    from mmssl.training.readers import ClipReader
    from mmssl.types import Clip

# rows of an objective's log that say how its task is solved
MEASURES = ("loss", "accuracy", "divergence")
_RESAMPLES = 2000


def score_objective(
    objective: Objective,
    clips: Sequence[Clip],
    reader: ClipReader,
    *,
    step: int = 0,
    draws: int = 4,
    batch_seconds: float | None = None,
    batch_size: int | None = None,
    group_by: str | None = None,
    group_size: int = 8,
    labels: Sequence[str] = (),
    on_error: str = "raise",
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Loss and accuracy of every term on clips, without training: no weight, teacher, centre or queue is moved.

    Of a cross entropy against a teacher's distributions also the divergence, see `SoftCrossEntropy`.

    Each clip is seen `draws` times, each time with another crop and another draw of masks and pairs. The numbers depend
    on the clips, the settings and the seed alone; the objective is left in the mode it was in.

    Args:
        objective: trained, or not yet.
        clips: of speakers that it was not trained on.
        reader: that of the training.
        step: of the training, for what follows a schedule.
        draws: passes over the clips, at least 1.
        batch_seconds, batch_size, group_by, group_size, labels, on_error: see `PretrainBatches`; contrastive losses
            depend on the size.
        seed: of what is drawn.

    Returns:
        name ("match/accuracy") -> mean over batches, weighted by their clips, "low" and "high", the 95 % interval of a
        bootstrap over batches, "batches" and "clips".

    Raises:
        ConfigError: draws below 1.
        DataError, MediaError: clips that cannot be used.
    """
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}.")
    batches = PretrainBatches(
        clips,
        reader,
        batch_seconds=batch_seconds,
        batch_size=batch_size,
        group_by=group_by,
        group_size=group_size,
        seed=mix(seed, 1),
        on_error=on_error,
        labels=labels,
        cache_bytes=2**30 if draws > 1 else 0,
    )
    rows: dict[str, list[tuple[float, int]]] = {}
    training = objective.training
    objective.eval()
    number = 0
    try:
        for epoch in range(draws):
            for _ in batches.plan(epoch):
                batch = batches[number]
                own = mix(seed, number) % 2**31
                with torch.no_grad(), isolated_rng(own):
                    output = objective(batch.examples, step, torch.Generator().manual_seed(own))
                for name, value in output.logs.items():
                    if name.rpartition("/")[2] in MEASURES:
                        rows.setdefault(name, []).append((float(value), len(batch.examples.ids)))
                number += 1
    finally:
        objective.train(training)
    return {name: _summary(found, seed) for name, found in rows.items()}


def _summary(found: Sequence[tuple[float, int]], seed: int) -> dict[str, float]:
    values, weights = (np.asarray(column, dtype=np.float64) for column in zip(*found, strict=True))
    picks = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    means = (values[picks] * weights[picks]).sum(1) / weights[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float((values * weights).sum() / weights.sum()),
        "low": float(low),
        "high": float(high),
        "batches": len(values),
        "clips": int(weights.sum()),
    }
