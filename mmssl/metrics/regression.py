"""Metrics of regression, along the last axis of (..., n), so that the bootstrap computes many samples at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.errors import InputError

Floats = npt.NDArray[np.float64]


def ccc(truth: npt.ArrayLike, prediction: npt.ArrayLike) -> Floats:
    """Concordance correlation coefficient in [-1, 1]: agreement in shape, scale and level.

    Lin, "A concordance correlation coefficient to evaluate reproducibility" (Biometrics 1989):
    2 s_xy / (s_x^2 + s_y^2 + (m_x - m_y)^2), with variances and covariance divided by n, as Lin defines them (divided
    by n - 1 the value would differ where the means do). It is 0 where truth and prediction are both constant and equal.

    Args:
        truth: (..., n) values.
        prediction: the same shape.

    Returns:
        (...), a numpy scalar for (n,).

    Raises:
        InputError: shapes differ, nothing is given, or a value is not finite.
    """
    true, predicted = _checked(truth, prediction)
    mean_t, mean_p = true.mean(-1), predicted.mean(-1)
    covariance = ((true - mean_t[..., None]) * (predicted - mean_p[..., None])).mean(-1)
    return _ratio(2 * covariance, true.var(-1) + predicted.var(-1) + (mean_t - mean_p) ** 2)


def pearson(truth: npt.ArrayLike, prediction: npt.ArrayLike) -> Floats:
    """Pearson's correlation coefficient in [-1, 1]; 0 where either side is constant, which has no linear relation.

    Args, returns and errors as `ccc`.
    """
    true, predicted = _checked(truth, prediction)
    true = true - true.mean(-1, keepdims=True)
    predicted = predicted - predicted.mean(-1, keepdims=True)
    return _ratio((true * predicted).sum(-1), np.sqrt((true**2).sum(-1) * (predicted**2).sum(-1)))


def rmse(truth: npt.ArrayLike, prediction: npt.ArrayLike) -> Floats:
    """Root of the mean squared error, in the unit of the values.

    Args, returns and errors as `ccc`.
    """
    true, predicted = _checked(truth, prediction)
    return np.sqrt(((true - predicted) ** 2).mean(-1))


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    top, bottom = np.asarray(numerator), np.asarray(denominator)
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)[()]


def _checked(truth: npt.ArrayLike, prediction: npt.ArrayLike) -> tuple[Floats, Floats]:
    true, predicted = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if true.shape != predicted.shape or true.ndim == 0 or true.size == 0:
        raise InputError(
            f"Truth and prediction must have one shape (..., n), n >= 1; got {true.shape} and {predicted.shape}."
        )
    if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
        raise InputError("Truth and prediction must be finite; NaN or infinity was given.")
    return true, predicted
