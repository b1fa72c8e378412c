"""Error rates of sequences of symbols: phonemes, characters, words."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError


def edit_distance(reference: Sequence[int], hypothesis: Sequence[int]) -> int:
    """Smallest number of substitutions, deletions and insertions that turn one sequence into the other.

    Levenshtein (1966).
    """
    first, second = np.asarray(reference, dtype=np.int64), np.asarray(hypothesis, dtype=np.int64)
    (last,) = deque(distance_rows(first, second), maxlen=1)
    return int(last[-1])


def distance_rows(reference: Iterable[Any], hypothesis: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.int64]]:
    """The table of edit distances, row by row: entry j of row i is that of the first i and the first j symbols.

    The best way by substitution or deletion is known from the row above, and insertions then run along the row as a
    cumulated minimum.

    Args:
        reference: m symbols.
        hypothesis: (n,) symbols.

    Returns:
        m + 1 rows (n + 1,).
    """
    steps = np.arange(len(hypothesis) + 1)
    row = steps.copy()
    yield row
    for place, symbol in enumerate(reference, start=1):
        below = row[1:] + 1
        across = row[:-1] + (hypothesis != symbol)
        best = np.concatenate([[place], np.minimum(below, across)])
        row = np.minimum.accumulate(best - steps) + steps
        yield row


def error_rate(edits: npt.ArrayLike, lengths: npt.ArrayLike) -> float:
    """Edits of all sequences over symbols of all references; may exceed 1.

    Args:
        edits: (n,) edit distances.
        lengths: (n,) symbols of the references.

    Raises:
        InputError: shapes differ, or the references hold no symbol.
    """
    counts, sizes = _checked(edits, lengths)
    return float(counts.sum() / sizes.sum())


def error_rate_interval(
    edits: npt.ArrayLike, lengths: npt.ArrayLike, *, num_samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of `error_rate` over clips: clips are drawn anew, edits and symbols of each together.

    Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004).

    Args:
        edits: (n,) edit distances.
        lengths: (n,) symbols of the references.
        num_samples: draws.
        level: share of the draws inside, in (0, 1).
        seed: of the draws.

    Raises:
        InputError: as `error_rate`, or the level is not in (0, 1).
    """
    counts, sizes = _checked(edits, lengths)
    if not 0 < level < 1:
        raise InputError(f"The level of an interval lies between 0 and 1, got {level}.")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_samples):
        drawn = generator.integers(0, len(counts), len(counts))
        values.append(counts[drawn].sum() / max(sizes[drawn].sum(), 1))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(edits: npt.ArrayLike, lengths: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    counts, sizes = np.asarray(edits), np.asarray(lengths)
    if counts.ndim != 1 or counts.shape != sizes.shape or sizes.sum() < 1:
        raise InputError(
            f"An error rate takes (n,) edits and (n,) lengths with at least one symbol, got {counts.shape} and "
            f"{sizes.shape} with {sizes.sum() if sizes.size else 0} symbols."
        )
    return counts, sizes
