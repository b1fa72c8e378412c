"""Metrics of clips with any number of labels each: mean average precision and mean area under the ROC curve.

Equal scores are never broken by the order of the list.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError

Floats = npt.NDArray[np.float64]


class LabelRanking:
    """Clips ranked by their scores for each label, once; metrics of any weighting of the clips follow from it.

    Args:
        scores: (N, C), higher where a clip has the label.
        truth: (N, C) bool, or 0 and 1.

    Raises:
        InputError: shapes differ, there is no clip, a score is NaN, or a label is neither 0 nor 1.
    """

    def __init__(self, scores: npt.ArrayLike, truth: npt.ArrayLike) -> None:
        values, labels = np.asarray(scores, dtype=np.float64), np.asarray(truth)
        if values.ndim != 2 or not values.size or values.shape != labels.shape:
            raise InputError(f"Scores and labels must both be (N, C), got {values.shape} and {labels.shape}.")
        if np.isnan(values).any() or not np.isin(labels, (0, 1)).all():
            raise InputError("Scores must not be NaN, and labels must be bool, or 0 and 1.")
        self.size = len(values)
        # (C, N): clips from the highest score to the lowest
        self.order = np.argsort(-values, axis=0, kind="stable").T
        ranked = np.take_along_axis(values.T, self.order, 1)
        self.positive = np.take_along_axis(labels.T.astype(bool), self.order, 1)
        places = np.broadcast_to(np.arange(self.size), ranked.shape)
        fresh = np.ones_like(self.positive)
        fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        last = np.ones_like(fresh)
        last[:, :-1] = fresh[:, 1:]
        # first and last place of the clips that share a score
        self.starts = np.maximum.accumulate(np.where(fresh, places, 0), 1)
        self.ends = np.minimum.accumulate(np.where(last, places, self.size - 1)[:, ::-1], 1)[:, ::-1]

    def average_precision(self, weights: npt.ArrayLike | None = None) -> Floats:
        """(C,) average precision, in [0, 1]; NaN of a label that no clip has.

        The area under the precision-recall curve as a sum of steps, as `mmssl.metrics.ranking.average_precision`.

        Args:
            weights: (N,) of the clips, such as how often the bootstrap has drawn each; None for 1.
        """
        drawn = self._ranked(weights)
        hits = drawn * self.positive
        said, right = (np.take_along_axis(np.cumsum(part, 1), self.ends, 1) for part in (drawn, hits))
        precision = np.divide(right, said, out=np.zeros_like(right), where=said > 0)
        return _ratio((hits * precision).sum(1), hits.sum(1))

    def roc_auc(self, weights: npt.ArrayLike | None = None) -> Floats:
        """(C,) P(a clip with the label scores higher) + P(equal) / 2; NaN where all clips have it, or none.

        Args:
            weights: as `average_precision`.
        """
        drawn = self._ranked(weights)
        hits, misses = drawn * self.positive, drawn * ~self.positive
        through = np.cumsum(misses, 1)
        # of the clips without the label, those that score higher, and half of those that score the same
        above = np.take_along_axis(through - misses, self.starts, 1)
        lost = (above + np.take_along_axis(through, self.ends, 1)) / 2
        total = through[:, -1:]
        return _ratio((hits * (total - lost)).sum(1), hits.sum(1) * total[:, 0])

    def _ranked(self, weights: npt.ArrayLike | None) -> Floats:
        given = np.ones(self.size) if weights is None else np.asarray(weights, dtype=np.float64)
        if given.shape != (self.size,):
            raise InputError(f"There are {self.size} clips, and weights of shape {given.shape}.")
        return given[self.order]


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def mean_over_labels(values: Floats) -> float:
    """Mean over the labels that have a value; NaN where none has."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def mean_average_precision(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Mean over labels of the average precision, in [0, 1]; labels that no clip has are left out.

    Args and errors as `LabelRanking`.
    """
    return mean_over_labels(LabelRanking(scores, truth).average_precision())


def mean_roc_auc(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Mean over labels of the area under the ROC curve, in [0, 1]; labels that all clips have, or none, are left out.

    Args and errors as `LabelRanking`.
    """
    return mean_over_labels(LabelRanking(scores, truth).roc_auc())
