"""Confidence intervals: over clips by the bootstrap, over folds by Student's t."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import ConfigError, InputError, did_you_mean
from mmssl.metrics import classification, regression

Metric = Callable[[np.ndarray, np.ndarray], float]
FROM_COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uar": classification.uar_from,
    "wa": classification.weighted_accuracy_from,
    "macro_f1": classification.macro_f1_from,
    "weighted_f1": classification.weighted_f1_from,
}
FROM_VALUES: dict[str, Callable[..., np.ndarray]] = {
    "ccc": regression.ccc,
    "pearson": regression.pearson,
    "rmse": regression.rmse,
}
VALUES_AT_ONCE = 2_000_000


def bootstrap_interval(
    metric: str | Metric,
    truth: npt.ArrayLike,
    prediction: npt.ArrayLike,
    num_samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric over clips.

    Efron, "Bootstrap methods: another look at the jackknife" (Annals of Statistics 1979): n clips are drawn with
    replacement from the n, and the interval is that between the percentiles of the metric over such samples. Clips
    are taken as independent: clips of few speakers make it too narrow, so give the interval over folds beside it.

    For "uar", "wa", "macro_f1" and "weighted_f1" the samples are drawn as confusion counts, which are multinomial: the
    same distribution as drawing clips, without touching them.

    Args:
        metric: "uar", "wa", "macro_f1", "weighted_f1", "ccc", "pearson", "rmse", or a function of (truth, prediction),
            called once per sample.
        truth: (n,) class indices or values.
        prediction: the same.
        num_samples: bootstrap samples.
        level: of confidence, in (0, 1).
        seed: the interval depends on it and the arguments alone.

    Returns:
        (low, high).

    Raises:
        ConfigError: the metric is unknown, or `level` or `num_samples` is out of range.
        InputError: truth and prediction do not fit each other or the metric.
    """
    if not 0 < level < 1 or num_samples < 1:
        raise ConfigError(f"level must lie in (0, 1) and num_samples be at least 1, got {level} and {num_samples}.")
    generator = np.random.default_rng(seed)
    true, predicted = np.asarray(truth), np.asarray(prediction)
    if isinstance(metric, str) and metric in FROM_COUNTS:
        counts = classification.confusion_matrix(true, predicted)
        drawn = generator.multinomial(len(true), counts.ravel() / len(true), size=num_samples)
        values = FROM_COUNTS[metric](drawn.reshape(num_samples, *counts.shape))
    elif isinstance(metric, str) and metric in FROM_VALUES:
        values = _resampled(FROM_VALUES[metric], true, predicted, num_samples, generator)
    elif callable(metric):
        values = _resampled(metric, true, predicted, num_samples, generator)
    else:
        known = [*FROM_COUNTS, *FROM_VALUES]
        raise ConfigError(
            f"There is no metric {metric!r}.{did_you_mean(str(metric), known)} Known: {', '.join(known)}."
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    metric: Callable[..., npt.ArrayLike],
    truth: np.ndarray,
    prediction: np.ndarray,
    num_samples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    if truth.ndim != 1 or truth.shape != prediction.shape or not len(truth):
        raise InputError(f"Truth and prediction must be (n,) with n >= 1, got {truth.shape} and {prediction.shape}.")
    at_once = max(1, VALUES_AT_ONCE // len(truth)) if metric in FROM_VALUES.values() else 1
    values: list[npt.ArrayLike] = []
    for start in range(0, num_samples, at_once):
        clips = generator.integers(len(truth), size=(min(at_once, num_samples - start), len(truth)))
        if at_once == 1:
            clips = clips[0]
        values.append(metric(truth[clips], prediction[clips]))
    return np.concatenate([np.atleast_1d(v) for v in values])


def fold_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Interval of the mean over folds: mean -+ t s / sqrt(k), Student's t with k - 1 degrees of freedom.

    Folds share training clips, so they are not independent and the interval is approximate; it shows how much the
    choice of speakers or sessions matters, which the interval over clips does not.

    Args:
        values: a metric on each of k folds.
        level: of confidence, in (0, 1).

    Returns:
        (low, high), not cut to the metric's range; None for fewer than two folds.

    Raises:
        ConfigError: `level` is out of range.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie in (0, 1), got {level}.")
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / len(values) ** 0.5
    return mean - half, mean + half
