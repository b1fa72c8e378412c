"""Speaker training from waveforms, over Lightning: stages that can be killed at any time and resumed.

Checkpoints are selected by trials among held-out training speakers. Test trials cannot be given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmssl.data.trials import Trials, make_trials, write_trials
from mmssl.downstream.margin import MarginSoftmax, SupervisedContrastive
from mmssl.errors import ConfigError, DataError
from mmssl.lengths import seconds_to_samples
from mmssl.random import mix
from mmssl.training.readers import AudioReader
from mmssl.training.speaker_data import (
    SpeakerBatches,
    check_speeds,
    fingerprint,
    refuse_overlap,
    speaker_names,
    usable_clips,
)
from mmssl.training.speaker_stage import SpeakerStage, large_margin_stage
from mmssl.types import Clip

if TYPE_CHECKING:
    from mmssl.augment.base import Augmentation
    from mmssl.augment.spectrogram import SpecAugment
    from mmssl.downstream.speaker_model import SpeakerModel
    from mmssl.training.speaker_distill import Distillation

__all__ = ["SpeakerStage", "SpeakerTraining", "large_margin_stage", "num_classes", "train_speaker"]

TRIALS = "dev_trials.txt"
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class SpeakerTraining:
    """What speaker training gives.

    Attributes:
        history: rows of all stages: stage, step, loss, accuracy, margin, learning_rate, and in rows of evaluations
            dev_eer, dev_min_dcf_p01 and dev_min_dcf_p05.
        best: the row whose weights were kept.
        trials: among the held-out training speakers.
        num_speakers: of training, before speed perturbation.
        skipped: id -> why, of clips that were left out.
        resumed_from: steps of all stages that were done before this call.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    trials: Trials
    num_speakers: int
    skipped: dict[str, str]
    resumed_from: int


def num_classes(train: Sequence[Clip], speeds: Sequence[float] = (1.0, 0.9, 1.1)) -> int:
    """Classes that the loss must have: a speaker at each speed is one."""
    return len(speaker_names(train)) * len(check_speeds(speeds))


def train_speaker(
    model: SpeakerModel,
    loss: nn.Module,
    train: Sequence[Clip],
    dev: Sequence[Clip],
    folder: str | Path,
    *,
    stages: Sequence[SpeakerStage],
    speeds: Sequence[float] = (1.0, 0.9, 1.1),
    augmentation: Augmentation | None = None,
    spec_augment: SpecAugment | None = None,
    distillation: Distillation | None = None,
    batch_size: int = 64,
    clips_per_speaker: int = 1,
    optimizer: str = "adamw",
    weight_decay: float = 1e-4,
    grad_clip: float | None = 5.0,
    eval_every: int | None = None,
    save_every: int = 1000,
    log_every: int = 10,
    trials_per_speaker: int = 50,
    trials_within: str | None = None,
    dev_seconds: float = 10.0,
    min_seconds: float = 0.3,
    min_clips: int = 2,
    on_error: str = "raise",
    precision: str = "32-true",
    device: str = "cpu",
    seed: int = 0,
    num_workers: int = 0,
    cache_bytes: int = 2**30,
) -> SpeakerTraining:
    """Train a speaker model in stages, each from the best weights of the one before.

    The weights depend on the model, the clips, the settings and the seed, not on how often the run was interrupted or
    on the number of workers. The global generators are left as they were. Afterwards `model` and `loss` hold the
    selected weights, in eval mode, on the CPU.

    Args:
        model: trained in place.
        loss: `MarginSoftmax` over `num_classes(train, speeds)` classes, or `SupervisedContrastive`.
        train: clips with speakers.
        dev: clips of other speakers of the training part (`hold_out_speakers`): trials among them select.
        folder: for checkpoints, the histories and the development trials.
        stages: in order, see `SpeakerStage` and `large_margin_stage`.
        speeds: the first is 1; (1.0,) for no speed perturbation.
        augmentation: of the crops, see `mmssl.training.speaker_augment.speaker_augmentation`.
        spec_augment: of the frames that the encoder sees.
        distillation: what the model's upstream, a `SpeechStudent`, is distilled from meanwhile (OS-KDFT).
        batch_size, clips_per_speaker: see `SpeakerBatches`.
        optimizer, weight_decay: see `SpeakerModule`.
        grad_clip: largest norm of the gradient; None for no limit.
        eval_every: steps between two evaluations, which also follow each stage's last step; None for a tenth of it.
        save_every: steps between two checkpoints; one follows each evaluation too.
        log_every: steps between two rows of the history.
        trials_per_speaker: most target trials of a development speaker.
        trials_within: name of a label; development trials are made among clips with the same value of it alone.
        dev_seconds: longer development clips are cut to their middle.
        min_seconds: clips must not be shorter.
        min_clips: training speakers must not have fewer clips.
        on_error: what happens to such clips and speakers, and to clips without sound or with an unreadable header:
            "raise", or "skip" to leave them out. The speakers that are left must be those the loss was built for.
        precision: "32-true" or "bf16-mixed".
        device: "cpu", "cuda" or "cuda:1".
        seed: of all that is drawn.
        num_workers: processes that read audio.
        cache_bytes: memory for decoded clips, per process.

    Raises:
        DataError: a speaker or clip is in both parts, or clips cannot be used.
        MediaError: a file that cannot be read.
        ConfigError: settings that do not fit, or a folder that holds another run.
        InputError: the loss or the embeddings are not finite (`DivergedError`).
    """
    from mmssl.training.speaker_module import DevelopmentTrials, standing
    from mmssl.training.speaker_run import StageRun

    counts = {"save_every": save_every, "log_every": log_every, "eval_every": eval_every or 1, "stages": len(stages)}
    if min(counts.values()) < 1 or precision not in PRECISIONS or not dev_seconds > 0:
        raise ConfigError(
            f"These must be at least 1: {counts}; precision one of {', '.join(PRECISIONS)} and dev_seconds above 0, "
            f"got {precision!r} and {dev_seconds}."
        )
    folder = Path(folder)
    refuse_overlap(train, dev)
    reader = AudioReader(model.sample_rate, min_samples=model.min_length)
    used, skipped = usable_clips(train, reader, min_seconds, min_clips, on_error)
    dev_used, dev_skipped = usable_clips(dev, reader, min_seconds, 1, on_error)
    check_loss(model, loss, len(speaker_names(used)), speeds, clips_per_speaker)
    trials = development_trials(dev_used, trials_per_speaker, trials_within, seed)
    settings = {
        "model": repr(model.description),
        "optimizer": (optimizer, weight_decay, grad_clip, precision, batch_size, clips_per_speaker, seed),
        "augmentation": (describe(augmentation), describe(spec_augment), [str(s) for s in check_speeds(speeds)]),
        "dev": fingerprint(dev_used, {"seconds": dev_seconds, "trials": trials_per_speaker, "within": trials_within}),
    }
    if distillation is not None:
        settings["distillation"] = distillation.describe()
    judge = DevelopmentTrials(_development(dev_used, trials, reader, dev_seconds), trials)
    run = StageRun(
        model,
        loss,
        judge,
        optimizer=optimizer,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        precision=precision,
        device=device,
        save_every=save_every,
        log_every=log_every,
        num_workers=num_workers,
        distillation=distillation,
    )
    write_trials(folder / TRIALS, trials)
    history: list[dict[str, float]] = []
    best: dict[str, float] = {}
    resumed = 0
    for number, stage in enumerate(stages):
        batches = SpeakerBatches(
            used,
            reader,
            batch_size,
            _samples(stage.crop_seconds, model),
            clips_per_speaker=clips_per_speaker,
            speeds=speeds if stage.perturb_speed else (1.0,),
            augmentation=augmentation,
            seed=mix(seed, number),
            cache_bytes=cache_bytes,
        )
        every = min(stage.steps, eval_every or max(1, stage.steps // 10))
        name = fingerprint(used, settings | {"stage": repr(stage), "number": number, "every": every})
        result = run.fit(folder / f"stage{number}", stage, batches, every, spec_augment, name)
        resumed += result.resumed_from
        history += [{"stage": float(number), **row} for row in result.history]
        if not best or standing(result.best) <= standing(best):
            best, weights = {"stage": float(number), **result.best}, result.weights
    run.load(weights)
    model.eval()
    loss.eval()
    return SpeakerTraining(history, best, trials, len(speaker_names(used)), {**skipped, **dev_skipped}, resumed)


def development_trials(clips: Sequence[Clip], per_speaker: int, within: str | None = None, seed: int = 0) -> Trials:
    """Trials among development clips.

    Args:
        clips: of speakers that are not trained on.
        per_speaker: most target trials of a speaker.
        within: name of a label; each trial's clips have the same value of it. Across corpora, say, recording
            conditions would decide, and an encoder that hears only these would be selected.
        seed: of the draw.

    Raises:
        DataError: ids repeat, a clip lacks the label, or no trials can be made.
    """
    if len({clip.id for clip in clips}) < len(clips):
        raise DataError("Ids of development clips must differ, since trials name them.")
    groups: dict[str | None, dict[str, str]] = {}
    for clip in clips:
        value = None if within is None else clip.group(within)
        if within is not None and value is None:
            raise DataError(f"The development clip {clip.id!r} has no label {within!r} to make trials within.")
        groups.setdefault(value, {})[clip.id] = str(clip.speaker)
    found, refused = list[Trials](), list[DataError]()
    for group in groups.values():
        try:
            found.append(make_trials(group, per_speaker, seed))
        except DataError as error:
            refused.append(error)
    if not found:
        raise refused[0] if refused else DataError("There are no development clips.")
    return Trials(*(sum((getattr(t, side) for t in found), ()) for side in ("enrol", "test", "is_target")))


def check_loss(
    model: SpeakerModel, loss: nn.Module, speakers: int, speeds: Sequence[float], clips_per_speaker: int
) -> None:
    """Refuse a loss that does not fit the model, the speakers or the batches.

    Raises:
        ConfigError: as it says.
    """
    if isinstance(loss, SupervisedContrastive):
        if clips_per_speaker < 2:
            raise ConfigError(
                f"A contrastive loss compares clips of a speaker within a batch: set clips_per_speaker to 2 or more, "
                f"got {clips_per_speaker}."
            )
        return
    if not isinstance(loss, MarginSoftmax):
        raise ConfigError(f"The loss must be a MarginSoftmax or SupervisedContrastive, got {type(loss).__name__}.")
    classes = speakers * len(check_speeds(speeds))
    if (loss.weight.shape[1], loss.num_classes) != (model.output_size, classes):
        raise ConfigError(
            f"The loss takes embeddings of width {loss.weight.shape[1]} and has {loss.num_classes} classes; the model "
            f"gives {model.output_size}, and {speakers} speakers at {len(check_speeds(speeds))} speeds are {classes} "
            "classes (num_classes(train, speeds), counted after clips were left out)."
        )


def describe(value: Any) -> str:
    """A text that is the same for equal augmentations: their kinds and all they hold."""
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {hashlib.sha256(value.double().numpy().tobytes()).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(describe(item) for item in value) + "]"
    return f"{type(value).__qualname__}({describe(vars(value)) if hasattr(value, '__dict__') else repr(value)})"


def _development(clips: Sequence[Clip], trials: Trials, reader: AudioReader, seconds: float) -> dict[str, Tensor]:
    """Waveforms of the clips that trials name, the middle of longer ones."""
    named = {*trials.enrol, *trials.test}
    most = max(seconds_to_samples(seconds, reader.sample_rate), reader.least)
    found = {}
    for clip in clips:
        if clip.id in named:
            wave = reader.load(clip, 0, 2**62).waveform
            assert wave is not None
            start = max(len(wave) - most, 0) // 2
            found[clip.id] = wave[start : start + most].clone()
    return found


def _samples(crop_seconds: tuple[float, float], model: SpeakerModel) -> tuple[int, int]:
    low, high = (max(seconds_to_samples(s, model.sample_rate), model.min_length) for s in crop_seconds)
    return low, high
