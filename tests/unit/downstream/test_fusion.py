from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from mmssl.downstream.fusion import ScoreFusion, quality_table
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.calibration import cllr, min_cllr
from mmssl.metrics.verification import eer


def two_systems(number: int = 20000, seed: int = 0):
    """Two scores with independent errors, of other scales than log-likelihood ratios."""
    generator = np.random.default_rng(seed)
    labels = generator.random(number) < 0.2
    signs = np.where(labels, 1.0, -1.0)[:, None]
    return (generator.normal(size=(number, 2)) + signs) * [0.01, 30.0] + [0.3, -7.0], labels


def test_one_score_is_calibrated() -> None:
    scores, labels = two_systems()
    fusion = ScoreFusion().fit(scores[:10000, 0], labels[:10000])
    llrs = fusion.llrs(scores[10000:, 0])
    assert cllr(llrs, labels[10000:]) == pytest.approx(min_cllr(llrs, labels[10000:]), abs=0.01)
    # two Gaussians at -1 and 1: the ratio is 2 x
    assert fusion.weights[0] * 0.01 == pytest.approx(2, rel=0.05)


def test_fusion_is_the_sum_of_independent_ratios() -> None:
    scores, labels = two_systems()
    fusion = ScoreFusion(prior=0.05).fit(scores[:10000], labels[:10000])
    x = (scores - [0.3, -7.0]) / [0.01, 30.0]
    np.testing.assert_allclose(fusion.weights * [0.01, 30.0], 2, rtol=0.15)
    fused = fusion.llrs(scores[10000:])
    assert eer(fused, labels[10000:]) < 0.7 * eer(scores[10000:, 0], labels[10000:])
    assert np.corrcoef(fused, x[10000:].sum(1))[0, 1] > 0.999


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_the_fit_is_the_least_weighted_loss(prior: float) -> None:
    scores, labels = two_systems(400)
    x = (scores - scores.mean(0)) / scores.std(0)

    def loss(w: np.ndarray) -> float:
        odds = x @ w[:2] + w[2]
        t = np.logaddexp(0, -odds[labels]).mean()
        n = np.logaddexp(0, odds[~labels]).mean()
        return prior * t + (1 - prior) * n + 0.5e-6 * float(w[:2] @ w[:2])

    best = minimize(loss, np.zeros(3), tol=1e-12).x
    llrs = ScoreFusion(prior).fit(scores, labels).llrs(scores)
    np.testing.assert_allclose(llrs, x @ best[:2] + best[2] - np.log(prior / (1 - prior)), atol=0.02)


def test_quality_measures_help_where_scores_depend_on_them() -> None:
    generator = np.random.default_rng(1)
    durations = generator.uniform(1, 10, size=200)
    first, second = generator.integers(0, 200, size=(2, 20000))
    labels = generator.random(20000) < 0.3
    # short clips score low, whoever speaks
    scores = np.where(labels, 1.0, 0.0) + 0.3 * generator.normal(size=20000)
    scores = scores + np.log(np.minimum(durations[first], durations[second]))
    table = quality_table(scores, {"duration": np.log(durations)}, first, second)
    assert table.shape == (20000, 3)
    assert (table[:, 1] <= table[:, 2]).all()
    assert (table == quality_table(scores, {"duration": np.log(durations)}, second, first)).all()
    fusion = ScoreFusion().fit(table[:10000], labels[:10000])
    assert eer(fusion.llrs(table[10000:]), labels[10000:]) < 0.5 * eer(scores[10000:], labels[10000:])


def test_separable_and_constant_scores_stay_finite() -> None:
    fusion = ScoreFusion().fit([[1.0, 5], [2, 5], [3, 5], [4, 5]], [0, 0, 1, 1])
    llrs = fusion.llrs([[1.0, 5], [4, 5]])
    assert np.isfinite(llrs).all()
    assert llrs[0] < 0 < llrs[1]


def test_mistakes_are_named() -> None:
    scores, labels = two_systems(50)
    with pytest.raises(InputError, match="call fit"):
        ScoreFusion().llrs(scores)
    with pytest.raises(InputError, match="takes 2 scores per trial, got 1"):
        ScoreFusion().fit(scores, labels).llrs(scores[:, 0])
    with pytest.raises(InputError, match="both classes"):
        ScoreFusion().fit(scores, np.ones(50))
    with pytest.raises(InputError, match="must be finite"):
        ScoreFusion().fit(scores * np.nan, labels)
    with pytest.raises(ConfigError, match="prior"):
        ScoreFusion(prior=1.0)
    with pytest.raises(InputError, match="'duration' must be one value per clip"):
        quality_table([1.0], {"duration": np.ones((2, 2))}, [0], [1])
    with pytest.raises(InputError, match="There are 2 scores for 1 trials"):
        quality_table([1.0, 2.0], {"duration": np.ones(2)}, [0], [1])
