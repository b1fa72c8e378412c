"""Intervals of scores and of their differences, from speakers drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError

Rows = npt.NDArray[np.int64]
SAMPLES = 500


def speaker_draws(speakers: Sequence[Hashable], num_samples: int = SAMPLES, seed: int = 0) -> list[Rows]:
    """Rows of clips, for each sample those of as many speakers as there are, drawn with replacement.

    Clips of one speaker resemble each other, so that intervals over clips are too narrow; a speaker drawn twice counts
    twice. Which speakers are drawn depends on their number and the seed alone: systems that are scored on the same
    clips have paired samples.

    Args:
        speakers: of the clips; a clip without one counts as a speaker of its own.
        num_samples: how many.
        seed: of the draws.

    Raises:
        InputError: there is no clip.
    """
    if not speakers:
        raise InputError("There is no clip to draw from.")
    members: dict[Hashable, list[int]] = {}
    for row, speaker in enumerate(speakers):
        members.setdefault(("clip", row) if speaker is None else speaker, []).append(row)
    groups = [np.asarray(members[name]) for name in sorted(members, key=str)]
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(groups), size=(num_samples, len(groups)))
    return [np.concatenate([groups[k] for k in pick]) for pick in picks]


def interval(
    statistic: Callable[[Rows], float], draws: Sequence[Rows], level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of a statistic of rows; None where most samples have no value (one class alone)."""
    return _between([statistic(rows) for rows in draws], level)


def paired_interval(
    first: Callable[[Rows], float], second: Callable[[Rows], float], draws: Sequence[Rows], level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the difference of two statistics of the same rows."""
    return _between([first(rows) - second(rows) for rows in draws], level)


def scored(statistic: Callable[[Rows], float], count: int, draws: Sequence[Rows]) -> dict[str, float | None]:
    """Value over all rows with its interval: "value", "low", "high"."""
    found = interval(statistic, draws)
    low, high = found if found is not None else (None, None)
    return {"value": float(statistic(np.arange(count))), "low": low, "high": high}


def mean_of(values: npt.ArrayLike) -> Callable[[Rows], float]:
    """The mean of one value per clip, as a statistic of rows."""
    table = np.asarray(values, dtype=np.float64)
    return lambda rows: float(table[rows].mean())


def percent(found: Mapping[str, float | None]) -> str:
    """ "71.3 (66.0 to 76.1)", in percent."""
    value, low, high = (found.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def _between(values: Sequence[float], level: float) -> tuple[float, float] | None:
    table = np.asarray(values, dtype=np.float64)
    table = table[np.isfinite(table)]
    if len(table) < max(1, len(values) // 2):
        return None
    low, high = np.quantile(table, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
