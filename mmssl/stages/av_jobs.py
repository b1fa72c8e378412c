"""Jobs of the retrieval and synchrony recipes: one model for each encoder and fold, on clips that have both streams."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError
from mmssl.stages.av_extract import FEATURES
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_media import BOTH
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.stages.workers import run_all

RESULT = "result.json"


@dataclass(frozen=True)
class PairJob:
    """One model to train: plain values, so that another process can do it.

    Attributes:
        folder: of the finished fold.
        root: of the recipe.
        record: of the encoder in av_features.json.
        fold: ids of clips with sound and pictures.
        facts: id -> speaker and label of a clip.
        settings: the recipe's own section.
        train: the configuration's section.
        interface: of each stream, by name.
        standardize: with statistics of the training clips.
        device: torch device.
        fingerprint: of all of the above.
    """

    folder: Path
    root: Path
    record: Mapping[str, Any]
    fold: Fold
    facts: Mapping[str, Sequence[str | None]]
    settings: Mapping[str, Any]
    train: Mapping[str, Any]
    interface: str
    standardize: bool
    device: str
    fingerprint: str = ""

    @property
    def name(self) -> str:
        """Encoder and fold, for messages."""
        return f"{self.record['title']}, {self.fold.name}"

    def fit_settings(self) -> dict[str, Any]:
        """Arguments of `mmssl.training.sweep.sweep`."""
        kept = {k: v for k, v in self.train.items() if k not in ("class_weights", "refit", "engine", "monitor")}
        return {**kept, "device": self.device}


def pair_jobs(context: Context, section: str) -> list[PairJob]:
    """A job for each encoder that takes both streams, and each fold.

    Raises:
        ConfigError: the main encoder takes one stream only.
        DataError: a fold has an empty part.
    """
    config = context.config
    label = config["label"]
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    folds = read_folds(context.data / FOLDS)
    jobs = []
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        if record["takes"] != BOTH:
            if record["role"] == "main":
                raise ConfigError(f"{record['title']} takes {record['takes']} only: choose an upstream of both.")
            log.info("   %s is left out: it takes %s only", record["title"], record["takes"])
            continue
        store = AvStore(context.folder, record)
        present = store.stores[BOTH].ids if BOTH in store.stores else []
        for fold in folds:
            kept = _present(fold, set(present), record["title"])
            members = (*kept.train, *kept.dev, *kept.test)
            job = PairJob(
                folder=context.fold_dir(encoder, fold.name),
                root=context.folder,
                record=record,
                fold=kept,
                facts={name: (clips[name].speaker, str(clips[name].labels.get(label))) for name in members},
                settings=config[section],
                train=config["train"],
                interface=config["interface"]["_target_"],
                standardize=config["features"]["standardize"],
                device=context.device(),
            )
            depends = asdict(job) | {"folder": None, "root": None, "device": None}
            jobs.append(PairJob(**{**job.__dict__, "fingerprint": digest(depends)}))
    return jobs


def _present(fold: Fold, present: set[str], what: str) -> Fold:
    parts = {name: tuple(c for c in getattr(fold, name) if c in present) for name in ("train", "dev", "test")}
    for name, ids in parts.items():
        if not ids:
            raise DataError(f"Fold {fold.name!r} has no {name} clip with sound and pictures for {what}.")
    return Fold(fold.name, **parts, notes=fold.notes)


def run_jobs(context: Context, jobs: Sequence[PairJob], work: Callable[[PairJob], None]) -> str:
    """Do what is not finished, and remove what belongs to models that are no more."""
    todo = [job for job in jobs if not _finished(job)]
    kept = {job.folder for job in jobs} - {job.folder for job in todo}
    for folder in context.exp_dir.glob("systems/*/folds/*"):
        if folder not in kept:
            shutil.rmtree(folder)

    def finished(index: int) -> None:
        record = read_json(todo[index].folder / RESULT)
        scores = ", ".join(f"{k} {v:.3f}" for k, v in record["metrics"].items())
        log.info("   %s: learning rate %g, test %s", todo[index].name, record["learning_rate"], scores)

    run_all(work, todo, context.nj if context.ngpu == 0 else 1, finished)
    return f"{len(todo)} models trained, {len(kept)} kept"


def write_result(job: PairJob, record: Mapping[str, Any]) -> None:
    """Put the result of a job into place, whole or not at all."""
    write_json(job.folder / RESULT, {"fingerprint": job.fingerprint, **record})


def results_of(context: Context) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Encoder -> its record and the results of its folds."""
    folds = read_folds(context.data / FOLDS)
    found = {}
    for encoder, record in read_json(context.exp_dir / FEATURES).items():
        if record["takes"] == BOTH:
            found[encoder] = (record, [read_json(context.fold_dir(encoder, f.name) / RESULT) for f in folds])
    return found


def _finished(job: PairJob) -> bool:
    path = job.folder / RESULT
    return path.is_file() and read_json(path)["fingerprint"] == job.fingerprint
