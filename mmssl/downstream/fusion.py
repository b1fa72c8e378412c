"""Log-likelihood ratios from scores: calibration, fusion of systems, and quality measures of the two clips."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mmssl.downstream.scoring import check_pairs
from mmssl.errors import ConfigError, InputError

Floats = npt.NDArray[np.float64]


class ScoreFusion:
    """An affine map of scores to one log-likelihood ratio, by logistic regression.

    Bruemmer et al., "Fusion of heterogeneous speaker recognition systems" (IEEE TASLP 2007), section IV: with one
    score per trial it calibrates it, with several it fuses systems, with quality measures beside the score it is the
    quality measure function of Thienpondt et al., "The IDLab VoxSRC-20 submission" (ICASSP 2021). Targets weigh
    `prior` in sum and non-targets the rest. Fit it on development trials, never on those that are reported.

    Args:
        prior: P of a target trial at which the fit counts most.
        penalty: weight of half the squared length of the weights (of standardised scores) beside the mean loss; keeps
            them finite where the classes can be separated.

    Attributes:
        weights: (K,) of the scores. offset: number. They are there after `fit`.

    Raises:
        ConfigError: a value is out of range.
    """

    weights: Floats
    offset: float

    def __init__(self, prior: float = 0.5, penalty: float = 1e-6) -> None:
        if not 0 < prior < 1 or penalty <= 0:
            raise ConfigError(f"prior must lie in (0, 1) and penalty be positive, got {prior} and {penalty}.")
        self.prior, self.penalty = prior, penalty

    def fit(self, scores: npt.ArrayLike, is_target: npt.ArrayLike) -> ScoreFusion:
        """Find weights and offset.

        Args:
            scores: (n,) of one system, or (n, K): of several, or a score and its quality measures.
            is_target: (n,) bool, or 0 and 1.

        Returns:
            Itself.

        Raises:
            InputError: shapes do not fit, a score is not finite, or one class has no trial.
        """
        from sklearn.linear_model import LogisticRegression

        table = _columns(scores)
        target = np.asarray(is_target).astype(bool)
        if target.shape != (len(table),) or target.all() or not target.any():
            raise InputError(
                f"Fusion needs (n,) labels of both classes for {len(table)} trials, got {target.shape} with "
                f"{int(target.sum())} targets."
            )
        centre, spread = table.mean(0), table.std(0)
        # what hardly varies says nothing, and divided by its spread it would be rounding errors
        spread[spread <= 1e-6 * np.abs(centre)] = 1
        spread[spread == 0] = 1
        share = np.where(target, self.prior / target.sum(), (1 - self.prior) / (~target).sum())
        model = LogisticRegression(C=1 / (self.penalty * len(table)), tol=1e-8, max_iter=1000)
        model.fit((table - centre) / spread, target, sample_weight=share * len(table))
        self.weights = model.coef_[0] / spread
        # regression gives posterior log-odds at the prior; without them it is a likelihood ratio
        self.offset = float(model.intercept_[0] - self.weights @ centre - np.log(self.prior / (1 - self.prior)))
        return self

    def llrs(self, scores: npt.ArrayLike) -> Floats:
        """Log-likelihood ratios (n,) of scores (n,) or (n, K).

        Raises:
            InputError: the map is not fitted, or the number of scores per trial is another one.
        """
        if not hasattr(self, "weights"):
            raise InputError("The fusion has no weights yet: call fit first.")
        table = _columns(scores)
        if table.shape[1] != len(self.weights):
            raise InputError(f"The fusion takes {len(self.weights)} scores per trial, got {table.shape[1]}.")
        return table @ self.weights + self.offset


def quality_table(
    scores: npt.ArrayLike, measures: Mapping[str, npt.ArrayLike], enrol: npt.ArrayLike, test: npt.ArrayLike
) -> Floats:
    """Scores and, for each quality measure of a clip, the smaller and the larger value of the trial's two clips.

    Smaller and larger instead of enrolment and test keep the result symmetric. Measures in use: logarithm of the
    duration, length of the embedding, and the mean of the highest cohort scores (`scoring.cohort_statistics`).

    Args:
        scores: (n,) of the trials.
        measures: name -> (N,) value of each clip.
        enrol, test: (n,) rows of the trials.

    Returns:
        (n, 1 + 2 M), for `ScoreFusion`.

    Raises:
        InputError: shapes do not fit, or a value is not finite.
    """
    columns = [np.asarray(scores, dtype=np.float64)]
    for name, values in measures.items():
        per_clip = np.asarray(values, dtype=np.float64)
        if per_clip.ndim != 1:
            raise InputError(f"The measure {name!r} must be one value per clip, (N,), got {per_clip.shape}.")
        first, second = check_pairs(enrol, test, len(per_clip))
        columns += [np.minimum(per_clip[first], per_clip[second]), np.maximum(per_clip[first], per_clip[second])]
    if len({column.shape for column in columns}) > 1:
        raise InputError(f"There are {len(columns[0])} scores for {len(columns[-1])} trials.")
    return _columns(np.stack(columns, axis=1))


def _columns(scores: npt.ArrayLike) -> Floats:
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise InputError(f"Scores must be finite, (n,) or (n, K), n and K at least 1; got {np.shape(scores)}.")
    return table
