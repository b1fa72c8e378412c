"""One stage of speaker training under Lightning: checkpoints, evaluations, and the weights that were best."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save
from torch import nn

from mmssl.augment.spectrogram import SpecAugment
from mmssl.downstream.margin import MarginSoftmax
from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import CheckpointError, ConfigError
from mmssl.files import replace_file
from mmssl.random import isolated_rng, mix
from mmssl.training.speaker_data import SpeakerBatches, speaker_loader
from mmssl.training.speaker_distill import Distillation
from mmssl.training.speaker_module import DevelopmentTrials, SpeakerModule
from mmssl.training.speaker_stage import SpeakerStage

CHECKPOINT, HISTORY = "last.ckpt", "history.jsonl"


@dataclass(frozen=True)
class StageResult:
    """What a stage gives.

    Attributes:
        history: rows of the stage.
        best: the row of its best evaluation.
        weights: file of the weights at that step.
        resumed_from: steps that were done before.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    weights: Path
    resumed_from: int


@dataclass
class StageRun:
    """What the stages of a training share; arguments as in `mmssl.training.speaker.train_speaker`."""

    model: SpeakerModel
    loss: nn.Module
    trials: DevelopmentTrials
    optimizer: str
    weight_decay: float
    grad_clip: float | None
    precision: str
    device: str
    save_every: int
    log_every: int
    num_workers: int
    distillation: Distillation | None = None

    def fit(
        self,
        folder: Path,
        stage: SpeakerStage,
        batches: SpeakerBatches,
        eval_every: int,
        spec_augment: SpecAugment | None,
        settings: str,
    ) -> StageResult:
        """Train one stage to its end, from its last checkpoint if there is one; model and loss then hold the best.

        Raises:
            ConfigError: the folder holds a run with other settings.
            CheckpointError: its best weights are missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        module = SpeakerModule(
            self.model,
            self.loss,
            stage,
            lambda first: speaker_loader(batches, first, stage.steps, self.num_workers),
            self.optimizer,
            self.weight_decay,
            spec_augment,
            batches.seed,
            settings,
            self.distillation,
        )
        checkpoint = folder / CHECKPOINT
        saver = StageSaver(folder, self.trials, eval_every, self.save_every, self.log_every)
        self.model.train()
        self.loss.train()
        with _without_penalty(self.loss, not stage.top_k), _quiet(), isolated_rng(mix(batches.seed) % 2**31):
            trainer = self._trainer(stage.steps, saver)
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
        if module.best is None:
            raise ConfigError(
                f"{checkpoint} was written before the first evaluation of a run that has ended: delete it."
            )
        weights = folder / best_name(module.best)
        self.load(weights)
        return StageResult(module.history, module.best, weights, module.resumed_from)

    def load(self, weights: Path) -> None:
        """Put weights that a stage wrote into model and loss.

        Raises:
            CheckpointError: the file is missing or does not fit.
        """
        if not weights.is_file():
            raise CheckpointError(f"The best weights {weights} are missing: train in another folder.")
        state = load_file(weights)
        self.model.to("cpu")
        self.loss.to("cpu")
        for name, part in (("model", self.model), ("loss", self.loss)):
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            wanted = self.model.trained_state() if isinstance(part, SpeakerModel) else part.state_dict()
            if own.keys() != wanted.keys():
                raise CheckpointError(f"{weights} holds weights of another model: train in another folder.")
            part.load_state_dict(own, strict=False)

    def _trainer(self, steps: int, saver: Callback) -> Trainer:
        kind, _, index = self.device.partition(":")
        return Trainer(
            accelerator="cpu" if kind == "cpu" else "gpu",
            devices=1 if kind == "cpu" else [int(index or 0)],
            max_steps=steps,
            max_epochs=-1,
            gradient_clip_val=self.grad_clip,
            precision=self.precision,  # type: ignore[arg-type]
            callbacks=[saver],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


class StageSaver(Callback):
    """Evaluates, keeps the best weights and writes checkpoints, so that a kill at any moment loses steps at most.

    The best weights are written under the number of their step before the checkpoint that names it, and older ones go
    only after it: whatever checkpoint there is, the weights that it names are there.

    Args:
        folder: of the stage.
        trials: that judge.
        eval_every, save_every, log_every: steps.
    """

    def __init__(
        self, folder: Path, trials: DevelopmentTrials, eval_every: int, save_every: int, log_every: int
    ) -> None:
        self.folder, self.trials = folder, trials
        self.eval_every, self.save_every, self.log_every = eval_every, save_every, log_every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Do what is due after a step."""
        assert isinstance(pl_module, SpeakerModule)
        step, last = trainer.global_step, trainer.global_step >= trainer.max_steps
        evaluates = last or step % self.eval_every == 0
        if evaluates or step % self.log_every == 0:
            row = pl_module.log_row(step)
            if evaluates and pl_module.evaluate(row, self.trials):
                with replace_file(self.folder / best_name(row)) as file:
                    file.write(save(pl_module.trained_state()))
        if evaluates or step % self.save_every == 0:
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, module: SpeakerModule) -> None:
        partial = self.folder / f".{CHECKPOINT}.{os.getpid()}.part"
        trainer.save_checkpoint(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(self.folder / CHECKPOINT)
        with replace_file(self.folder / HISTORY) as file:
            file.write("".join(json.dumps(row) + "\n" for row in module.history).encode())
        if module.best is not None:
            for path in self.folder.glob("best-*.safetensors"):
                if path.name != best_name(module.best):
                    path.unlink(missing_ok=True)


def best_name(row: dict[str, float]) -> str:
    """File of the weights of an evaluation."""
    return f"best-{int(row['step']):08d}.safetensors"


@contextlib.contextmanager
def _without_penalty(loss: nn.Module, without: bool) -> Iterator[None]:
    """Switch the inter-top-k penalty of a loss off inside the block."""
    if not (without and isinstance(loss, MarginSoftmax)):
        yield
        return
    top_k, loss.top_k = loss.top_k, 0
    try:
        yield
    finally:
        loss.top_k = top_k


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's remarks on devices, workers and numbers of batches out of the output."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
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
