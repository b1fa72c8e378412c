from __future__ import annotations

import numpy as np
import pytest

from mmssl.errors import InputError
from mmssl.metrics.classification import (
    confusion_matrix,
    macro_f1,
    macro_f1_from,
    per_class_recall,
    uar,
    uar_from,
    weighted_accuracy,
)

TRUTH = [0, 0, 0, 0, 1, 1, 2]
PREDICTION = [0, 0, 0, 1, 1, 0, 2]


def test_worked_example() -> None:
    assert confusion_matrix(TRUTH, PREDICTION).tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert per_class_recall(TRUTH, PREDICTION).tolist() == [0.75, 0.5, 1.0]
    assert uar(TRUTH, PREDICTION) == pytest.approx(0.75)
    assert weighted_accuracy(TRUTH, PREDICTION) == pytest.approx(5 / 7)
    assert macro_f1(TRUTH, PREDICTION) == pytest.approx((0.75 + 0.5 + 1) / 3)


def test_a_class_without_clips_does_not_count() -> None:
    assert uar(TRUTH, PREDICTION, num_classes=6) == pytest.approx(0.75)
    assert macro_f1(TRUTH, PREDICTION, num_classes=6) == pytest.approx(0.75)
    assert np.isnan(per_class_recall(TRUTH, PREDICTION, num_classes=4)[3])
    # predicted but never true: no recall to average, an F1 of 0
    assert uar([0, 0], [0, 1]) == pytest.approx(0.5)
    assert macro_f1([0, 0], [0, 1]) == pytest.approx((2 / 3) / 2)


def test_many_matrices_at_once() -> None:
    counts = np.stack([confusion_matrix(TRUTH, PREDICTION), np.diag([1, 0, 2])])
    np.testing.assert_allclose(uar_from(counts), [0.75, 1.0])
    np.testing.assert_allclose(macro_f1_from(counts), [0.75, 1.0])


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([], [], "n >= 1"),
        ([0, 1], [0], r"\(2,\) and \(1,\)"),
        ([0.0, 1.0], [0, 1], "integer class indices"),
        ([0, -1], [0, 1], "-1 to 1"),
    ],
)
def test_mistakes_are_named(truth: list, prediction: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        uar(truth, prediction)
    with pytest.raises(InputError, match="0 to 1"):
        uar([0, 2], [0, 1], num_classes=2)
