"""Fine-tuning an upstream with its head, from sound and video to answers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mmssl.errors import ConfigError, DataError
from mmssl.files import replace_file
from mmssl.random import isolated_rng
from mmssl.training.blocks import attach_drop_path
from mmssl.training.finetune_model import FineTuneModel
from mmssl.training.finetune_settings import FineTuneSettings
from mmssl.training.fit import _quiet_lightning
from mmssl.training.pretrain_batches import PretrainBatches, pretrain_loader
from mmssl.training.readers import ClipReader, Item
from mmssl.types import Clip

if TYPE_CHECKING:
    from lightning.pytorch import Callback

Targets = Mapping[str, int | float | Sequence[float]]
CHECKPOINT, BEST, HISTORY = "checkpoint.ckpt", "best.safetensors", "history.jsonl"


@dataclass(frozen=True)
class FineTuneResult:
    """What fine-tuning gives.

    Attributes:
        history: one row per evaluation: step, train_loss, learning_rate, dev_loss and the task's scores with "dev_".
        monitor: the column that selected.
        best: the row that was selected, whose weights the model holds.
        weights: file of these weights, safetensors.
        resumed_from: steps that an earlier process had done.
        skipped: id -> why, of training clips that could not be used.
    """

    history: list[dict[str, float]]
    monitor: str
    best: dict[str, float]
    weights: Path
    resumed_from: int
    skipped: dict[str, str]


def finetune(
    model: FineTuneModel,
    train: Sequence[Clip],
    dev: Sequence[Clip],
    targets: Targets,
    reader: ClipReader,
    folder: str | Path,
    settings: FineTuneSettings,
    *,
    device: str = "cpu",
    num_workers: int = 0,
    cache_bytes: int = 0,
    on_error: str = "raise",
) -> FineTuneResult:
    """Fine-tune a model; select by the development split alone.

    The result depends on the model's weights, the clips, the targets, the reader and the settings. A run that is killed
    goes on from its last evaluation when called again with the same folder, as if it had never stopped. Afterwards
    `model` holds the best weights, in eval mode.

    Args:
        model: trained in place.
        train, dev: clips with nothing in common; never those of the test split.
        targets: clip id -> class index, value or values.
        reader: of the clips; training takes random stretches, evaluation fixed ones.
        folder: where the checkpoint, the best weights and the history go.
        settings: how.
        device: "cpu", "cuda" or "cuda:1".
        num_workers: processes that read clips; the run does not depend on it.
        cache_bytes: memory for decoded clips.
        on_error: "raise", or "skip" to leave out training clips that cannot be read.

    Raises:
        ConfigError: settings that do not fit the model, or a run to resume with others.
        DataError, MediaError: clips without a target, in both splits, too short or unreadable.
        InputError: the loss is not finite, or the inputs do not fit.
    """
    from mmssl.training.finetune_module import FineTuneModule, as_targets

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_splits(train, dev, targets)
    known = as_targets({clip.id: targets[clip.id] for clip in (*train, *dev)})
    batches = PretrainBatches(
        train, reader, batch_size=settings.batch_size, seed=settings.seed, cache_bytes=cache_bytes, on_error=on_error
    )
    stretches = _Stretches(dev, reader, settings.num_crops, cache_bytes)

    def judge(trained: FineTuneModel) -> dict[str, float]:
        answers, wanted = stretches.answers(trained, known, settings.batch_size, None)
        return _scores(trained, answers, wanted)

    module = FineTuneModule(
        model,
        lambda first: pretrain_loader(batches, first, settings.max_steps, num_workers),
        known,
        judge,
        settings,
        signature=_signature(settings, train, dev, targets),
        keep=lambda trained: _write_weights(trained, folder / BEST),
    )
    checkpoint = folder / CHECKPOINT
    handles = attach_drop_path(model.upstream, settings.drop_path)
    try:
        model.train()
        with isolated_rng(settings.seed), _quiet_lightning():
            trainer = _trainer(settings, device, _saver(folder))
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
    finally:
        for handle in handles:
            handle.remove()
    assert module.best is not None  # the last step is always evaluated
    model.load_state_dict(load_file(folder / BEST))
    model.to(device).eval()
    return FineTuneResult(
        module.history, module.monitor, module.best, folder / BEST, module.resumed_from, dict(batches.skipped)
    )


def evaluate(
    model: FineTuneModel,
    clips: Sequence[Clip],
    targets: Targets,
    reader: ClipReader,
    *,
    streams: Sequence[str] | None = None,
    num_crops: int = 1,
    batch_size: int = 16,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Answers of a model for clips.

    Args:
        model: fine-tuned.
        clips: of the test split, for example.
        targets: clip id -> target.
        reader: of the clips.
        streams: which of "audio", "video" and "image" the model is given; None for all.
        num_crops: stretches of each clip, evenly spread, whose answers are averaged; one lies in the middle.
        batch_size: stretches at once; the answers do not depend on it.
        device: where to compute.

    Returns:
        (N, ...) answers as the task's `predict` gives them, and targets (N, ...), both on the CPU.

    Raises:
        DataError, MediaError: a clip without a target, too short or unreadable.
        InputError: inputs do not fit.
    """
    from mmssl.training.finetune_module import as_targets

    if num_crops < 1 or batch_size < 1:
        raise ConfigError(f"num_crops and batch_size must be at least 1, got {num_crops} and {batch_size}.")
    _check_splits(clips, (), targets)
    known = as_targets({clip.id: targets[clip.id] for clip in clips})
    return _Stretches(clips, reader, num_crops, 0).answers(model.to(device), known, batch_size, streams)


class _Stretches:
    """Fixed stretches of clips, in their order."""

    def __init__(self, clips: Sequence[Clip], reader: ClipReader, num_crops: int, cache_bytes: int) -> None:
        if not clips:
            raise DataError("A split without clips was given: train, dev and test each need clips.")
        self.clips, self.reader, self.num_crops, self.cache_bytes = clips, reader, num_crops, cache_bytes
        self._cache: dict[int, list[Item]] = {}
        self._cached = 0

    def answers(
        self, model: FineTuneModel, targets: Mapping[str, Tensor], batch_size: int, streams: Sequence[str] | None
    ) -> tuple[Tensor, Tensor]:
        """Mean answers over the stretches of each clip, and targets."""
        from mmssl.training.finetune_module import moved

        device = model.upstream.device
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        waiting: list[tuple[int, Item]] = []

        def flush() -> None:
            inputs = moved(self.reader.collate([item for _, item in waiting]), device)
            for (index, _), answer in zip(waiting, model.predict(inputs, streams).cpu(), strict=True):
                sums[index] = sums[index] + answer if index in sums else answer
                counts[index] = counts.get(index, 0) + 1
            waiting.clear()

        for index in range(len(self.clips)):
            for item in self._items(index):
                waiting.append((index, item))
                if len(waiting) == batch_size:
                    flush()
        if waiting:
            flush()
        found = torch.stack([sums[index] / counts[index] for index in range(len(self.clips))])
        return found, torch.stack([targets[clip.id] for clip in self.clips])

    def _items(self, index: int) -> list[Item]:
        if index in self._cache:
            return self._cache[index]
        clip, reader = self.clips[index], self.reader
        extent = reader.measure(clip)
        if extent < reader.least:
            raise DataError(f"The clip {clip.id!r} has {extent} units, the model needs {reader.least}: leave it out.")
        size = extent if reader.most is None else min(extent, reader.most)
        room = extent - size
        firsts = (
            {room // 2} if self.num_crops == 1 else {room * k // (self.num_crops - 1) for k in range(self.num_crops)}
        )
        items = [reader.load(clip, first - first % reader.step, size) for first in sorted(firsts)]
        nbytes = sum(item.nbytes for item in items)
        if self._cached + nbytes <= self.cache_bytes:
            self._cache[index] = items
            self._cached += nbytes
        return items


def _scores(model: FineTuneModel, answers: Tensor, targets: Tensor) -> dict[str, float]:
    metrics: Any = model.task.metrics
    found = {f"dev_{name}": float(value) for name, value in metrics(answers, targets).items()}
    loss = model.answers_loss(answers, targets.to(answers.device))
    # tasks without a loss of a whole split are compared by their scores alone
    return {"dev_loss": 0.0 if loss is None else loss} | found


def _check_splits(train: Sequence[Clip], dev: Sequence[Clip], targets: Targets) -> None:
    without = [clip.id for clip in (*train, *dev) if clip.id not in targets]
    if without:
        raise DataError(f"{len(without)} clips have no target, the first is {without[0]!r}.")
    shared = {clip.id for clip in train} & {clip.id for clip in dev}
    if shared:
        raise DataError(f"{len(shared)} clips are in both splits, one is {min(shared)!r}: nothing could be selected.")


def _signature(settings: FineTuneSettings, train: Sequence[Clip], dev: Sequence[Clip], targets: Targets) -> str:
    known = [[[clip.id, targets[clip.id]] for clip in split] for split in (train, dev)]
    text = json.dumps([dataclasses.asdict(settings), known], default=list, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_weights(model: FineTuneModel, path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replace_file(path) as file:
        file.write(save(state))


def _trainer(settings: FineTuneSettings, device: str, saver: Callback) -> Any:
    from lightning.pytorch import Trainer

    kind, _, index = device.partition(":")
    return Trainer(
        accelerator="cpu" if kind == "cpu" else "gpu",
        devices=1 if kind == "cpu" else [int(index or 0)],
        max_steps=settings.max_steps,
        max_epochs=-1,
        gradient_clip_val=settings.grad_clip,
        callbacks=[saver],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _saver(folder: Path) -> Callback:
    """Callback that evaluates, and then writes the checkpoint and the history."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Saver(Callback):
        """Works after steps."""

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            """Evaluate and save if it is due."""
            if not pl_module.evaluate_if_due():  # type: ignore[operator]
                return
            partial = folder / f".{CHECKPOINT}.{os.getpid()}.part"
            trainer.save_checkpoint(partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(folder / CHECKPOINT)
            rows: Any = pl_module.history
            with replace_file(folder / HISTORY) as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    return Saver()
