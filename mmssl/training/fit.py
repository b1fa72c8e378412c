"""One training run of a task, by Lightning."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmssl.errors import ConfigError
from mmssl.random import isolated_rng
from mmssl.training.batches import PassOnce, StepStream, TensorBatches, loader

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Split = Dataset[Any] | TensorBatches


@dataclass(frozen=True)
class FitResult:
    """What a training run gives.

    Attributes:
        history: one row per evaluation: step, train_loss, dev_loss, and dev_uar, dev_wa, dev_macro_f1 (classification)
            or dev_ccc, dev_pearson, dev_rmse (regression).
        monitor: the column that selected.
        best_step: the step whose weights were kept.
        best_score: the monitored score there.
        state_dict: the task's weights at that step, on the CPU.
        stopped_early: True if patience ran out before the last step.
    """

    history: list[dict[str, Any]]
    monitor: str
    best_step: int
    best_score: float
    state_dict: dict[str, Tensor]
    stopped_early: bool

    @property
    def best(self) -> dict[str, Any]:
        """The row of the history at `best_step`."""
        return next(row for row in self.history if row["step"] == self.best_step)


def fit(
    task: nn.Module,
    train: Split,
    dev: Split,
    *,
    learning_rate: float,
    max_steps: int = 400,
    batch_size: int = 32,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    grad_clip: float | None = 1.0,
    eval_every: int | None = None,
    patience: int | None = 5,
    monitor: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
    description: str = "",
    logger_folder: str | Path | None = None,
) -> FitResult:
    """Train a task, stop early and select by the development split alone.

    The run depends on the task's initial weights, the data, the settings and the seed; it leaves the global generators
    as they were, and writes nothing unless `logger_folder` is given. Afterwards `task` holds the best weights, in eval
    mode, on `device`.

    Args:
        task: an `mmssl.downstream.tasks.UtteranceTask`, or a module with its `forward`, `metrics` and `monitor`.
        train: items (Layers of one clip with (T_k, D_k) tensors and 0-dim lengths, target). Clips of one frame in every
            layer are read into memory once; give `TensorBatches` to share that between runs.
        dev: the same; never the test split.
        learning_rate: constant.
        max_steps: most optimizer steps.
        batch_size: clips per step.
        optimizer: "adam" or "adamw".
        weight_decay: of the optimizer.
        grad_clip: largest norm of the gradient; None for no limit.
        eval_every: steps between two evaluations, which also follow the last step; None for a twentieth of max_steps.
        patience: evaluations in a row without a better one after which training stops; None for never.
        monitor: column of the history that selects; None for the task's own ("dev_uar" or "dev_ccc").
        seed: of the order of the clips and of dropout.
        device: "cpu", "cuda" or "cuda:1".
        progress: show a bar on a terminal, and about ten lines in a log.
        description: what the progress display calls this run.
        logger_folder: where to write metrics.csv; None for nowhere.

    Raises:
        ConfigError: a setting is unknown or out of range.
        InputError: a split is empty or does not fit the task, or the loss stopped being finite (`DivergedError`).
    """
    from mmssl.training.module import TaskModule

    if device.startswith("cuda"):
        # isolated_rng covers the generators of accelerators that are in use when it starts
        torch.cuda.init()
    _check(max_steps=max_steps, batch_size=batch_size, eval_every=eval_every, grad_clip=grad_clip)
    every = min(max_steps, eval_every or max(1, max_steps // 20))
    wanted = str(monitor or getattr(task, "monitor", "dev_loss"))
    module = TaskModule(task, learning_rate, optimizer, weight_decay, wanted, patience)
    with isolated_rng(seed), _quiet_lightning():
        batches = StepStream(_in_memory(train, device), batch_size, max_steps, seed)
        trainer = _trainer(max_steps, every, grad_clip, device, progress, description, logger_folder)
        trainer.fit(module, loader(batches), loader(PassOnce(_in_memory(dev, device), batch_size)))
    if module.best is None:
        raise ConfigError("Training ended before its first evaluation.")
    task.load_state_dict(module.best_state)
    task.to(device).eval()
    return FitResult(
        history=module.history,
        monitor=wanted,
        best_step=module.best["step"],
        best_score=module.best[wanted],
        state_dict=module.best_state,
        stopped_early=module.history[-1]["step"] < max_steps,
    )


@torch.no_grad()
def predict(task: nn.Module, split: Split, *, batch_size: int = 32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Answers of a task for a whole split, in its order.

    Args:
        task: as `fit` takes it, with a `predict(layers)`.
        split: as `fit` takes it.
        batch_size: clips at once; the answers do not depend on it.
        device: where to compute.

    Returns:
        (N, C) probabilities or (N, D) values, and the targets (N, ...), both on the CPU.

    Raises:
        InputError: the split is empty or does not fit the task.
    """
    task.to(device)
    answers, targets = [], []
    for layers, target in PassOnce(split, batch_size):
        answers.append(task.predict(layers.to(device)).cpu())  # type: ignore[operator]
        targets.append(target.cpu())
    return torch.cat(answers), torch.cat(targets)


def _in_memory(split: Split, device: str) -> Split:
    tensors = TensorBatches.of(split)
    if tensors is None:
        return split
    return tensors if tensors.targets.device == torch.device(device) else tensors.to(device)


def _check(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value}.")


def _trainer(
    max_steps: int,
    every: int,
    grad_clip: float | None,
    device: str,
    progress: bool,
    description: str,
    logger_folder: str | Path | None,
) -> Trainer:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger

    from mmssl.training.callbacks import EvaluateLastStep, HistoryLogger, RunProgress

    kind, _, index = device.partition(":")
    if kind == "cpu":
        accelerator, devices = "cpu", 1
    else:
        accelerator, devices = ("gpu" if kind == "cuda" else kind), [int(index or 0)]  # type: ignore[assignment]
    logger = None if logger_folder is None else CSVLogger(logger_folder, name="", version="")
    callbacks: list[Any] = [EvaluateLastStep()]
    if logger is not None:
        callbacks.append(HistoryLogger())
    if progress:
        callbacks.append(RunProgress(max_steps, description))
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        gradient_clip_val=grad_clip,
        callbacks=callbacks,
        logger=logger or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's remarks on devices, workers and numbers of batches out of the output."""
    import lightning.pytorch  # noqa: F401  (its import sets up the loggers that are silenced here)

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
