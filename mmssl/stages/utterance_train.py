"""Stage 3 of a recipe on utterances: one probe per system and fold.

A fold is finished when its folder is there: it is written beside and renamed into place as a whole, with a fingerprint
of all that it depends on. A finished fold is never trained again, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.manifest import read_manifest
from mmssl.data.splits import Fold, read_folds
from mmssl.errors import DataError
from mmssl.features.store import FeatureStore
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json, write_text
from mmssl.stages.probe import describe
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.stages.workers import run_all
from mmssl.types import Clip

RESULT, PREDICTIONS = "result.json", "predictions.jsonl"


@dataclass(frozen=True)
class Job:
    """One probe to train: plain values, so that another process can do it.

    Attributes:
        folder: of the finished fold.
        store: feature store.
        description: fields of model.yaml.
        fold: ids that are in the store.
        targets: id -> class index or value.
        test_groups: speakers (or other groups) of the test part.
        statistics: what the probe sees, see `mmssl.stages.probe.view`.
        pooled: train on stored statistics instead of frames.
        standardize: with statistics of the training clips.
        train: the configuration's section.
        device: torch device.
        fingerprint: of all of the above.
    """

    folder: Path
    store: Path
    description: Mapping[str, Any]
    fold: Fold
    targets: Mapping[str, int | float]
    test_groups: Sequence[str]
    statistics: str
    pooled: bool
    standardize: bool
    train: Mapping[str, Any]
    device: str
    fingerprint: str

    @property
    def name(self) -> str:
        """System and fold, for messages."""
        return f"{self.folder.parents[1].name} / {self.fold.name}"


def train(context: Context) -> str:
    """Train what is not finished; remove what belongs to folds and systems that are no more.

    Raises:
        DataError: a fold has an empty part.
    """
    jobs = _jobs(context)
    todo = [job for job in jobs if not _finished(job)]
    wanted = {job.folder for job in jobs}
    for folder in context.exp_dir.glob("systems/*/folds/*"):
        if folder not in wanted or folder in {job.folder for job in todo}:
            shutil.rmtree(folder)
    kept = len(jobs) - len(todo)
    if kept:
        log.info("   %d of %d folds are finished already", kept, len(jobs))

    def finished(index: int) -> None:
        record = read_json(todo[index].folder / RESULT)
        scores = ", ".join(f"{k} {v:.3f}" for k, v in record["metrics"].items())
        log.info("   %s: learning rate %g, test %s", todo[index].name, record["learning_rate"], scores)

    run_all(run_job, todo, context.nj if context.ngpu == 0 else 1, finished)
    return f"{len(todo)} folds trained, {kept} kept"


def _jobs(context: Context) -> list[Job]:
    config = context.config
    records = read_json(context.exp_dir / FEATURES)
    clips = read_manifest(context.data / MANIFEST)
    folds = read_folds(context.data / FOLDS)
    classes, targets = _targets(clips, config["label"], config["task"]["kind"])
    groups = {clip.id: clip.group(config["protocol"]["group"]) for clip in clips}
    jobs = []
    for system in context.systems:
        record = records[system.name]
        store = context.folder / record["folder"]
        present = set(FeatureStore(store).ids)
        description = describe(config, system.target, system.kwargs, record, classes)
        for fold in folds:
            kept = _present(fold, present)
            tested = sorted({group for clip in kept.test if (group := groups[clip]) is not None})
            own = {clip: targets[clip] for clip in (*kept.train, *kept.dev, *kept.test)}
            depends = {
                "model": description,
                "features": record["fingerprint"],
                "fold": [kept.train, kept.dev, kept.test],
                "targets": own,
                "train": config["train"],
                "standardize": config["features"]["standardize"],
            }
            jobs.append(
                Job(
                    folder=context.fold_dir(system.name, fold.name),
                    store=store,
                    description=description,
                    fold=kept,
                    targets=own,
                    test_groups=tested,
                    statistics=record["statistics"],
                    pooled=record["pooled"],
                    standardize=config["features"]["standardize"],
                    train=config["train"],
                    device=context.device(),
                    fingerprint=digest(depends),
                )
            )
    return jobs


def _targets(clips: Sequence[Clip], label: str, kind: str) -> tuple[list[str], dict[str, int | float]]:
    """Class names, and each clip's class index or value."""
    missing = [clip.id for clip in clips if clip.labels.get(label) is None]
    if missing:
        raise DataError(
            f"{len(missing)} clips have no label {label!r}, among them {missing[0]!r}: run stage 1 with label={label}."
        )
    if kind == "regression":
        return [], {clip.id: float(clip.labels[label]) for clip in clips}
    classes = sorted({str(clip.labels[label]) for clip in clips})
    return classes, {clip.id: classes.index(str(clip.labels[label])) for clip in clips}


def _present(fold: Fold, present: set[str]) -> Fold:
    """The fold without clips that extraction skipped.

    Raises:
        DataError: nothing is left of a part.
    """
    parts = {part: tuple(clip for clip in getattr(fold, part) if clip in present) for part in ("train", "dev", "test")}
    for part, ids in parts.items():
        if not ids:
            raise DataError(
                f"Fold {fold.name!r} has no {part} clip that could be read: {len(getattr(fold, part))} were skipped. "
                f"Mend the files that exp/NAME/features.json lists, or choose another protocol."
            )
    return Fold(fold.name, **parts, notes=fold.notes)


def _finished(job: Job) -> bool:
    path = job.folder / RESULT
    return path.is_file() and read_json(path)["fingerprint"] == job.fingerprint


def run_job(job: Job) -> None:
    """Train one fold and put its folder into place."""
    from mmssl.stages.exporting import save_model
    from mmssl.stages.probe_training import fit_probe

    outcome = fit_probe(job)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = job.folder.parent / f".{job.folder.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_model(temporary, outcome.task, job.description)
        write_text(
            temporary / PREDICTIONS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in outcome.predictions)
        )
        write_json(temporary / RESULT, {"fingerprint": job.fingerprint, **outcome.record})
        temporary.rename(job.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_predictions(path: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of a fold's test clips: class indices, or values where there are no classes."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = [[row[key] for row in rows] for key in ("truth", "prediction")]
    if classes:
        index = {name: k for k, name in enumerate(classes)}
        columns = [[index[value] for value in column] for column in columns]
    return np.asarray(columns[0]), np.asarray(columns[1])
