"""Speaker training as a Lightning module: schedules, selection by development trials, and a place to resume from.

Nothing random is kept between batches: dropout and spectrogram masks of batch k are drawn from generators seeded with
the run's seed and k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmssl.augment.spectrogram import SpecAugment
from mmssl.data.trials import Trials
from mmssl.downstream.margin import MarginSoftmax
from mmssl.downstream.scoring import cosine_scores
from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import ConfigError, InputError
from mmssl.lengths import pad
from mmssl.metrics.verification import verification_metrics
from mmssl.random import isolated_rng, mix
from mmssl.training.module import DivergedError
from mmssl.training.speaker_data import SpeakerBatch
from mmssl.training.speaker_distill import Distillation
from mmssl.training.speaker_stage import SpeakerStage
from mmssl.types import Padded

_DROPOUT, _MASKS = 5, 6  # streams of random numbers


class DevelopmentTrials:
    """Clips of held-out training speakers and trials among them.

    Args:
        waveforms: clip id -> (T,).
        trials: among these clips.
        batch_seconds: most sound that is embedded at once.
    """

    def __init__(self, waveforms: dict[str, Tensor], trials: Trials, batch_seconds: float = 60.0) -> None:
        self.ids = sorted(waveforms, key=lambda name: (len(waveforms[name]), name))
        self.waveforms, self.trials, self.batch_seconds = waveforms, trials, batch_seconds
        self.rows = trials.rows(self.ids)

    def scores(self, model: SpeakerModel) -> dict[str, float]:
        """EER and minDCF of cosine scores of whole clips: {"dev_eer", "dev_min_dcf_p01", "dev_min_dcf_p05"}."""
        device = next(model.parameters()).device
        most = self.batch_seconds * model.sample_rate
        embeddings, batch = [], list[Tensor]()
        for name in self.ids:
            if batch and len(self.waveforms[name]) * (len(batch) + 1) > most:
                embeddings.append(self._embed(model, batch, device))
                batch = []
            batch.append(self.waveforms[name])
        embeddings.append(self._embed(model, batch, device))
        cosines = cosine_scores(torch.cat(embeddings).numpy(), *self.rows)
        found = verification_metrics(cosines, self.trials.is_target)
        return {f"dev_{name}": value for name, value in found.items()}

    def _embed(self, model: SpeakerModel, batch: Sequence[Tensor], device: torch.device) -> Tensor:
        return model.embed(Padded(*pad(batch)).to(device)).float().cpu()


def standing(row: Mapping[str, float]) -> tuple[float, float]:
    """What rows of evaluations are compared by, lower being better: a short list has few different EERs."""
    return row["dev_eer"], row["dev_min_dcf_p05"]


class SpeakerModule(LightningModule):
    """Trains a speaker model and its loss for one stage.

    Args:
        model, loss: trained in place.
        stage: what is done.
        loader: from the number of the first batch to a loader of all that follow.
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9.
        weight_decay: of weights with more than one dimension.
        spec_augment: of the frames that the encoder sees, or None.
        seed: of all that is drawn.
        settings: name of the run's clips and settings, which a run that is resumed must have.
        distillation: what the upstream, a student, is distilled from meanwhile; None for none.

    Attributes:
        history: rows of means since the row before: step, loss, accuracy, margin, learning_rate, and where there is a
            teacher the distance from it, distillation; and of evaluations.
        best: row of the best evaluation so far; None before the first.
        resumed_from: steps that were done before this process.

    Raises:
        ConfigError: settings that do not fit the model.
    """

    strict_loading = False  # an upstream that is not trained is not in checkpoints

    def __init__(
        self,
        model: SpeakerModel,
        loss: nn.Module,
        stage: SpeakerStage,
        loader: Callable[[int], DataLoader[SpeakerBatch]],
        optimizer: str = "adamw",
        weight_decay: float = 1e-4,
        spec_augment: SpecAugment | None = None,
        seed: int = 0,
        settings: str = "",
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        if optimizer not in ("adamw", "sgd") or weight_decay < 0:
            raise ConfigError(
                f"optimizer must be adamw or sgd and weight_decay at least 0, got {optimizer!r}, {weight_decay}."
            )
        if model.train_upstream != (stage.upstream_learning_rate is not None):
            raise ConfigError(
                f"train_upstream is {model.train_upstream} and upstream_learning_rate {stage.upstream_learning_rate}: "
                "an upstream that is trained needs a learning rate of its own, a frozen one takes none."
            )
        if spec_augment is not None and model.takes_waveforms:
            raise ConfigError("SpecAugment masks frames; this encoder takes waveforms. Set spec_augment to null.")
        if distillation is not None:
            distillation.check(model)
        self.model, self.loss, self.stage, self._loader = model, loss, stage, loader
        self.distillation = distillation
        self.optimizer_name, self.weight_decay = optimizer, weight_decay
        self.spec_augment, self.seed, self.settings = spec_augment, seed, settings
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.batches_done = 0
        self.resumed_from = 0
        self._sums: dict[str, float] = {}
        self._count = 0

    def train_dataloader(self) -> DataLoader[SpeakerBatch]:
        """Batches from where the run stands."""
        return self._loader(self.batches_done)

    def transfer_batch_to_device(self, batch: SpeakerBatch, device: torch.device, index: int) -> SpeakerBatch:
        """Move waveforms and labels."""
        return SpeakerBatch(batch.waveforms.to(device), batch.labels.to(device), batch.seeds, batch.ids, batch.number)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Groups by learning rate and weight decay; all follow one curve."""
        upstream, own = self.model.optimizer_groups()
        own = [*own, *self.loss.parameters()]
        groups = []
        parts = [(own, self.stage.learning_rate)]
        if self.distillation is not None:
            upstream, adapters = self.distillation.split(self.model, upstream)
            parts.append((adapters, self.stage.learning_rate * self.distillation.adapter_factor))
        if self.stage.upstream_learning_rate is not None:
            parts.append((upstream, self.stage.upstream_learning_rate))
        for parameters, rate in parts:
            for chosen, decay in (
                ([p for p in parameters if p.dim() > 1], self.weight_decay),
                ([p for p in parameters if p.dim() <= 1], 0.0),
            ):
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.stage.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: SpeakerBatch, batch_index: int) -> Tensor:
        """Loss of a batch.

        Raises:
            InputError: it is not finite.
        """
        step = batch.number
        margin = self.stage.margin_of(step)
        if isinstance(self.loss, MarginSoftmax):
            self.loss.margin = margin
        with isolated_rng(mix(self.seed, _DROPOUT, step) % 2**31):
            frames, distance = self._frames(batch.waveforms)
            if self.spec_augment is not None:
                frames = self._masked(frames, batch.seeds)
            output = self.loss(self.model.encode(frames), batch.labels)
        loss = output if isinstance(output, Tensor) else output.loss
        if self.distillation is not None and distance is not None:
            loss = loss + self.distillation.weight_at(step, self.stage.steps) * distance
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"The loss of step {step} is {float(loss)}: lower the learning rate, warm up for longer, or clip the "
                "gradient."
            )
        self.batches_done = step + 1
        values = {"loss": float(loss.detach()), "margin": margin, "learning_rate": self._rate()}
        if distance is not None:
            values["distillation"] = float(distance.detach())
        if not isinstance(output, Tensor):
            values["accuracy"] = float((output.predictions.argmax(1) == batch.labels).float().mean())
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return loss

    def _frames(self, waveforms: Padded) -> tuple[Padded, Tensor | None]:
        """What the encoder sees, and the distillation loss where there is one."""
        if self.distillation is None:
            return self.model.frames(waveforms), None
        return self.distillation.frames(self.model, waveforms)

    def log_row(self, step: int) -> dict[str, float]:
        """Begin a row of the history: means since the row before."""
        row = {"step": float(step), **{name: total / self._count for name, total in self._sums.items()}}
        self._sums, self._count = {}, 0
        self.history.append(row)
        return row

    def evaluate(self, row: dict[str, float], trials: DevelopmentTrials) -> bool:
        """Add the development scores to a row; True where it is the best so far.

        The lowest EER is the best, among equal ones that of the lowest minDCF, and then the earliest.
        """
        try:
            row.update(trials.scores(self.model))
        except InputError as error:
            raise DivergedError(
                f"The development trials of step {row['step']:.0f} cannot be scored: {error}"
            ) from error
        better = self.best is None or standing(row) < standing(self.best)
        if better:
            self.best = row
        return better

    def trained_state(self) -> dict[str, Tensor]:
        """Weights of model and loss on the CPU, without an upstream that is not trained."""
        parts = {"model": self.model.trained_state(), "loss": self.loss.state_dict()}
        return {f"{p}.{k}": v.detach().cpu().contiguous() for p, state in parts.items() for k, v in state.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the place in the data and the log; leave out what is not trained."""
        kept = {f"model.{name}" for name in self.model.trained_state()}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in kept or k.startswith("loss.")}
        checkpoint["speaker"] = {
            "batches_done": self.batches_done,
            "history": self.history,
            "best": self.best,
            "sums": self._sums,
            "count": self._count,
            "settings": self.settings,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the place in the data.

        Raises:
            ConfigError: the run that is resumed had other clips or settings.
        """
        state = checkpoint.get("speaker")
        if state is None or state["settings"] != self.settings:
            raise ConfigError(
                "The folder holds a run with other clips or settings, which could not go on as it was. Keep the "
                "settings, or train in another folder."
            )
        weights = {name: tensor.shape for name, tensor in self.trained_state().items()}
        if weights != {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}:
            raise ConfigError("The folder holds a run of another model or loss: train in another folder.")
        self.resumed_from = int(checkpoint["global_step"])
        self.batches_done, self.history, self.best = state["batches_done"], list(state["history"]), state["best"]
        self._sums, self._count = dict(state["sums"]), state["count"]

    def _masked(self, frames: Padded, seeds: Sequence[int]) -> Padded:
        assert self.spec_augment is not None
        clips = []
        for clip, seed in zip(frames.unpad(), seeds, strict=True):
            generator = torch.Generator().manual_seed(mix(seed, _MASKS))
            clips.append(self.spec_augment(clip, generator))
        return Padded(*pad(clips))

    def _rate(self) -> float:
        if self._trainer is None:
            return self.stage.learning_rate
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])
