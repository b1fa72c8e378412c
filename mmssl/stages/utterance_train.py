"""Stage 3 of a recipe on utterances: one probe per system and fold (`mmssl.stages.fold_jobs`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.manifest import read_manifest
from mmssl.data.splits import Fold, read_folds
from mmssl.errors import DataError
from mmssl.features.store import FeatureStore
from mmssl.stages.context import Context
from mmssl.stages.files import digest, read_json
from mmssl.stages.fold_jobs import kept_fold, put_in_place, run_jobs
from mmssl.stages.probe import describe
from mmssl.stages.utterance_extract import FEATURES
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.types import Clip


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
    done, kept = run_jobs(context, _jobs(context), run_job)
    return f"{done} folds trained, {kept} kept"


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
            kept = kept_fold(fold, present, _skipped)
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


def _skipped(part: str, count: int) -> str:
    return (
        f"that could be read: {count} were skipped. "
        "Mend the files that exp/NAME/features.json lists, or choose another protocol."
    )


def run_job(job: Job) -> None:
    """Train one fold and put its folder into place."""
    from mmssl.stages.exporting import save_model
    from mmssl.stages.probe_training import fit_probe

    outcome = fit_probe(job)

    def save(folder: Path) -> None:
        save_model(folder, outcome.task, job.description)

    put_in_place(job, outcome.record, outcome.predictions, save)


def read_predictions(path: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of a fold's test clips: class indices, or values where there are no classes."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = [[row[key] for row in rows] for key in ("truth", "prediction")]
    if classes:
        index = {name: k for k, name in enumerate(classes)}
        columns = [[index[value] for value in column] for column in columns]
    return np.asarray(columns[0]), np.asarray(columns[1])
