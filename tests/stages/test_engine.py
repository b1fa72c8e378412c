"""The engine on a toy plan: order, what is missing, what is unchanged, and folders of another configuration."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmssl.errors import DataError, StageError
from mmssl.stages.context import Context, System
from mmssl.stages.engine import Engine, Stage, claim_results_folder, find_stage, select

CALLS: list[str] = []


def first(context: Context) -> str:
    CALLS.append("first")
    context.data.mkdir(exist_ok=True)
    (context.data / "numbers.txt").write_text(str(context.config["a"]["value"]))
    return "wrote numbers"


def second(context: Context) -> str:
    CALLS.append("second")
    (context.exp_dir / "sum.txt").write_text((context.data / "numbers.txt").read_text())
    return "summed"


def third(context: Context) -> str:
    CALLS.append("third")
    (context.exp_dir / "report.txt").write_text("done")
    return "reported"


def forgets(context: Context) -> str:
    return "nothing"


def full_disk(context: Context) -> str:
    raise OSError(errno.ENOSPC, "No space left on device", "data/numbers.txt")


def refuses(context: Context) -> str:
    raise DataError("no clip is left.")


STAGES = [
    Stage(1, "count", "count", f"{__name__}.first", ["root.txt?"], ["data/numbers.txt"], ["a"]),
    Stage(2, "add", "add", f"{__name__}.second", ["data/numbers.txt"], ["{exp}/sum.txt"], ["b.c"]),
    Stage(4, "tell", "tell", f"{__name__}.third", ["{exp}/sum.txt"], ["{exp}/report.txt"], []),
]


@pytest.fixture(autouse=True)
def _this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {f.__name__: f for f in (first, second, third, forgets, full_disk, refuses)}
    monkeypatch.setattr(Stage, "function", lambda stage: functions[stage.run.rpartition(".")[2]])
    CALLS.clear()


def context(folder: Path, **changes: Any) -> Context:
    config = {"a": {"value": 1}, "b": {"c": 2, "d": 3}, "data": {"root": None}, "exp": "x"} | changes
    return Context(folder, "x", config, (System("s", "t", {}),))


def run(folder: Path, names: Sequence[str] = ("1", "4"), asked: bool = False, **changes: Any) -> list[str]:
    CALLS.clear()
    here = context(folder, **changes)
    here.exp_dir.mkdir(parents=True, exist_ok=True)
    Engine(STAGES, here, asked).run(select(STAGES, *names))
    return list(CALLS)


def test_runs_in_order_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    assert run(tmp_path) == ["first", "second", "third"]
    assert run(tmp_path) == []


def test_asking_for_a_stage_runs_it_although_nothing_changed(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, ("add", "2"), asked=True) == ["second"]


def test_only_what_depends_on_a_change_runs_again(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, b={"c": 2, "d": 4}) == []
    assert run(tmp_path, b={"c": 5, "d": 4}) == ["second"]
    assert run(tmp_path, a={"value": 7}, b={"c": 5, "d": 4}) == ["first", "second", "third"]


def test_a_changed_input_or_a_lost_output_runs_the_stage_again(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "root.txt").write_text("new")
    # the output of the first is the same again, so that the others have nothing to do
    assert run(tmp_path) == ["first"]
    (tmp_path / "exp" / "x" / "report.txt").unlink()
    assert run(tmp_path) == ["third"]
    (tmp_path / "exp" / "x" / "sum.txt").write_text("half-writ")
    assert run(tmp_path) == ["second", "third"] or CALLS == ["second"]


def test_out_of_order_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"2 add needs data/numbers.txt, which stage 1 count writes"):
        run(tmp_path, ("2", "4"), asked=True)


def test_a_stage_that_writes_nothing_is_caught(tmp_path: Path) -> None:
    stages = [replace(STAGES[0], run="forgets")]
    with pytest.raises(StageError, match=r"ended without writing data/numbers.txt"):
        Engine(stages, context(tmp_path)).run(stages)
    assert not stages[0].stamp(context(tmp_path)).exists()


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    stages = [replace(STAGES[0], run="full_disk")]
    with pytest.raises(StageError, match=r"Stage 1 count stopped. The disk is full \(data/numbers.txt\)"):
        Engine(stages, context(tmp_path)).run(stages)


def test_an_error_names_its_stage(tmp_path: Path) -> None:
    stages = [replace(STAGES[0], run="refuses")]
    with pytest.raises(StageError, match=r"Stage 1 count stopped. no clip is left."):
        Engine(stages, context(tmp_path)).run(stages)


def test_preview_changes_nothing(tmp_path: Path) -> None:
    here = context(tmp_path)
    lines = Engine(STAGES, here).preview(STAGES)
    assert "would run (not done yet)" in lines[0]
    assert all("after the stages above" in line for line in lines[1:])
    assert list(tmp_path.iterdir()) == []
    assert "cannot run: exp/x/sum.txt is missing" in Engine(STAGES, here).preview(STAGES[2:])[0]
    run(tmp_path)
    assert all("unchanged" in line for line in Engine(STAGES, here).preview(STAGES))


@pytest.mark.parametrize(
    ("start", "stop", "skip", "expected"),
    [
        (None, None, [], ["count", "add", "tell"]),
        ("2", None, [], ["add", "tell"]),
        ("count", "add", [], ["count", "add"]),
        (None, "4", ["2"], ["count", "tell"]),
        ("1", None, ["add", "4"], ["count"]),
    ],
)
def test_select(start: str | None, stop: str | None, skip: list[str], expected: list[str]) -> None:
    assert [stage.name for stage in select(STAGES, start, stop, skip)] == expected


def test_select_refuses() -> None:
    with pytest.raises(StageError, match=r"no stage 'adt'. Did you mean 'add'"):
        find_stage(STAGES, "adt")
    with pytest.raises(StageError, match="4 tell comes after --stop_stage 2 add"):
        select(STAGES, "4", "2")
    with pytest.raises(StageError, match="No stage is left"):
        select(STAGES, "2", "2", ["add"])
    with pytest.raises(StageError, match="no stage '3'"):
        select(STAGES, "3", None)


def test_a_results_folder_of_another_configuration(tmp_path: Path) -> None:
    here = context(tmp_path)
    claim_results_folder(here)
    claim_results_folder(here)
    # nothing was computed yet: the record of a run that failed early binds nobody
    claim_results_folder(context(tmp_path, a={"value": 2}))
    (here.exp_dir / "results.json").write_text("{}")
    with pytest.raises(StageError, match=r"a.value: 2 there, 1 now(.|\n)*exp=NAME(.|\n)*--overwrite"):
        claim_results_folder(here)
    claim_results_folder(context(tmp_path, a={"value": 2}, data={"root": "elsewhere"}))
    claim_results_folder(here, overwrite=True)
    assert sorted(p.name for p in here.exp_dir.iterdir()) == ["config.json"]


def test_a_folder_that_is_no_experiment_is_left_alone(tmp_path: Path) -> None:
    here = context(tmp_path)
    here.exp_dir.mkdir(parents=True)
    (here.exp_dir / "thesis.tex").write_text("mine")
    with pytest.raises(StageError, match="no experiment of mmssl"):
        claim_results_folder(here, overwrite=True)
    assert (here.exp_dir / "thesis.tex").exists()
