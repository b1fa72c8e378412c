"""One pretraining run over Lightning, which can be killed at any time and resumed exactly."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError
from mmssl.random import isolated_rng
from mmssl.training.pretrain_batches import PretrainBatches, pretrain_loader
from mmssl.training.readers import ClipReader, reader_for

if TYPE_CHECKING:
    from mmssl.objectives.objective import Objective
    from mmssl.types import Clip

CHECKPOINT = "last.ckpt"
HISTORY = "history.jsonl"
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run gives.

    Attributes:
        history: rows of `PretrainModule.history`, from the first step on even where the run was resumed.
        checkpoint: file from which the run can be resumed or continued.
        resumed_from: steps that were done before; 0 for a new run.
        skipped: id -> why, of clips that were too short for the encoder or, with on_error="skip", unreadable.
    """

    history: list[dict[str, float]]
    checkpoint: Path
    resumed_from: int
    skipped: dict[str, str]


def pretrain(
    objective: Objective,
    clips: Sequence[Clip],
    folder: str | Path,
    *,
    learning_rate: float,
    max_steps: int,
    warmup_steps: int = 0,
    decay: str = "linear",
    weight_decay: float = 0.01,
    batch_seconds: float = 60.0,
    max_seconds: float = 15.6,
    batch_size: int | None = None,
    reader: ClipReader | None = None,
    labels: Sequence[str] = (),
    on_error: str = "raise",
    cache_bytes: int = 2**30,
    accumulate: int = 1,
    grad_clip: float | None = None,
    precision: str = "32-true",
    device: str = "cpu",
    seed: int = 0,
    save_every: int = 1000,
    log_every: int = 10,
    num_workers: int = 0,
) -> PretrainResult:
    """Train an objective on clips, from the last checkpoint in the folder if there is one.

    The loss curve and the weights depend on the objective, the clips, the settings and the seed, not on how often the
    run was interrupted. The global generators are left as they were. One process; several are refused by nothing here
    and served by nothing here: start one run per device.

    Args:
        objective: trained in place.
        clips: with the streams that the encoder takes.
        folder: for `last.ckpt` and `history.jsonl`, both written whole.
        learning_rate, warmup_steps, decay, weight_decay: see `PretrainModule`.
        max_steps: optimizer steps in all, those of the resumed run included.
        batch_seconds: most sound or video of a batch; pictures are counted by `batch_size` alone.
        max_seconds: longer waveforms are cropped to this; for readers that are not given.
        batch_size: most clips of a batch; None for no limit.
        reader: how clips are read; None for `reader_for` of the encoder.
        labels, on_error, cache_bytes: see `PretrainBatches`.
        accumulate: batches per optimizer step.
        grad_clip: largest norm of the gradient; None for no limit.
        precision: "32-true" or "bf16-mixed". Half precision with a loss scale may skip steps, which teachers would not
            notice, and is refused.
        device: "cpu", "cuda" or "cuda:1".
        seed: of the order, the crops, the masks and all else that is drawn.
        save_every: steps between two checkpoints; one follows the last step too.
        log_every: steps between two rows of the history.
        num_workers: processes that read audio; the run does not depend on it.

    Raises:
        ConfigError: a setting out of range, or a checkpoint of a run with another seed or accumulation.
        DataError, MediaError: clips that cannot be used.
        InputError: the loss is not finite.
    """
    from mmssl.training.pretrain_module import PretrainModule

    counts = {"max_steps": max_steps, "accumulate": accumulate, "save_every": save_every, "log_every": log_every}
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reader = reader or reader_for(objective.encoder.upstream.spec, max_seconds=max_seconds)
    batches = PretrainBatches(
        clips,
        reader,
        batch_seconds=batch_seconds,
        batch_size=batch_size,
        seed=seed,
        cache_bytes=cache_bytes,
        on_error=on_error,
        labels=labels,
    )
    total = max_steps * accumulate
    module = PretrainModule(
        objective,
        lambda first: pretrain_loader(batches, first, total, num_workers),
        learning_rate,
        max_steps,
        warmup_steps,
        decay,
        weight_decay=weight_decay,
        accumulate=accumulate,
        seed=seed,
        log_every=log_every,
    )
    checkpoint = folder / CHECKPOINT
    resumed = checkpoint if checkpoint.is_file() else None
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    objective.train()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with isolated_rng(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            callbacks = [_saver(save_every, folder)]
            trainer = _trainer(max_steps, accumulate, grad_clip, precision, device, callbacks)
            trainer.fit(module, ckpt_path=resumed, weights_only=True)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return PretrainResult(module.history, checkpoint, module.resumed_from, {**batches.skipped, **module.failed})


def _trainer(
    max_steps: int, accumulate: int, grad_clip: float | None, precision: str, device: str, callbacks: list[Any]
) -> Any:
    from lightning.pytorch import Trainer

    kind, _, index = device.partition(":")
    return Trainer(
        accelerator="cpu" if kind == "cpu" else "gpu",
        devices=1 if kind == "cpu" else [int(index or 0)],
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=grad_clip,
        precision=precision,  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _saver(save_every: int, folder: Path) -> Any:
    """Callback that writes checkpoint and history, each to another name first."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Saver(Callback):
        """Saves at steps, never between the batches of one."""

        _saved = 0

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Note where the run starts."""
            self._saved = trainer.global_step

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            """Save if a step of the interval, or the last one, has just been done."""
            step = trainer.global_step
            if step != self._saved and (step % save_every == 0 or step == trainer.max_steps):
                self._saved = step
                partial = folder / f".{CHECKPOINT}.{os.getpid()}.part"
                trainer.save_checkpoint(partial)
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
                partial.replace(folder / CHECKPOINT)
                _write_history(folder / HISTORY, pl_module.history)  # type: ignore[arg-type]

    return Saver()


def _write_history(path: Path, rows: list[dict[str, float]]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
