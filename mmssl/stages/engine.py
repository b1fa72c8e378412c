"""The stage engine: which stages run, what each reads and writes, and what was done already.

A recipe declares its stages (recipe.yaml); a stage is a function of a `Context`. Before it runs, what it reads must be
there; after it, what it writes must be. A stamp records the fingerprint of what the stage depended on: the config
sections it names and the content of what it reads. A stage with a matching stamp is skipped, unless asked for.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmssl import __version__
from mmssl.errors import MmsslError, StageError, did_you_mean
from mmssl.stages.context import Context, log, versions
from mmssl.stages.files import digest, flatten, input_digest, read_json, write_json

RECORD = "config.json"
# where the work runs and where the corpus lies do not change a result
_NOT_COMPARED = ("exp", "nj", "ngpu", "stages", "data.root")
# what a recipe's longer stages leave in an experiment's folder
_RESULTS = (
    *("features.json", "av_features.json", "systems", "iterations", "model", "metrics.json"),
    *("results.json", "error_rates.json", "leaderboard.json"),
)


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    Attributes:
        number: as in `--stage 2`.
        name: as in `--stage extract`.
        summary: what it does, for `--list`.
        run: dotted path of a function that takes a `Context` and returns one line that says what was done.
        reads: patterns of what must exist before (see `Context.paths`); a trailing "?" marks what may be absent.
        writes: patterns of what must exist after.
        config: sections of the configuration that the outcome depends on.
    """

    number: int
    name: str
    summary: str
    run: str
    reads: Sequence[str] = ()
    writes: Sequence[str] = ()
    config: Sequence[str] = ()

    def function(self) -> Callable[[Context], str]:
        """Import what the stage runs."""
        module, _, name = self.run.rpartition(".")
        return getattr(importlib.import_module(module), name)

    def stamp(self, context: Context) -> Path:
        """Where the stage's stamp is: with the experiment, or with the data that all experiments share."""
        own = any("{exp}" in pattern for pattern in self.writes)
        return (context.exp_dir / "stamps" if own else context.data / ".stamps") / f"{self.name}.json"

    @property
    def title(self) -> str:
        """Number and name."""
        return f"{self.number} {self.name}"


def find_stage(stages: Sequence[Stage], asked: str) -> Stage:
    """The stage of a number or a name.

    Raises:
        StageError: there is none.
    """
    for stage in stages:
        if asked in (str(stage.number), stage.name):
            return stage
    known = ", ".join(stage.title for stage in stages)
    raise StageError(f"There is no stage {asked!r}.{did_you_mean(asked, [s.name for s in stages])} Stages: {known}.")


def select(stages: Sequence[Stage], start: str | None, stop: str | None, skip: Sequence[str] = ()) -> list[Stage]:
    """The stages from `start` to `stop`, both included, without those of `skip`.

    Raises:
        StageError: a stage is unknown, `start` is after `stop`, or nothing is left.
    """
    first = find_stage(stages, start) if start is not None else stages[0]
    last = find_stage(stages, stop) if stop is not None else stages[-1]
    if first.number > last.number:
        raise StageError(
            f"--stage {first.title} comes after --stop_stage {last.title}: swap them. "
            f"The order is {', '.join(stage.title for stage in stages)}."
        )
    skipped = {find_stage(stages, name).name for name in skip}
    chosen = [s for s in stages if first.number <= s.number <= last.number and s.name not in skipped]
    if not chosen:
        raise StageError(
            f"No stage is left to run between {first.title} and {last.title}: --skip_stages leaves out all."
        )
    return chosen


class Engine:
    """Runs the stages of one experiment in order."""

    def __init__(self, stages: Sequence[Stage], context: Context, asked: bool = False) -> None:
        """Prepare a run.

        Args:
            stages: all stages of the recipe, in order.
            context: the experiment.
            asked: stages were asked for by number or name, so that they run even where nothing changed.
        """
        self.stages = stages
        self.context = context
        self.asked = asked

    def preview(self, selected: Sequence[Stage]) -> list[str]:
        """One line per stage that says whether it would run, changing nothing."""
        lines: list[str] = []
        coming: set[str] = set()
        for stage in selected:
            missing = [p for p in self.missing(stage) if p not in coming]
            if missing:
                state = f"cannot run: {', '.join(map(self.context.shown, missing))} is missing"
            elif coming & set(stage.reads):
                state = "would run after the stages above"
            elif (reason := self.reason(stage)) is None and not self.asked:
                state = "unchanged, would be skipped"
            else:
                state = f"would run ({reason or 'asked for'})"
            if not state.startswith("unchanged"):
                coming.update(stage.writes)
            lines.append(f"{stage.title:<12} {state}")
        return lines

    def run(self, selected: Sequence[Stage]) -> None:
        """Run the selected stages, in order.

        Raises:
            StageError: what a stage reads is missing, it fails, or it did not write what it declares.
        """
        for stage in selected:
            self._require(stage, selected)
            reason = self.reason(stage)
            if reason is None and not self.asked:
                log.info("== %s: unchanged, skipped (run it again with --stage %s)", stage.title, stage.name)
                continue
            log.info("== %s: %s", stage.title, stage.summary)
            began = time.monotonic()
            try:
                result = stage.function()(self.context)
            except MmsslError as error:
                raise StageError(f"Stage {stage.title} stopped. {error}") from error
            except OSError as error:
                raise StageError(f"Stage {stage.title} stopped. {_os_message(error)}") from error
            self._check_written(stage)
            self._stamp(stage, time.monotonic() - began)
            log.info("   %s [%s]", result, _clock(time.monotonic() - began))

    def missing(self, stage: Stage) -> list[str]:
        """Patterns that the stage reads and that match nothing."""
        return [p for p in stage.reads if not p.endswith("?") and not self.context.paths(p)]

    def reason(self, stage: Stage) -> str | None:
        """Why the stage has to run; None where a stamp says that nothing changed since it ran."""
        path = stage.stamp(self.context)
        if not path.is_file():
            return "not done yet"
        try:
            stamp = read_json(path)
        except StageError:
            return "its stamp is unreadable"
        for name, size in stamp["outputs"].items():
            written = self.context.folder / name
            if not written.exists() or (size is not None and written.stat().st_size != size):
                return f"{name} is missing or changed"
        if stamp["config"] != self._config_digest(stage):
            return "its configuration changed"
        if stamp["inputs"] != self._input_digest(stage):
            return "what it reads changed"
        return None

    def _require(self, stage: Stage, selected: Sequence[Stage]) -> None:
        for pattern in self.missing(stage):
            writer = next((s for s in self.stages if pattern in s.writes), None)
            shown = self.context.shown(pattern)
            if writer is None:
                raise StageError(f"Stage {stage.title} needs {shown} in {self.context.folder}, which is not there.")
            last = selected[-1].name
            raise StageError(
                f"Stage {stage.title} needs {shown}, which stage {writer.title} writes. "
                f"Run that first: ./run.sh --stage {writer.name} --stop_stage {last}, with the same overrides."
            )

    def _check_written(self, stage: Stage) -> None:
        missing = [self.context.shown(p) for p in stage.writes if not self.context.paths(p)]
        if missing:
            raise StageError(
                f"Stage {stage.title} ended without writing {', '.join(missing)}: an error in {stage.run}."
            )

    def _stamp(self, stage: Stage, seconds: float) -> None:
        outputs = {}
        for pattern in stage.writes:
            for path in self.context.paths(pattern):
                size = path.stat().st_size if path.is_file() else None
                outputs[path.relative_to(self.context.folder).as_posix()] = size
        write_json(
            stage.stamp(self.context),
            {
                "stage": stage.name,
                "config": self._config_digest(stage),
                "inputs": self._input_digest(stage),
                "outputs": outputs,
                "command": self.context.command,
                "versions": versions(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 1),
            },
        )

    def _config_digest(self, stage: Stage) -> str:
        sections = {name: section(self.context.config, name) for name in stage.config}
        return digest({"stage": stage.name, "run": stage.run, "mmssl": __version__, "config": sections})

    def _input_digest(self, stage: Stage) -> str:
        return input_digest(path for pattern in stage.reads for path in self.context.paths(pattern.rstrip("?")))


def section(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted key, None where there is none."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def claim_results_folder(context: Context, overwrite: bool = False) -> None:
    """Record the configuration in the experiment's folder, or refuse a folder that has another one.

    Args:
        context: the experiment.
        overwrite: remove the results of another configuration.

    Raises:
        StageError: the folder holds results of another configuration, or is not an experiment of mmssl.
    """
    import shutil

    folder, record = context.exp_dir, context.exp_dir / RECORD
    ours = compared(context.config)
    if record.is_file():
        theirs = read_json(record)["compared"]
        changed = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
        if not changed:
            return
        has_results = any((folder / name).exists() for name in _RESULTS)
        if has_results and not overwrite:
            lines = [f"  {key}: {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in changed]
            raise StageError(
                f"exp/{context.exp} holds results of another configuration:\n"
                + "\n".join(lines)
                + "\nChoose another folder with exp=NAME, or replace those results with --overwrite."
            )
        if has_results:
            shutil.rmtree(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise StageError(
            f"exp/{context.exp} is not empty and no experiment of mmssl ({RECORD} is missing): choose exp=NAME."
        )
    write_json(record, {"compared": ours, "config": context.config})


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as dotted keys, without what does not change a result."""
    flat = flatten(config)
    return {k: v for k, v in flat.items() if not any(k == name or k.startswith(f"{name}.") for name in _NOT_COMPARED)}


def _os_message(error: OSError) -> str:
    import errno

    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full{where}: {error.strerror}. Free some space and run the same command again; "
            f"what was finished is kept, nothing half-written is left."
        )
    return f"{error.strerror or error}{where}. Mend that and run the same command again; what was finished is kept."


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
