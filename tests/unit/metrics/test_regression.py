from __future__ import annotations

import numpy as np
import pytest

from mmssl.errors import InputError
from mmssl.metrics.regression import ccc, pearson, rmse

TRUTH = np.array([1.0, 2.0, 3.0, 4.0])


def test_ccc_of_worked_examples() -> None:
    assert ccc(TRUTH, TRUTH) == pytest.approx(1)
    assert ccc(TRUTH, 5 - TRUTH) == pytest.approx(-1)
    # variances 1.25 and 1.25, covariance 1.25, means apart by 2: 2.5 / (2.5 + 4)
    assert ccc(TRUTH, TRUTH + 2) == pytest.approx(2.5 / 6.5)
    # scale: variances 1.25 and 5, covariance 2.5, means apart by 2.5
    assert ccc(TRUTH, 2 * TRUTH) == pytest.approx(5 / (6.25 + 6.25))


def test_constants_are_defined() -> None:
    assert ccc(TRUTH, np.full(4, 2.5)) == 0
    assert ccc(np.ones(3), np.ones(3)) == 0
    assert pearson(TRUTH, np.ones(4)) == 0
    assert ccc([1.0], [1.0]) == 0


def test_pearson_ignores_scale_and_rmse_does_not() -> None:
    assert pearson(TRUTH, 3 * TRUTH - 1) == pytest.approx(1)
    assert rmse(TRUTH, TRUTH + 2) == pytest.approx(2)


def test_many_samples_at_once() -> None:
    predictions = np.stack([TRUTH, TRUTH + 2])
    for metric in (ccc, pearson, rmse):
        together = metric(np.stack([TRUTH, TRUTH]), predictions)
        assert together.tolist() == [float(metric(TRUTH, p)) for p in predictions]


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match=r"\(4,\) and \(3,\)"):
        ccc(TRUTH, TRUTH[:3])
    with pytest.raises(InputError, match="finite"):
        rmse(TRUTH, [1, 2, 3, float("nan")])
    with pytest.raises(InputError, match="n >= 1"):
        pearson([], [])
