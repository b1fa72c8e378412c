from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from mmssl.errors import InputError
from mmssl.metrics.classification import uar
from mmssl.probing.compare import kendall_tau, mcnemar, permutation_test


def test_mcnemar_is_the_binomial_sum() -> None:
    truth = np.zeros(20, dtype=int)
    one, other = truth.copy(), truth.copy()
    other[:9] = 1
    one[9:11] = 1
    expected = 2 * sum(comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(truth, one, other) == pytest.approx(expected)
    assert mcnemar(truth, other, one) == pytest.approx(expected)
    assert mcnemar(truth, one, one) == 1.0


def test_permutation_agrees_with_all_exchanges() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    one, other = np.array([0, 0, 0, 1, 1, 1, 0, 1]), np.array([1, 0, 1, 1, 0, 1, 1, 1])
    seen = abs(uar(truth, one) - uar(truth, other))
    hits = []
    for swap in product((False, True), repeat=len(truth)):
        a, b = np.where(swap, other, one), np.where(swap, one, other)
        hits.append(abs(uar(truth, a) - uar(truth, b)) >= seen - 1e-12)
    assert permutation_test(truth, one, other, num_samples=20_000) == pytest.approx(np.mean(hits), abs=0.015)


def test_permutation_of_values() -> None:
    generator = np.random.default_rng(0)
    truth = generator.standard_normal(200)
    near, far = truth + 0.1 * generator.standard_normal(200), truth + generator.standard_normal(200)
    assert permutation_test(truth, near, far, classes=False, num_samples=500) < 0.01
    assert permutation_test(truth, near, near, classes=False, num_samples=200) == 1.0


def test_rankings() -> None:
    assert kendall_tau([0.1, 0.2, 0.3], [1, 2, 3]) == 1
    assert kendall_tau([0.1, 0.2, 0.3], [3, 2, 1]) == -1
    assert np.isnan(kendall_tau([0.1], [0.2]))
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="got 2 and 3"):
        kendall_tau([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="must be"):
        mcnemar([0, 1], [0], [1])
