"""The runner of jobs on folds: nothing twice, nothing half, nothing left over."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmssl.data.folds import Fold
from mmssl.errors import DataError
from mmssl.stages.context import Context
from mmssl.stages.fold_jobs import is_finished, kept_fold, put_in_place, run_jobs, sealed


@dataclass(frozen=True)
class Job:
    folder: Path
    value: int
    root: Path = Path()
    device: str = "cpu"
    fingerprint: str = ""

    @property
    def name(self) -> str:
        return self.folder.name


def save(folder: Path) -> None:
    (folder / "model").write_text("m")


def work(job: Job) -> None:
    if job.value < 0:
        raise DataError("no such value")
    with (job.root / "calls.txt").open("a") as calls:
        calls.write(f"{job.value}\n")
    record = {"metrics": {"value": float(job.value)}, "learning_rate": 0.1}
    put_in_place(job, record, [{"id": "ä"}], save)


def jobs_of(context: Context, *values: int) -> list[Job]:
    return [sealed(Job(context.fold_dir("s", f"f{k}"), value, context.folder)) for k, value in enumerate(values)]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, "x", {}, ())


def calls(context: Context) -> list[int]:
    return [int(line) for line in (context.folder / "calls.txt").read_text().split()]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_jobs_are_done_once(context: Context, processes: int) -> None:
    context = replace(context, nj=processes)
    assert run_jobs(context, jobs_of(context, 1, 2), work) == (2, 0)
    assert run_jobs(context, jobs_of(context, 1, 2), work) == (0, 2)
    # one changed, and one is no more
    assert run_jobs(context, jobs_of(context, 1, 3), work) == (1, 1)
    assert run_jobs(context, jobs_of(context, 1), work) == (0, 1)
    assert sorted(calls(context)) == [1, 2, 3]
    assert [path.name for path in context.exp_dir.glob("systems/s/folds/*")] == ["f0"]
    (row,) = (context.fold_dir("s", "f0") / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row) == {"id": "ä"}


def test_what_is_finished_stays_when_another_fails(context: Context) -> None:
    with pytest.raises(DataError, match="no such value"):
        run_jobs(context, jobs_of(context, 1, -1), work)
    assert run_jobs(context, jobs_of(context, 1, 2), work) == (1, 1)


def test_nothing_half_written_is_left(context: Context) -> None:
    (job,) = jobs_of(context, 1)

    def fails(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        put_in_place(job, {}, save=fails)
    assert not is_finished(job)
    assert list(job.folder.parent.iterdir()) == []


def test_where_a_job_is_done_does_not_count(tmp_path: Path) -> None:
    one, other = Job(tmp_path / "a", 1), Job(tmp_path / "b", 1, tmp_path, "cuda")
    assert sealed(one).fingerprint == sealed(other).fingerprint != sealed(Job(tmp_path / "a", 2)).fingerprint


def test_folds_lose_what_is_not_there() -> None:
    fold = Fold("f", train=("a", "b"), dev=("c",), test=("d",), notes=("n",))
    kept = kept_fold(fold, {"a", "c", "d"}, lambda part, count: "")
    assert (kept.train, kept.notes) == (("a",), ("n",))
    with pytest.raises(DataError, match=r"^Fold 'f' has no dev clip that sings: 1 do not\.$"):
        kept_fold(fold, {"a", "b", "d"}, lambda part, count: f"that sings: {count} do not.")
