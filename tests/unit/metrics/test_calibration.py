from __future__ import annotations

import math

import numpy as np
import pytest

from mmssl.errors import ConfigError, InputError
from mmssl.metrics.calibration import act_dcf, calibration_metrics, cllr, min_cllr
from mmssl.metrics.verification import min_dcf


def test_scores_that_say_nothing_cost_one_bit() -> None:
    assert cllr([0, 0, 0], [1, 0, 0]) == pytest.approx(1)
    assert min_cllr([7, 7, 7], [1, 0, 0]) == pytest.approx(1)
    assert min_cllr([0, 1, 2, 3], [1, 1, 0, 0]) == pytest.approx(1)


def test_certainty_costs_nothing_where_it_is_right_and_everything_where_not() -> None:
    inf = math.inf
    assert cllr([inf, -inf], [1, 0]) == 0
    assert cllr([inf, inf, -inf], [1, 0, 0]) == inf
    assert min_cllr([1, 0], [1, 0]) == 0


def test_perfect_calibration_leaves_nothing_to_gain() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60000) % 2 == 0
    # two Gaussians a distance 2 apart with variance 1: the log-likelihood ratio is 2 x
    x = generator.normal(size=60000) + np.where(labels, 1.0, -1.0)
    assert cllr(2 * x, labels) == pytest.approx(min_cllr(2 * x, labels), abs=0.003)
    assert act_dcf(2 * x, labels, 0.05) == pytest.approx(min_dcf(x, labels, 0.05), abs=0.01)
    assert cllr(6 * x, labels) > cllr(2 * x, labels) + 0.05
    assert act_dcf(2 * x + 4, labels, 0.05) > 2 * act_dcf(2 * x, labels, 0.05)


def test_all_at_once_are_the_same_numbers() -> None:
    llrs, labels = [3, 0.5, -1, -4, 8], [1, 1, 0, 0, 0]
    found = calibration_metrics(llrs, labels, priors=(0.01, 0.3))
    assert found == {
        "cllr": cllr(llrs, labels),
        "min_cllr": min_cllr(llrs, labels),
        "act_dcf_p01": act_dcf(llrs, labels, 0.01),
        "act_dcf_p30": act_dcf(llrs, labels, 0.3),
    }


def test_a_score_at_the_threshold_is_accepted() -> None:
    assert act_dcf([0.0, -1.0], [1, 0], 0.5) == 0
    assert act_dcf([0.0, -1.0], [0, 1], 0.5) == 2


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="target and non-target"):
        cllr([1, 2], [1, 1])
    with pytest.raises(InputError, match="target and non-target"):
        min_cllr([1, 2], [0, 0])
    with pytest.raises(ConfigError, match="prior"):
        act_dcf([1, 2], [1, 0], 1.0)
