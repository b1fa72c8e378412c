from __future__ import annotations

import numpy as np
import pytest

from mmssl.errors import ConfigError, InputError
from mmssl.metrics.bootstrap import bootstrap_interval, fold_interval
from mmssl.metrics.classification import macro_f1, uar, weighted_accuracy
from mmssl.metrics.regression import ccc

GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.integers(4, size=200)
PREDICTION = np.where(GENERATOR.random(200) < 0.6, TRUTH, GENERATOR.integers(4, size=200))


@pytest.mark.parametrize(("name", "function"), [("uar", uar), ("wa", weighted_accuracy), ("macro_f1", macro_f1)])
def test_counts_give_the_same_interval_as_drawing_clips(name: str, function) -> None:
    fast = bootstrap_interval(name, TRUTH, PREDICTION, num_samples=4000)
    slow = bootstrap_interval(function, TRUTH, PREDICTION, num_samples=1000)
    assert fast == pytest.approx(slow, abs=0.012)
    assert fast[0] < function(TRUTH, PREDICTION) < fast[1]


def test_the_interval_of_accuracy_is_that_of_a_binomial() -> None:
    low, high = bootstrap_interval("wa", TRUTH, PREDICTION, num_samples=20000)
    share = (TRUTH == PREDICTION).mean()
    half = 1.96 * (share * (1 - share) / 200) ** 0.5
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.01)


def test_values_are_resampled_in_pairs() -> None:
    truth = GENERATOR.normal(size=300)
    prediction = truth + GENERATOR.normal(size=300)
    fast = bootstrap_interval("ccc", truth, prediction, num_samples=2000)
    slow = bootstrap_interval(lambda t, p: float(ccc(t, p)), truth, prediction, num_samples=500)
    assert fast == pytest.approx(slow, abs=0.03)
    assert 0.5 < fast[0] < ccc(truth, prediction) < fast[1] < 0.9


def test_it_depends_on_the_seed_alone() -> None:
    state = np.random.get_state()[1].copy()
    first = bootstrap_interval("uar", TRUTH, PREDICTION, seed=1)
    assert first == bootstrap_interval("uar", TRUTH, PREDICTION, seed=1)
    assert first != bootstrap_interval("uar", TRUTH, PREDICTION, seed=2)
    assert (np.random.get_state()[1] == state).all()


def test_a_higher_level_is_wider_and_perfection_has_no_width() -> None:
    narrow, wide = (bootstrap_interval("uar", TRUTH, PREDICTION, level=level) for level in (0.8, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval("uar", TRUTH, TRUTH) == (1.0, 1.0)


def test_interval_over_folds_is_students() -> None:
    # five folds: t = 2.776 for 95 %
    low, high = fold_interval([0.5, 0.6, 0.7, 0.6, 0.6])
    half = 2.7764451 * np.std([0.5, 0.6, 0.7, 0.6, 0.6], ddof=1) / 5**0.5
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half))
    assert fold_interval([0.5]) is None


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'uar'"):
        bootstrap_interval("uarr", TRUTH, PREDICTION)
    with pytest.raises(ConfigError, match="level"):
        bootstrap_interval("uar", TRUTH, PREDICTION, level=95)
    with pytest.raises(ConfigError, match="level"):
        fold_interval([1, 2], level=0)
    with pytest.raises(InputError, match="n >= 1"):
        bootstrap_interval("rmse", [1.0, 2.0], [1.0])
