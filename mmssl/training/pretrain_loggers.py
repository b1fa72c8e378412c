"""What a pretraining run writes while it goes on: checkpoint, history, CSV, loggers of Lightning, lines of progress."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from mmssl.errors import ConfigError

CHECKPOINT = "last.ckpt"
HISTORY = "history.jsonl"
METRICS = "metrics.csv"
TENSORBOARD = "tensorboard"
_SECONDS_BETWEEN_LINES = 10.0
_LOG = logging.getLogger("mmssl.training")


class Saver(Callback):
    """Writes checkpoint, history and its table at steps, never between the batches of one; each whole, then renamed.

    Args:
        save_every: steps between two checkpoints; one follows the last step too.
        folder: where to.
    """

    def __init__(self, save_every: int, folder: Path) -> None:
        self.save_every, self.folder = save_every, folder
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run starts."""
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save if a step of the interval, or the last one, has just been done."""
        step = trainer.global_step
        if step == self._saved or (step % self.save_every and step != trainer.max_steps):
            return
        self._saved = step
        partial = self.folder / f".{CHECKPOINT}.part"
        # parameters may be spread over processes: all of them take part, the first writes
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(self.folder / CHECKPOINT)
            write_history(self.folder, cast("list[dict[str, float]]", pl_module.history))


def write_history(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the rows as history.jsonl, and as a table with a column for every name as metrics.csv."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    _write(folder / HISTORY, (json.dumps(row) + "\n" for row in rows))
    path = folder / METRICS
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def _write(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class RowLogger(Callback):
    """Hands each row of the history to loggers of Lightning, in the first process.

    Args:
        loggers: "tensorboard", or loggers of Lightning.
        folder: of the run; TensorBoard's files are in its folder `tensorboard`.

    Raises:
        ConfigError: an unknown name, or TensorBoard is not installed.
    """

    def __init__(self, loggers: Sequence[str | Logger], folder: Path) -> None:
        for logger in loggers:
            if isinstance(logger, str) and logger != TENSORBOARD:
                raise ConfigError(f"A logger is 'tensorboard' or a logger of Lightning, got {logger!r}.")
        if TENSORBOARD in loggers:
            _require_tensorboard()
        self._wanted, self.folder = tuple(loggers), folder
        self._loggers: list[Logger] = []
        self._shown = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the loggers; of an interrupted run TensorBoard forgets what came after the checkpoint."""
        self._shown = float(trainer.global_step)
        if trainer.is_global_zero:
            self._loggers = [
                _tensorboard(self.folder, trainer.global_step) if isinstance(logger, str) else logger
                for logger in self._wanted
            ]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write the last row if it is new."""
        row = _new_row(pl_module, self._shown)
        if row is None:
            return
        self._shown = row["step"]
        values = {name: value for name, value in row.items() if name != "step"}
        for logger in self._loggers:
            logger.log_metrics(values, int(row["step"]))
            logger.save()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the loggers."""
        for logger in self._loggers:
            logger.finalize("success")


class Progress(Callback):
    """Lines with step, loss, learning rate, clips per second and the time that is left.

    A line for the first row, for the last, and between them at most one in ten seconds.

    Args:
        log: takes a line; None for the logger "mmssl.training", at level INFO.
    """

    def __init__(self, log: Callable[[str], None] | None = None) -> None:
        self._log = _LOG.info if log is None else log
        self._shown = self._first = 0.0
        self._began = self._said = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._shown = self._first = float(trainer.global_step)
        self._began, self._said = time.monotonic(), float("-inf")
        self._clips = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say where the run stands."""
        row = _new_row(pl_module, self._shown)
        if row is None or not trainer.is_global_zero:
            return
        now = time.monotonic()
        batches = (row["step"] - self._shown) * trainer.accumulate_grad_batches
        self._clips += round(row.get("clips", 0.0) * batches)
        self._shown = row["step"]
        last = row["step"] >= trainer.max_steps
        if now - self._said < _SECONDS_BETWEEN_LINES and not last:
            return
        self._said = now
        seconds = max(now - self._began, 1e-9)
        left = (trainer.max_steps - row["step"]) * seconds / (row["step"] - self._first)
        self._log(
            f"step {row['step']:.0f}/{trainer.max_steps}  loss {row.get('loss', float('nan')):.4f}  "
            f"lr {row.get('learning_rate', 0.0):.2e}  {self._clips / seconds:.1f} clips/s  ETA {_clock(left)}"
        )


def _new_row(module: LightningModule, shown: float) -> dict[str, float] | None:
    rows = cast("list[dict[str, float]]", module.history)
    return rows[-1] if rows and rows[-1]["step"] > shown else None


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _require_tensorboard() -> None:
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            "The logger 'tensorboard' needs the package of that name: pip install 'mmssl[tensorboard]', or leave it "
            f"out; {METRICS} is written in any case."
        ) from error


def _tensorboard(folder: Path, step: int) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    again: dict[str, Any] = {"purge_step": step + 1} if step else {}
    return TensorBoardLogger(folder, name="", version=TENSORBOARD, **again)
