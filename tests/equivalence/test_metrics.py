"""The metrics against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest

from mmssl.metrics.classification import confusion_matrix, macro_f1, uar, weighted_accuracy
from mmssl.metrics.regression import pearson, rmse


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learn(seed: int) -> None:
    from sklearn import metrics

    generator = np.random.default_rng(seed)
    # few clips of many classes: some classes are only true, only predicted, or neither
    truth, prediction = generator.integers(8, size=(2, 12))
    assert uar(truth, prediction) == pytest.approx(metrics.balanced_accuracy_score(truth, prediction))
    assert weighted_accuracy(truth, prediction) == pytest.approx(metrics.accuracy_score(truth, prediction))
    assert macro_f1(truth, prediction) == pytest.approx(metrics.f1_score(truth, prediction, average="macro"))
    theirs = metrics.confusion_matrix(truth, prediction, labels=range(8))
    assert (confusion_matrix(truth, prediction, 8) == theirs).all()


def test_regression_equals_scipy_and_scikit_learn() -> None:
    from scipy.stats import pearsonr
    from sklearn.metrics import root_mean_squared_error

    truth, prediction = np.random.default_rng(0).normal(size=(2, 50))
    assert pearson(truth, prediction) == pytest.approx(pearsonr(truth, prediction).statistic)
    assert rmse(truth, prediction) == pytest.approx(root_mean_squared_error(truth, prediction))
