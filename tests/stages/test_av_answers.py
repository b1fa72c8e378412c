"""Scores of answers of each kind of task, against the plain metrics on drawn rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from mmssl.metrics.regression import ccc
from mmssl.stages.av_answers import IN_PERCENT, METRICS, NAMES, Answers


def answers_of(kind: str, count: int = 30) -> Answers:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for k in range(count):
        row: dict[str, Any] = {"id": f"c{k}", "given": "both"}
        if kind == "multilabel":
            row |= {"truth": [j for j in range(3) if k % (j + 2) == 0], "probabilities": rng.random(3).tolist()}
        elif kind == "regression":
            row |= {"truth": float(k), "prediction": k + float(rng.normal())}
        else:
            row |= {"truth": "ab"[k % 2], "prediction": "ab"[int(rng.integers(2))]}
        rows.append(row)
    classes = {"multilabel": ["x", "y", "z"], "regression": [], "classification": ["a", "b"]}[kind]
    parts = [Answers.of_rows(kind, classes, part) for part in (rows[:10], rows[10:])]
    return Answers.joined(parts)


def plain(kind: str, truth: np.ndarray, prediction: np.ndarray) -> float:
    if kind == "multilabel":
        return float(average_precision_score(truth, prediction))
    return float(ccc(truth, prediction)) if kind == "regression" else recall_score(truth, prediction, average="macro")


@pytest.mark.parametrize("kind", METRICS)
def test_metrics_of_drawn_rows(kind: str) -> None:
    found = answers_of(kind)
    first = next(iter(METRICS[kind]))
    assert found.value(first) == pytest.approx(plain(kind, found.truth, found.prediction))
    rows = np.random.default_rng(1).integers(0, 30, 40)
    wanted = plain(kind, found.truth[rows], found.prediction[rows])
    assert found.statistic(first)(rows) == pytest.approx(wanted)
    part = found.of_clips(["c7", "c6", "c2", "c12", "c3"])
    assert part.ids[1] == "c6"
    assert part.value(first) == pytest.approx(plain(kind, part.truth, part.prediction))
    assert set(METRICS[kind]) <= set(NAMES)
    assert (first in IN_PERCENT) == (kind != "regression")


def test_labels() -> None:
    found = answers_of("multilabel")
    assert found.truth.sum(0).tolist() == [15, 10, 8]
    assert found.chance() == pytest.approx((15 + 10 + 8) / 90)
    assert found.value("auc") == pytest.approx(roc_auc_score(found.truth, found.prediction))
    assert found.over_clips("map") == (None, None)
    assert list(found.details()["per_label_average_precision"]) == ["x", "y", "z"]
    assert answers_of("classification").chance() == 0.5
    assert set(answers_of("classification").details()) == {"confusion", "per_class_recall"}
    assert (answers_of("regression").chance(), answers_of("regression").details()) == (0.0, {})
