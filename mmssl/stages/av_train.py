"""Stage 4 of recipes/av: fusion and head on frozen features, with sound alone, pictures alone, and both."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_features import AvClips, AvStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO, VIEWS
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json, write_text
from mmssl.stages.probe import STANDARDIZED, part
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.stages.workers import run_all

RESULT, PREDICTIONS, MODEL = "result.json", "predictions.jsonl", "model.safetensors"
# a single stream is joined with nothing
_ALONE = {"name": "concat", "kwargs": {}}


@dataclass(frozen=True)
class Job:
    """One model to train: plain values, so that another process can do it.

    Attributes:
        folder: of the finished fold.
        root: of the recipe.
        record: of the encoder in av_features.json.
        view: what of a clip is given: "audio", "video" or "both".
        fold: ids.
        targets: id -> class index or value.
        classes: names; empty for values.
        fusion, head: name and kwargs.
        interface: of each stream.
        standardize: with statistics of the training clips.
        train: the configuration's section.
        device: torch device.
        fingerprint: of all of the above.
    """

    folder: Path
    root: Path
    record: Mapping[str, Any]
    view: str
    fold: Fold
    targets: Mapping[str, int | float]
    classes: Sequence[str]
    fusion: Mapping[str, Any]
    head: Mapping[str, Any]
    interface: str
    standardize: bool
    train: Mapping[str, Any]
    device: str
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Encoder, view and fold, for messages."""
        return f"{self.record['title']}, {self.view}, {self.fold.name}"


def train(context: Context) -> str:
    """Train what is not finished; remove what belongs to models that are no more.

    Raises:
        ConfigError: a view or fusion that an encoder does not allow.
        DataError: a fold has an empty part.
    """
    jobs = _jobs(context)
    todo = [job for job in jobs if not _finished(job)]
    kept = {job.folder for job in jobs} - {job.folder for job in todo}
    for folder in context.exp_dir.glob("systems/*/folds/*"):
        if folder not in kept:
            shutil.rmtree(folder)

    def finished(index: int) -> None:
        record = read_json(todo[index].folder / RESULT)
        scores = ", ".join(f"{k} {v:.3f}" for k, v in record["metrics"].items())
        log.info("   %s: learning rate %g, test %s", todo[index].name, record["learning_rate"], scores)

    run_all(run_job, todo, context.nj if context.ngpu == 0 else 1, finished)
    return f"{len(todo)} models trained, {len(kept)} kept"


def views_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """What is asked for and what an encoder takes."""
    wanted = config["streams"]
    wrong = [view for view in wanted if view not in VIEWS]
    if not wanted or wrong:
        raise ConfigError(f"streams must be a list of {', '.join(VIEWS)}, got {wanted}.")
    return [view for view in wanted if record["takes"] in (BOTH, view)]


def system_name(encoder: str, view: str) -> str:
    """Folder of the models of an encoder and a view."""
    return f"{encoder}-{view}"


def targets_of(context: Context) -> tuple[list[str], dict[str, int | float]]:
    """Class names, and each clip's class index or value."""
    label, kind = context.config["label"], context.config["task"]["kind"]
    clips = read_manifest(context.data / MANIFEST)
    missing = [clip.id for clip in clips if clip.labels.get(label) is None]
    if missing:
        raise DataError(
            f"{len(missing)} clips have no label {label!r}, among them {missing[0]!r}: run stage 1 with label={label}."
        )
    if kind == "regression":
        return [], {clip.id: float(clip.labels[label]) for clip in clips}
    classes = sorted({str(clip.labels[label]) for clip in clips})
    return classes, {clip.id: classes.index(str(clip.labels[label])) for clip in clips}


def _jobs(context: Context) -> list[Job]:
    config = context.config
    classes, targets = targets_of(context)
    folds = read_folds(context.data / FOLDS)
    interface = config["interface"]["_target_"] if not config["features"]["standardize"] else STANDARDIZED
    jobs = []
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        store = AvStore(context.folder, record)
        for view in views_of(config, record):
            ids = store.ids(view)
            for fold in folds:
                kept = _present(fold, ids, f"{record['title']}, {view}")
                own = {clip: targets[clip] for clip in (*kept.train, *kept.dev, *kept.test)}
                job = Job(
                    folder=context.fold_dir(system_name(encoder, view), fold.name),
                    root=context.folder,
                    record=record,
                    view=view,
                    fold=kept,
                    targets=own,
                    classes=classes,
                    fusion=_fusion_of(config, store, view, record),
                    head=part(config["head"]),
                    interface=interface,
                    standardize=config["features"]["standardize"],
                    train=config["train"],
                    device=context.device(),
                )
                depends = asdict(job) | {"folder": None, "root": None, "device": None}
                jobs.append(Job(**{**job.__dict__, "fingerprint": digest(depends)}))
    return jobs


def _fusion_of(config: Mapping[str, Any], store: AvStore, view: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fusion of a view: the configured one, or none of a single stream; HiCMAE's only where its streams are."""
    streams = set(store.specs(view))
    if view != BOTH or len(streams) == 1:
        return _ALONE
    if config["fusion"]["_target_"].endswith("HicmaeFusion") and streams != {AUDIO, VIDEO, "fusion"}:
        if record["role"] == "main":
            raise ConfigError(
                f"fusion=hicmae joins the streams audio, video and fusion; {record['title']} has "
                f"{', '.join(sorted(streams))}. Choose fusion=concat, gated, cross_attention or routed."
            )
        return _ALONE
    return part(config["fusion"])


def _present(fold: Fold, present: set[str], what: str) -> Fold:
    parts = {name: tuple(c for c in getattr(fold, name) if c in present) for name in ("train", "dev", "test")}
    for name, ids in parts.items():
        if not ids:
            raise DataError(
                f"Fold {fold.name!r} has no {name} clip for {what}: none of its {len(getattr(fold, name))} clips has "
                "that. Choose other streams=[...], or another protocol."
            )
    return Fold(fold.name, **parts, notes=fold.notes)


def _finished(job: Job) -> bool:
    path = job.folder / RESULT
    return path.is_file() and read_json(path)["fingerprint"] == job.fingerprint


def run_job(job: Job) -> None:
    """Train one model on one fold and put its folder into place."""
    from safetensors.torch import save_file

    task, predictions, record = fit_job(job)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = job.folder.parent / f".{job.folder.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file({k: v.contiguous() for k, v in task.state_dict().items()}, temporary / MODEL)
        rows = (json.dumps(row, ensure_ascii=False) for row in predictions)
        write_text(temporary / PREDICTIONS, "".join(f"{row}\n" for row in rows))
        write_json(temporary / RESULT, {"fingerprint": job.fingerprint, **record})
        temporary.rename(job.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    store = AvStore(job.root, job.record)
    train, dev = (AvClips(store, ids, job.targets, job.view) for ids in (job.fold.train, job.fold.dev))
    result = sweep(_builder(job, store, train), train.batches(), dev.batches(), learning_rates=rates, **common)
    task: Any = result.task
    if job.train["refit"]:
        both = AvClips(store, (*job.fold.train, *job.fold.dev), job.targets, job.view)
        steps = max(1, round(result.best.best_step * len(both) / len(train)))
        # one evaluation, after the last step: there is nothing to choose from
        once = {**common, "max_steps": steps, "eval_every": steps, "patience": None}
        build = _builder(job, store, both)
        task = sweep(build, both.batches(), dev.batches(), learning_rates=[result.learning_rate], **once).task
    rows: list[dict[str, Any]] = []
    scores: dict[str, Any] = {}
    for given in (job.view, *((AUDIO, VIDEO) if job.view == BOTH else ())):
        only = None if given == job.view else [given]
        test = AvClips(store, job.fold.test, job.targets, job.view, only)
        if not len(test):
            continue
        answers, truth = predict(task, test.batches(), batch_size=settings["batch_size"], device=job.device)
        scores[given] = task.metrics(answers, truth)
        rows += _rows(test.ids, answers, truth, job.classes, given)
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


def _builder(job: Job, store: AvStore, train: AvClips) -> Callable[[], nn.Module]:
    """What builds the task for these training clips, whose statistics and class sizes it takes over."""
    from mmssl.downstream.heads import build_head
    from mmssl.downstream.tasks import UtteranceClassification, UtteranceRegression, balanced_class_weights
    from mmssl.interfaces.fusion import build_fusion

    specs = store.specs(job.view)
    moments = store.moments(train.ids, job.view) if job.standardize else {}
    weighted = bool(job.classes) and job.train["class_weights"]
    weights = balanced_class_weights(train.targets, len(job.classes)) if weighted else None

    def build() -> nn.Module:
        fusion: Any = build_fusion(job.fusion["name"], specs, interface=job.interface, **job.fusion["kwargs"])
        for name, values in moments.items():
            # HiCMAE's head takes its fusion stream as it is, and norms it
            if hasattr(fusion.interfaces[name], "set_statistics"):
                fusion.interfaces[name].set_statistics(*values)
        head = build_head(job.head["name"], fusion.output_size, len(job.classes) or 1, **job.head["kwargs"])
        if not job.classes:
            return UtteranceRegression(fusion, head, loss="ccc")
        return UtteranceClassification(fusion, head, weights)

    return build


def _rows(ids: list[str], answers: Tensor, truth: Tensor, classes: Sequence[str], given: str) -> list[dict[str, Any]]:
    if not classes:
        values = answers.reshape(len(ids), -1)[:, 0].tolist()
        pairs = zip(ids, truth.tolist(), values, strict=True)
        return [{"id": i, "given": given, "truth": t, "prediction": v} for i, t, v in pairs]
    chosen = torch.argmax(answers, -1).tolist()
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
