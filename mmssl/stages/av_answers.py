"""What the models of recipes/av answered for test clips, and how well, for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mmssl.metrics.bootstrap import bootstrap_interval
from mmssl.metrics.classification import confusion_matrix, per_class_recall, uar, weighted_accuracy, weighted_f1
from mmssl.metrics.multilabel import LabelRanking, mean_over_labels
from mmssl.metrics.regression import ccc, pearson, rmse
from mmssl.stages.av_bootstrap import SAMPLES, Rows

METRICS: dict[str, dict[str, Any]] = {
    "classification": {"uar": uar, "wa": weighted_accuracy, "weighted_f1": weighted_f1},
    "multilabel": {"map": LabelRanking.average_precision, "auc": LabelRanking.roc_auc},
    "regression": {"ccc": ccc, "pearson": pearson, "rmse": rmse},
}
"""Kind of task -> its metrics, the one that ranks systems first."""
NAMES = {
    "uar": "UAR %",
    "wa": "WAR %",
    "weighted_f1": "WF1 %",
    "map": "mAP %",
    "auc": "mean AUC %",
    "ccc": "CCC",
    "pearson": "Pearson r",
    "rmse": "RMSE",
}
IN_PERCENT = ("uar", "wa", "weighted_f1", "map", "auc")


def samples_of(kind: str) -> int:
    """Draws of the bootstrap: ranking clips for hundreds of labels takes its time."""
    return 100 if kind == "multilabel" else SAMPLES


class Answers:
    """Truth and prediction of test clips.

    Args:
        kind: of the task.
        classes: names of classes or labels; empty for values.
        ids: of the clips.
        truth: (N,) class indices or values, or (N, C) bool of labels.
        prediction: the same, for labels (N, C) probabilities.
    """

    def __init__(
        self, kind: str, classes: Sequence[str], ids: Sequence[str], truth: np.ndarray, prediction: np.ndarray
    ) -> None:
        self.kind, self.classes, self.ids = kind, classes, list(ids)
        self.truth, self.prediction = truth, prediction

    @classmethod
    def of_rows(cls, kind: str, classes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Answers:
        """Of lines of predictions.jsonl."""
        ids = [row["id"] for row in rows]
        if kind == "multilabel":
            truth = np.zeros((len(rows), len(classes)), bool)
            for clip, row in zip(truth, rows, strict=True):
                clip[row["truth"]] = True
            return cls(kind, classes, ids, truth, np.asarray([row["probabilities"] for row in rows]))
        index = {name: k for k, name in enumerate(classes)}
        columns = [[index[row[key]] if classes else row[key] for row in rows] for key in ("truth", "prediction")]
        return cls(kind, classes, ids, np.asarray(columns[0]), np.asarray(columns[1]))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """All clips of several folds."""
        ids = [clip for part in parts for clip in part.ids]
        truth, prediction = (np.concatenate([getattr(p, name) for p in parts]) for name in ("truth", "prediction"))
        return cls(parts[0].kind, parts[0].classes, ids, truth, prediction)

    def of_clips(self, ids: Sequence[str]) -> Answers:
        """Those of these clips, in this order."""
        place = {clip: k for k, clip in enumerate(self.ids)}
        rows = [place[clip] for clip in ids]
        return Answers(self.kind, self.classes, ids, self.truth[rows], self.prediction[rows])

    @cached_property
    def ranking(self) -> LabelRanking:
        """Of clips with labels."""
        return LabelRanking(self.prediction, self.truth)

    def statistic(self, name: str) -> Callable[[Rows], float]:
        """A metric as a function of rows, which may come several times."""
        metric = METRICS[self.kind][name]
        if self.kind == "multilabel":
            count = len(self.ids)
            return lambda rows: mean_over_labels(metric(self.ranking, np.bincount(rows, minlength=count)))
        if self.kind == "regression":
            return lambda rows: float(metric(self.truth[rows], self.prediction[rows]))
        return lambda rows: float(metric(self.truth[rows], self.prediction[rows], len(self.classes)))

    def value(self, name: str) -> float:
        """A metric of all clips."""
        if self.kind == "classification":
            # classes that no clip of a fold has do not count
            return float(METRICS[self.kind][name](self.truth, self.prediction))
        return self.statistic(name)(np.arange(len(self.ids)))

    def over_clips(self, name: str) -> tuple[float | None, float | None]:
        """Interval from clips drawn anew; of labels there is that from speakers alone."""
        return (None, None) if self.kind == "multilabel" else bootstrap_interval(name, self.truth, self.prediction)

    def details(self) -> dict[str, Any]:
        """What results.json has of classes and labels."""
        if self.kind == "multilabel":
            found = self.ranking.average_precision().tolist()
            return {"per_label_average_precision": dict(zip(self.classes, found, strict=True))}
        if self.kind == "regression":
            return {}
        recalls = per_class_recall(self.truth, self.prediction, len(self.classes)).tolist()
        return {
            "confusion": confusion_matrix(self.truth, self.prediction, len(self.classes)).tolist(),
            "per_class_recall": dict(zip(self.classes, recalls, strict=True)),
        }

    def chance(self) -> float:
        """The first metric of guesses: 1 / classes, or the mean share of clips that have a label; 0 for values."""
        if self.kind == "multilabel":
            shares = self.truth.mean(0)
            return float(shares[shares > 0].mean()) if shares.any() else 0.0
        return 1 / len(self.classes) if self.classes else 0.0
