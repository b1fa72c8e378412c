"""By how much one system's EER is below another's on the same trials, with an interval over speakers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError
from mmssl.metrics.verification import checked_trials, eer_from, group_starts

VALUES_AT_ONCE = 2_000_000
Floats = npt.NDArray[np.float64]


def eer_margin(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    is_target: npt.ArrayLike,
    enrol_speakers: Sequence[str],
    test_speakers: Sequence[str],
    num_samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of EER(theirs) - EER(ours), both systems judged on the same draws of speakers.

    The draws are those of `mmssl.metrics.speaker_bootstrap`: speakers with replacement, a target trial as often as its
    speaker, a non-target trial as often as its two speakers together. What makes a draw hard for both systems does not
    widen the interval of their difference.

    Args:
        ours, theirs: (n,) scores of the same trials.
        is_target: (n,) bool, or 0 and 1.
        enrol_speakers, test_speakers: (n,) of both sides.
        num_samples: draws.
        level: of confidence.
        seed: of the draws.

    Returns:
        (low, high); ours is better beyond chance where low is above 0.

    Raises:
        InputError: shapes, scores or labels are wrong, fewer than three speakers, or most draws lack a class.
    """
    first, target = checked_trials(ours, is_target)
    second, _ = checked_trials(theirs, is_target)
    names, numbers = np.unique(np.concatenate([enrol_speakers, test_speakers]), return_inverse=True)
    sides = numbers.reshape(2, -1)
    if len(names) < 3:
        raise InputError(f"A bootstrap over speakers needs at least three, the trials have {len(names)}.")
    generator = np.random.default_rng(seed)
    share = np.full(len(names), 1 / len(names))
    step = max(1, VALUES_AT_ONCE // len(target))
    found: list[Floats] = []
    for start in range(0, num_samples, step):
        draws = generator.multinomial(len(names), share, size=min(step, num_samples - start))
        times = draws[:, sides[0]]
        times = np.where(target, times, times * draws[:, sides[1]])
        found.append(_rates(second, target, times) - _rates(first, target, times))
    gains = np.concatenate(found)
    usable = gains[~np.isnan(gains)]
    if 2 * len(usable) < len(gains) or not len(usable):
        raise InputError("Most draws of speakers have trials of one class only: too few speakers for an interval.")
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _rates(scores: Floats, target: npt.NDArray[np.bool_], times: npt.NDArray[np.int64]) -> Floats:
    """EER (s,) of trials that count `times` (s, n) over."""
    order = np.argsort(scores)
    starts = group_starts(scores[order])
    times, hit = times[:, order], target[order]
    hits = np.add.reduceat(times * hit, starts, axis=-1)
    return eer_from(hits, np.add.reduceat(times, starts, axis=-1) - hits)
