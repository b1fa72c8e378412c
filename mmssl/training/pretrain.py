"""One pretraining run over Lightning, which can be killed at any time and resumed exactly."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError
from mmssl.random import isolated_rng
from mmssl.training.pretrain_batches import PretrainBatches
from mmssl.training.readers import ClipReader, reader_for

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    from mmssl.augment.base import Augmentation
    from mmssl.objectives.objective import Objective
    from mmssl.types import Clip

CHECKPOINT = "last.ckpt"
HISTORY = "history.jsonl"


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run gives.

    Attributes:
        history: rows of `PretrainModule.history`, from the first step on even where the run was resumed.
        checkpoint: file from which the run can be resumed or continued.
        resumed_from: steps that were done before; 0 for a new run.
        skipped: id -> why, of clips that were too short for the encoder or, with on_error="skip", unreadable.
        warnings: what the watcher of collapses said, with the step; also in `warnings.jsonl`.
    """

    history: list[dict[str, float]]
    checkpoint: Path
    resumed_from: int
    skipped: dict[str, str]
    warnings: tuple[str, ...] = ()


def pretrain(
    objective: Objective,
    clips: Sequence[Clip],
    folder: str | Path,
    *,
    learning_rate: float,
    max_steps: int,
    warmup_steps: int = 0,
    hold_steps: int = 0,
    decay: str = "linear",
    final_factor: float | None = None,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
    layer_decay: float = 1.0,
    batch_seconds: float = 60.0,
    max_seconds: float = 15.6,
    batch_size: int | None = None,
    group_by: str | None = None,
    group_size: int = 8,
    reader: ClipReader | None = None,
    augment: Augmentation | None = None,
    labels: Sequence[str] = (),
    on_error: str = "raise",
    cache_bytes: int = 2**30,
    accumulate: int = 1,
    grad_clip: float | None = None,
    precision: str = "32-true",
    device: str = "cpu",
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    seed: int = 0,
    save_every: int = 1000,
    log_every: int = 10,
    num_workers: int = 0,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = (),
    log: Callable[[str], None] | None = None,
) -> PretrainResult:
    """Train an objective on clips, from the last checkpoint in the folder if there is one.

    The loss curve and the weights depend on the objective, the clips, the settings and the seed, not on how often the
    run was interrupted. The global generators are left as they were.

    Several processes share each batch, so that their joint gradient is that of one process; for what differs, see
    `mmssl.training.pretrain_parallel`, and for damaged files `mmssl.training.pretrain_joint`. Start them with
    `torchrun --nproc-per-node N` or `srun` (one task for each device), or have Lightning start the script N times; all
    need the same folder and clips.

    Args:
        objective: trained in place.
        clips: with the streams that the encoder takes.
        folder: for `last.ckpt`, `history.jsonl` and the same as `metrics.csv`, all written whole.
        learning_rate, warmup_steps, hold_steps, decay, final_factor, weight_decay, betas, eps, layer_decay: see
            `Optimization`.
        max_steps: optimizer steps in all, those of the resumed run included.
        batch_seconds: most sound or video of a batch of all processes; pictures are counted by `batch_size` alone.
        max_seconds: longer waveforms are cropped to this; for readers that are not given.
        batch_size: most clips of a batch of all processes; None for no limit.
        reader: how clips are read; None for `reader_for` of the encoder.
        group_by, group_size, augment, labels, on_error, cache_bytes: see `PretrainBatches`.
        accumulate: batches per optimizer step.
        grad_clip: largest norm of the gradient; None for no limit.
        precision: "32-true", "bf16-mixed", or "16-mixed" with a loss scale: steps whose gradients overflow are left
            out, by teachers, centres and queues too, and counted in the history.
        device: "cpu", "cuda" or "cuda:1".
        devices: processes on this machine, one for each device.
        num_nodes: machines.
        strategy: "auto" (DDP for several processes), "ddp", or "fsdp", which spreads parameters over processes.
        seed: of the order, the crops, the masks and all else that is drawn.
        save_every: steps between two checkpoints; one follows the last step too.
        log_every: steps between two rows of the history.
        num_workers: processes that read clips; the run does not depend on it.
        callbacks: of Lightning, called before rows are logged and the checkpoint is written, so that what they
            `PretrainModule.note` and keep in their `state_dict` is part of it. A `CollapseWatcher` is added where none
            is among them.
        loggers: "tensorboard", or loggers of Lightning, for the rows of the history.
        log: takes lines that say how far the run is; None for the logger "mmssl.training", which is silent unless its
            level is INFO.

    Raises:
        ConfigError: a setting out of range, a missing package, or a checkpoint of a run with another seed or
            accumulation.
        DataError, MediaError: clips that cannot be used.
        InputError: loss or gradient is not finite, or a batch does not suit the objective.
    """
    from mmssl.training.pretrain_joint import JointBatches
    from mmssl.training.pretrain_loggers import Progress, RowLogger, Saver
    from mmssl.training.pretrain_module import PretrainModule
    from mmssl.training.pretrain_optim import Optimization
    from mmssl.training.pretrain_parallel import make_trainer
    from mmssl.training.pretrain_watch import CollapseWatcher

    settings = Optimization(
        learning_rate=learning_rate,
        max_steps=max_steps,
        warmup_steps=warmup_steps,
        hold_steps=hold_steps,
        decay=decay,
        final_factor=final_factor,
        betas=tuple(betas),  # type: ignore[arg-type]  # lists come from YAML
        eps=eps,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        grad_clip=grad_clip,
        accumulate=accumulate,
    )
    for name, value in {"save_every": save_every, "log_every": log_every}.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    folder = Path(folder)
    given = [callback for callback in callbacks if isinstance(callback, CollapseWatcher)]
    watcher = given[0] if given else CollapseWatcher(folder)
    own = [] if given else [watcher]
    watching = [*callbacks, *own, RowLogger(loggers, folder), Progress(log), Saver(save_every, folder)]
    trainer_settings: dict[str, Any] = {
        "max_steps": max_steps,
        "accumulate": accumulate,
        "precision": precision,
        "device": device,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
        "callbacks": watching,
    }
    with _quiet_lightning(), isolated_rng(seed):
        trainer = make_trainer(**trainer_settings)
        folder.mkdir(parents=True, exist_ok=True)
        batches = PretrainBatches(
            clips,
            reader or reader_for(objective.encoder.upstream.spec, max_seconds=max_seconds),
            batch_seconds=batch_seconds,
            batch_size=batch_size,
            group_by=group_by,
            group_size=group_size,
            augment=augment,
            seed=seed,
            cache_bytes=cache_bytes,
            on_error=on_error,
            labels=labels,
        )

        def loader(first: int, count: int, rank: int, world_size: int) -> JointBatches:
            batches.rank, batches.world_size = rank, world_size
            return JointBatches(batches, first, count, num_workers)

        module = PretrainModule(objective, loader, settings, seed, log_every)
        checkpoint = folder / CHECKPOINT
        objective.train()
        trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
        trainer.strategy.barrier()
    skipped = {**batches.skipped, **module.failed}
    said = tuple(f"step {warned.step}: {warned.message}" for warned in watcher.warned)
    return PretrainResult(module.history, checkpoint, module.resumed_from, skipped, said)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[Any]:
    """Keep Lightning's remarks on devices, workers and schedules out of the output."""
    import lightning.pytorch  # noqa: F401  (its import sets up the loggers that are silenced here)

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # a first step that the loss scale leaves out
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
