"""Metrics of scores that rank: area under the ROC curve, average precision, and choices between several candidates.

Equal scores are never broken by the order of the list.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError
from mmssl.metrics.verification import count_scores

Floats = npt.NDArray[np.float64]


def roc_auc(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> float:
    """P(a positive scores higher than a negative) + P(they are equal) / 2, in [0, 1].

    Mann and Whitney 1947: the area under the ROC curve.

    Args:
        scores: (n,) higher for positives.
        is_positive: (n,) bool, or 0 and 1.

    Raises:
        InputError: shapes, scores or labels are wrong, or one class is empty.
    """
    counts = count_scores(scores, is_positive)
    below = np.cumsum(counts.nontargets) - counts.nontargets
    # twice the number of pairs won, so that halves of ties stay integers
    won = int((counts.targets * (2 * below + counts.nontargets)).sum())
    return won / (2 * int(counts.targets.sum()) * int(counts.nontargets.sum()))


def average_precision(scores: npt.ArrayLike, is_positive: npt.ArrayLike) -> float:
    """Area under the precision-recall curve as a sum of steps, in [0, 1].

    Sum over thresholds n, from high to low, of (R_n - R_(n-1)) P_n; equal scores share a threshold. The AP of
    XD-Violence (Wu et al. 2020), and scikit-learn's average_precision_score.

    Args and errors as `roc_auc`.
    """
    counts = count_scores(scores, is_positive)
    hits = np.cumsum(counts.targets[::-1])
    said = np.cumsum((counts.targets + counts.nontargets)[::-1])
    return float((counts.targets[::-1] * (hits / said)).sum() / hits[-1])


def choice_accuracy(scores: npt.ArrayLike, answers: npt.ArrayLike) -> float:
    """Share of trials in which the right one of N candidates scores highest, in [0, 1]; 1 / k of a hit in a tie of k.

    Args:
        scores: (n, N) of each trial's candidates.
        answers: (n,) index of the right one.

    Raises:
        InputError: shapes or indices do not fit, or a score is NaN.
    """
    table, right = np.asarray(scores, dtype=np.float64), np.asarray(answers)
    if table.ndim != 2 or not table.size or right.shape != (len(table),) or right.dtype.kind not in "iu":
        raise InputError(
            f"Choices need (n, N) scores and (n,) indices of the right candidates, got {table.shape} and {right.shape}."
        )
    if np.isnan(table).any() or right.min() < 0 or right.max() >= table.shape[1]:
        raise InputError(f"Scores must not be NaN and answers lie in 0 to {table.shape[1] - 1}.")
    best = table == table.max(1, keepdims=True)
    return float((best[np.arange(len(table)), right] / best.sum(1)).mean())
