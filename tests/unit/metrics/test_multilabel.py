"""Metrics of labels against scikit-learn, ties and weights included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from mmssl.errors import InputError
from mmssl.metrics.multilabel import LabelRanking, mean_average_precision, mean_roc_auc
from mmssl.metrics.ranking import average_precision, roc_auc


def case(seed: int, clips: int = 40, labels: int = 6, levels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Scores of few levels, so that many are tied."""
    rng = np.random.default_rng(seed)
    truth = rng.random((clips, labels)) < 0.3
    truth[0], truth[1] = True, False
    return rng.integers(0, levels, (clips, labels)) / levels + 0.2 * truth, truth


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([2, 7, 1000]))
def test_equal_to_scikit_learn(seed: int, levels: int) -> None:
    scores, truth = case(seed, levels=levels)
    ranking = LabelRanking(scores, truth)
    for k in range(truth.shape[1]):
        column = scores[:, k], truth[:, k]
        assert ranking.average_precision()[k] == pytest.approx(average_precision_score(column[1], column[0]))
        assert ranking.average_precision()[k] == pytest.approx(average_precision(*column))
        assert ranking.roc_auc()[k] == pytest.approx(roc_auc(*column))
    assert mean_average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    assert mean_roc_auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


def test_weights_are_repetitions() -> None:
    scores, truth = case(3)
    rng = np.random.default_rng(0)
    ranking = LabelRanking(scores, truth)
    for _ in range(5):
        rows = rng.integers(0, len(scores), len(scores))
        weights = np.bincount(rows, minlength=len(scores))
        drawn = LabelRanking(scores[rows], truth[rows])
        np.testing.assert_allclose(ranking.average_precision(weights), drawn.average_precision())
        np.testing.assert_allclose(ranking.roc_auc(weights), drawn.roc_auc())


def test_labels_that_say_nothing_are_left_out() -> None:
    scores, truth = case(1, labels=3)
    truth[:, 1], truth[:, 2] = False, True
    ranking = LabelRanking(scores, truth)
    assert np.isnan(ranking.average_precision()).tolist() == [False, True, False]
    assert np.isnan(ranking.roc_auc()).tolist() == [False, True, True]
    assert mean_average_precision(scores, truth) == pytest.approx((ranking.average_precision()[0] + 1) / 2)
    assert np.isnan(mean_average_precision(scores[:, 1:2], truth[:, 1:2]))


def test_bad_input() -> None:
    scores, truth = case(0)
    with pytest.raises(InputError, match=r"\(N, C\)"):
        LabelRanking(scores[0], truth[0])
    with pytest.raises(InputError, match="NaN"):
        LabelRanking(np.full_like(scores, np.nan), truth)
    with pytest.raises(InputError, match="NaN"):
        LabelRanking(scores, truth * 2)
    with pytest.raises(InputError, match="weights"):
        LabelRanking(scores, truth).roc_auc(np.ones(3))
