"""Stage 4 of recipes/av: fusion and head on frozen features, with sound alone, pictures alone, and both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.data.manifest import read_manifest
from mmssl.errors import DataError
from mmssl.stages.av_features import AvClips, AvStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO
from mmssl.stages.av_prepare import labels_of
from mmssl.stages.av_view_jobs import ViewJob, view_jobs
from mmssl.stages.context import Context
from mmssl.stages.fold_jobs import put_in_place, run_jobs, sealed
from mmssl.stages.probe import part
from mmssl.stages.utterance_prepare import MANIFEST

Target = int | float | tuple[int, ...]
"""Of a clip: its class, its value, or all of its labels."""
MODEL = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Job(ViewJob):
    """One model of whole clips to train.

    Attributes:
        kind: of the task: "classification", "multilabel" or "regression".
        targets: id -> class index, indices of all labels, or value.
        classes: names of classes or labels; empty for values.
        head: name and kwargs.
    """

    kind: str
    targets: Mapping[str, Target]
    classes: Sequence[str]
    head: Mapping[str, Any]


def train(context: Context) -> str:
    """Train what is not finished; remove what belongs to models that are no more.

    Raises:
        ConfigError: a view or fusion that an encoder does not allow.
        DataError: a fold has an empty part.
    """
    done, kept = run_jobs(context, _jobs(context), run_job)
    return f"{done} models trained, {kept} kept"


def targets_of(context: Context) -> tuple[list[str], dict[str, Target]]:
    """Names of the classes or labels, and each clip's class index, the indices of its labels, or its value."""
    label, kind = context.config["label"], context.config["task"]["kind"]
    clips = read_manifest(context.data / MANIFEST)
    missing = [clip.id for clip in clips if clip.labels.get(label) is None]
    if missing:
        raise DataError(
            f"{len(missing)} clips have no label {label!r}, among them {missing[0]!r}: run stage 1 with label={label}."
        )
    if kind == "regression":
        return [], {clip.id: float(clip.labels[label]) for clip in clips}
    names = {clip.id: labels_of(clip, label, kind) for clip in clips}
    classes = sorted({name for own in names.values() for name in own})
    place = {name: k for k, name in enumerate(classes)}
    if kind == "multilabel":
        return classes, {clip: tuple(sorted({place[name] for name in own})) for clip, own in names.items()}
    return classes, {clip: place[own[0]] for clip, own in names.items()}


def _jobs(context: Context) -> list[Job]:
    config = context.config
    classes, targets = targets_of(context)
    jobs = []
    for fields in view_jobs(context):
        fold = fields["fold"]
        job = Job(
            **fields,
            kind=config["task"]["kind"],
            targets={clip: targets[clip] for clip in (*fold.train, *fold.dev, *fold.test)},
            classes=classes,
            head=part(config["head"]),
        )
        jobs.append(sealed(job))
    return jobs


def run_job(job: Job) -> None:
    """Train one model on one fold and put its folder into place."""
    from safetensors.torch import save_file

    task, predictions, record = fit_job(job)

    def save(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in task.state_dict().items()}, folder / MODEL)

    put_in_place(job, record, predictions, save)


def fit_job(job: Job) -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    """The trained task, one row for each test clip and each kind of input, and the record.

    Learning rate and number of steps are those that the development part likes best; with `train.refit` the model is
    then trained once more on both parts. Test clips are predicted once; a model of both streams also with one of them
    taken away.
    """
    from mmssl.training.fit import predict
    from mmssl.training.sweep import sweep

    settings = {k: v for k, v in job.train.items() if k not in ("class_weights", "refit", "engine")}
    rates = settings.pop("learning_rates")
    common = {"device": job.device, **settings}
    store = job.store()
    train, dev = (_clips(job, store, ids) for ids in (job.fold.train, job.fold.dev))
    result = sweep(_builder(job, store, train), train.batches(), dev.batches(), learning_rates=rates, **common)
    task: Any = result.task
    if job.train["refit"]:
        both = _clips(job, store, (*job.fold.train, *job.fold.dev))
        steps = max(1, round(result.best.best_step * len(both) / len(train)))
        # one evaluation, after the last step: there is nothing to choose from
        once = {**common, "max_steps": steps, "eval_every": steps, "patience": None}
        build = _builder(job, store, both)
        task = sweep(build, both.batches(), dev.batches(), learning_rates=[result.learning_rate], **once).task
    rows: list[dict[str, Any]] = []
    scores: dict[str, Any] = {}
    for given in (job.view, *((AUDIO, VIDEO) if job.view == BOTH else ())):
        only = None if given == job.view else [given]
        test = _clips(job, store, job.fold.test, only)
        if not len(test):
            continue
        answers, truth = predict(task, test.batches(), batch_size=settings["batch_size"], device=job.device)
        scores[given] = task.metrics(answers, truth)
        rows += _rows(job, test.ids, answers, truth, given)
    weights = task.interface.layer_weights()
    record = {
        "name": job.fold.name,
        "num_train": len(train),
        "num_dev": len(dev),
        "num_test": len(job.fold.test),
        "learning_rate": result.learning_rate,
        "sweep": result.table,
        "metrics": scores[job.view],
        "layer_weights": {name: values.tolist() for name, values in weights.items()},
        "history": result.best.history,
    }
    return task.cpu(), rows, record


def _clips(job: Job, store: AvStore, ids: Sequence[str], only: Sequence[str] | None = None) -> AvClips:
    return AvClips(store, ids, job.targets, job.view, only, len(job.classes) if job.kind == "multilabel" else None)


def _builder(job: Job, store: AvStore, train: AvClips) -> Callable[[], nn.Module]:
    """What builds the task for these training clips, whose statistics and class sizes it takes over."""
    from mmssl.downstream.heads import build_head
    from mmssl.downstream.multilabel import UtteranceMultiLabel
    from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression, balanced_class_weights

    fused = job.fusion_builder(store, train.ids)
    weighted = job.kind == "classification" and job.train["class_weights"]
    weights = balanced_class_weights(train.targets, len(job.classes)) if weighted else None

    def build() -> nn.Module:
        fusion = fused()
        head = build_head(job.head["name"], fusion.output_size, len(job.classes) or 1, **job.head["kwargs"])
        if job.kind == "regression":
            return UtteranceRegression(fusion, head, loss="ccc")
        if job.kind == "multilabel":
            return UtteranceMultiLabel(fusion, head)
        return UtteranceClassification(fusion, head, weights)

    return build


def _rows(job: Job, ids: list[str], answers: Tensor, truth: Tensor, given: str) -> list[dict[str, Any]]:
    if job.kind == "regression":
        values = answers.reshape(len(ids), -1)[:, 0].tolist()
        pairs = zip(ids, truth.tolist(), values, strict=True)
        return [{"id": i, "given": given, "truth": t, "prediction": v} for i, t, v in pairs]
    if job.kind == "multilabel":
        # hundreds of labels: names stand in results.json
        return [
            {"id": clip, "given": given, "truth": row.nonzero()[:, 0].tolist(), "probabilities": _short(shares)}
            for clip, row, shares in zip(ids, truth, answers, strict=True)
        ]
    classes, chosen = job.classes, torch.argmax(answers, -1).tolist()
    return [
        {
            "id": clip,
            "given": given,
            "truth": classes[target],
            "prediction": classes[best],
            "probabilities": {n: round(v, 6) for n, v in zip(classes, shares, strict=True)},
        }
        for clip, target, best, shares in zip(ids, truth.tolist(), chosen, answers.tolist(), strict=True)
    ]


def _short(shares: Tensor) -> list[float]:
    """Five digits that count, so that small probabilities keep their order."""
    return [float(f"{value:.5g}") for value in shares.tolist()]
