"""Models to train, one for each system and fold: in worker processes, and never twice.

A job is finished when its folder is there: it is written beside and renamed into place as a whole, with a fingerprint
of all that it depends on. A finished one is never done again, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmssl.data.folds import Fold
from mmssl.errors import DataError
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json, write_text
from mmssl.stages.workers import run_all

RESULT, PREDICTIONS = "result.json", "predictions.jsonl"
_PLACES = ("folder", "root", "device", "fingerprint")


class FoldJob(Protocol):
    """One model to train: plain values, so that another process can do it."""

    @property
    def folder(self) -> Path:
        """Where it is when it is finished."""

    @property
    def fingerprint(self) -> str:
        """Of all that it depends on."""

    @property
    def name(self) -> str:
        """For messages."""


JobType = TypeVar("JobType", bound=FoldJob)


def sealed(job: Any) -> Any:
    """A job, which is a dataclass, with the fingerprint of all its fields but those that say where it is done."""
    fields = asdict(job)
    return replace(job, fingerprint=digest({key: value for key, value in fields.items() if key not in _PLACES}))


def run_jobs(context: Context, jobs: Sequence[JobType], work: Callable[[JobType], None]) -> tuple[int, int]:
    """Do what is not finished, and remove what belongs to folds and systems that are no more.

    Args:
        context: of the experiment, whose folder systems/*/folds/* the jobs fill.
        jobs: picklable.
        work: a function of a module that does one job and ends with `put_in_place`.

    Returns:
        How many were done now, and how many before.
    """
    todo = [job for job in jobs if not is_finished(job)]
    kept = {job.folder for job in jobs} - {job.folder for job in todo}
    for folder in context.exp_dir.glob("systems/*/folds/*"):
        if folder not in kept:
            shutil.rmtree(folder)
    if kept:
        log.info("   %d of %d folds are finished already", len(kept), len(jobs))

    def finished(index: int) -> None:
        record = read_json(todo[index].folder / RESULT)
        scores = ", ".join(f"{k} {v:.3f}" for k, v in record["metrics"].items())
        log.info("   %s: learning rate %g, test %s", todo[index].name, record["learning_rate"], scores)

    run_all(work, todo, context.nj if context.ngpu == 0 else 1, finished)
    return len(todo), len(kept)


def is_finished(job: FoldJob) -> bool:
    """Whether the job was done, and nothing that it depends on has changed."""
    path = job.folder / RESULT
    return path.is_file() and read_json(path)["fingerprint"] == job.fingerprint


def put_in_place(
    job: FoldJob,
    record: Mapping[str, Any],
    predictions: Iterable[Mapping[str, Any]] | None = None,
    save: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder of a finished job, whole or not at all.

    Args:
        job: that was done.
        record: of result.json: "metrics", "learning_rate" and more.
        predictions: rows of predictions.jsonl; None for no such file.
        save: writes further files into a folder.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = job.folder.parent / f".{job.folder.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        if save is not None:
            save(temporary)
        if predictions is not None:
            rows = (json.dumps(row, ensure_ascii=False) for row in predictions)
            write_text(temporary / PREDICTIONS, "".join(f"{row}\n" for row in rows))
        write_json(temporary / RESULT, {"fingerprint": job.fingerprint, **record})
        temporary.rename(job.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def kept_fold(fold: Fold, present: set[str], fault: Callable[[str, int], str]) -> Fold:
    """The fold without clips that are not there.

    Args:
        fold: ids.
        present: clips that are.
        fault: what to say where nothing is left of a part, from its name and how many clips it had.

    Raises:
        DataError: nothing is left of a part.
    """
    parts = {name: tuple(clip for clip in getattr(fold, name) if clip in present) for name in ("train", "dev", "test")}
    for name, ids in parts.items():
        if not ids:
            raise DataError(f"Fold {fold.name!r} has no {name} clip {fault(name, len(getattr(fold, name)))}")
    return Fold(fold.name, **parts, notes=fold.notes)
