"""Train one probe: the sweep on train and dev, then the test clips once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmssl.downstream.tasks import balanced_class_weights
from mmssl.probing.sweep import sweep_heads
from mmssl.stages.clip_features import ClipFeatures
from mmssl.stages.exporting import build_task
from mmssl.training.fit import predict

if TYPE_CHECKING:
    from mmssl.stages.utterance_train import Job


@dataclass(frozen=True)
class Outcome:
    """A trained probe.

    Attributes:
        task: with the selected weights, on the CPU.
        predictions: one row per test clip: id, truth, prediction and, for classes, probabilities.
        record: of result.json.
    """

    task: nn.Module
    predictions: list[dict[str, Any]]
    record: dict[str, Any]


def fit_probe(job: Job) -> Outcome:
    """Sweep the learning rate on train and dev, and predict the test clips with what dev selected.

    All rates are trained as one batched computation where the probe sees one row per clip and its parts allow it, with
    the results of the ordinary trainer but for rounding; `train.engine=lightning` always takes the ordinary one.

    With `train.refit` the selected learning rate is run once more from new weights on train and dev together, for as
    many passes over the clips as the selected run had; nothing is selected in that run.
    """
    settings = dict(job.train)
    weighted, refit = settings.pop("class_weights"), settings.pop("refit")
    rates = settings.pop("learning_rates")
    train, dev, test = (_features(job, getattr(job.fold, part)) for part in ("train", "dev", "test"))
    common = {"device": job.device, **settings}
    result = sweep_heads(_builder(job, train, weighted), train, dev, learning_rates=rates, **common)
    trained: Any = result.task
    if refit:
        both = _features(job, (*job.fold.train, *job.fold.dev))
        steps = max(1, round(result.best.best_step * len(both) / len(train)))
        # one evaluation, after the last step: there is nothing to choose from
        once = {**common, "max_steps": steps, "eval_every": steps, "patience": None}
        again = sweep_heads(_builder(job, both, weighted), both, dev, learning_rates=[result.learning_rate], **once)
        trained = again.task
    answers, truth = predict(trained, test, batch_size=settings["batch_size"], device=job.device)
    task: Any = trained.cpu()
    layer_weights = task.interface.layer_weights()
    record = {
        "name": job.fold.name,
        "num_train": len(train),
        "num_dev": len(dev),
        "num_test": len(test),
        "test_groups": list(job.test_groups),
        "learning_rate": result.learning_rate,
        "sweep": result.table,
        "metrics": task.metrics(answers, truth),
        "layer_weights": None if layer_weights is None else layer_weights.tolist(),
        "history": result.best.history,
    }
    return Outcome(task, _rows(test.ids, answers, truth, list(job.description["classes"])), record)


def _features(job: Job, ids: Sequence[str]) -> ClipFeatures:
    return ClipFeatures(job.store, ids, job.targets, job.description["stream"], job.statistics, job.pooled)


def _builder(job: Job, train: ClipFeatures, weighted: bool) -> Callable[[], nn.Module]:
    """What builds the task for these training clips, whose statistics and class sizes it takes over."""
    moments = train.moments() if job.standardize else None
    num_classes = len(job.description["classes"])
    weights = balanced_class_weights(train.targets, num_classes) if num_classes and weighted else None

    def build() -> nn.Module:
        # the parts were chosen by the user's own command line
        task: Any = build_task(job.description, trust_targets=True)
        if moments is not None:
            task.interface.set_statistics(*moments)
        if weights is not None:
            task.class_weights = weights
        return task

    return build


def _rows(ids: list[str], answers: Tensor, truth: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    if not classes:
        values = answers.reshape(len(ids), -1)[:, 0].tolist()
        return [{"id": i, "truth": t, "prediction": v} for i, t, v in zip(ids, truth.tolist(), values, strict=True)]
    rows = []
    for clip, target, probabilities in zip(ids, truth.tolist(), answers, strict=True):
        shares = {name: round(value, 6) for name, value in zip(classes, probabilities.tolist(), strict=True)}
        rows.append(
            {
                "id": clip,
                "truth": classes[target],
                "prediction": classes[int(torch.argmax(probabilities))],
                "probabilities": shares,
            }
        )
    return rows
