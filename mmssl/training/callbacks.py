"""Lightning callbacks of a training run: evaluation after the last step, a log of the history, progress."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

LINES_IN_A_LOG = 10


class EvaluateLastStep(Callback):
    """Has Lightning evaluate after the last step too, where the interval does not end there."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Ask for a stop, before which Lightning evaluates."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True


class HistoryLogger(Callback):
    """Writes each row of the history to the trainer's logger."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last row."""
        row = dict(pl_module.history[-1])  # type: ignore[index]
        step = row.pop("step")
        for logger in trainer.loggers:
            logger.log_metrics(row, step)
            logger.save()


class RunProgress(Callback):
    """A bar on a terminal; in a log, about ten lines in all.

    Args:
        max_steps: most steps of the run.
        description: what the run is called.
    """

    def __init__(self, max_steps: int, description: str) -> None:
        self.max_steps = max_steps
        self.description = description or "train"
        self.shown = 0
        self.bar: Any = None
        self.number: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar if there is a terminal to show it on."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[scores]}"), console=Console(stderr=True))
        self.number = self.bar.add_task(self.description, total=self.max_steps, scores="")
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(self.number, completed=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the scores of an evaluation."""
        row: dict[str, Any] = pl_module.history[-1]  # type: ignore[index, assignment]
        monitor = str(pl_module.monitor)
        scores = {"train_loss": row["train_loss"], "dev_loss": row["dev_loss"], monitor: row[monitor]}
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        if self.bar is not None:
            self.bar.update(self.number, scores=text)
        elif row["step"] * LINES_IN_A_LOG >= self.max_steps * (self.shown + 1):
            self.shown = row["step"] * LINES_IN_A_LOG // self.max_steps
            print(f"{self.description}: step {row['step']}/{self.max_steps}  {text}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the terminal is left in order."""
        self.on_train_end(trainer, pl_module)
