"""Is one upstream better than another? Paired tests on the same clips, and whether two rankings agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError
from mmssl.metrics.classification import uar_from
from mmssl.metrics.regression import ccc

CELLS_AT_ONCE = 4_000_000


def mcnemar(truth: npt.ArrayLike, one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Exact McNemar test: two-sided p value for equal accuracy of two classifiers on the same clips.

    McNemar (Psychometrika 1947), exact form: of the clips that just one of them gets right, the number that the first
    gets right is binomial with 1/2. Clips are taken as independent.

    Args:
        truth: (n,) class indices.
        one: (n,) predictions.
        other: (n,) predictions.

    Returns:
        p in (0, 1]; 1 where they are right and wrong on the same clips.

    Raises:
        InputError: shapes differ or nothing is given.
    """
    true, first, second = _same_shape(truth, one, other)
    wins, losses = (int(((a == true) & (b != true)).sum()) for a, b in ((first, second), (second, first)))
    if wins + losses == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue)


def permutation_test(
    truth: npt.ArrayLike,
    one: npt.ArrayLike,
    other: npt.ArrayLike,
    *,
    classes: bool = True,
    num_samples: int = 5000,
    seed: int = 0,
) -> float:
    """Two-sided p value for an equal UAR (classes) or CCC (values) of two systems on the same clips.

    Under the hypothesis that the systems are alike, the two predictions of a clip may change places. The p value is
    the share of such exchanges with a difference at least as large, (1 + hits) / (1 + samples): Phipson and Smyth,
    "Permutation p-values should never be zero" (2010).

    Args:
        truth: (n,) class indices or values.
        one: (n,) predictions.
        other: (n,) predictions.
        classes: whether they are classes.
        num_samples: exchanges drawn.
        seed: the value depends on it and the arguments alone.

    Raises:
        InputError: shapes differ or nothing is given.
    """
    true, first, second = _same_shape(truth, one, other)
    measure = _uars if classes else _cccs
    generator = np.random.default_rng(seed)
    seen = abs(float(np.diff(measure(true, np.stack([first, second])))[0]))
    hits, done = 0, 0
    while done < num_samples:
        count = min(num_samples - done, max(1, CELLS_AT_ONCE // len(true)))
        swap = generator.random((count, len(true))) < 0.5
        values = measure(true, np.concatenate([np.where(swap, second, first), np.where(swap, first, second)]))
        # rounding must not turn an exchange that changes nothing into a smaller difference
        hits += int((np.abs(values[:count] - values[count:]) >= seen - 1e-12).sum())
        done += count
    return (1 + hits) / (1 + num_samples)


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings of the same systems, in [-1, 1]; NaN for fewer than two, or if all are tied.

    Raises:
        InputError: the lengths differ.
    """
    if len(one) != len(other):
        raise InputError(f"Two rankings of the same systems are needed, got {len(one)} and {len(other)} scores.")
    if len(one) < 2:
        return float("nan")
    from scipy.stats import kendalltau

    return float(kendalltau(one, other).statistic)


def _uars(truth: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """UAR of (m, n) predictions."""
    classes = int(max(truth.max(), predictions.max())) + 1
    cells = truth * classes + predictions + classes**2 * np.arange(len(predictions))[:, None]
    counts = np.bincount(cells.ravel(), minlength=len(predictions) * classes**2)
    return uar_from(counts.reshape(len(predictions), classes, classes))


def _cccs(truth: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return ccc(np.broadcast_to(truth, predictions.shape), predictions)


def _same_shape(*arrays: npt.ArrayLike) -> list[np.ndarray]:
    found = [np.asarray(array) for array in arrays]
    if len({a.shape for a in found}) != 1 or found[0].ndim != 1 or not len(found[0]):
        raise InputError(f"Truth and both predictions must be (n,) with n >= 1, got {[a.shape for a in found]}.")
    return found
