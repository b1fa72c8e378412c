"""Stage 2 of recipes/spk: train a speaker model; trials of held-out training speakers select the checkpoint."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.spk_setup import (
    CONTRASTIVE,
    MODEL,
    TRAINING,
    TRAINING_SUMMARY,
    build_loss,
    build_model,
    described,
    known,
    parts_of,
)

if TYPE_CHECKING:
    from mmssl.augment.base import Augmentation
    from mmssl.augment.spectrogram import SpecAugment
    from mmssl.training.speaker_stage import SpeakerStage

SETTINGS = "settings.json"
# where and by how many processes clips are read, and how often it is saved, change no weights
_NO_CHANGE = ("num_workers", "cache_bytes", "save_every")


def train(context: Context) -> str:
    """Train the model, or go on where it was interrupted; write exp/NAME/model and exp/NAME/training.json.

    Raises:
        ConfigError: a setting is unknown or out of range, or parts do not fit.
        DataError: training clips or speakers that cannot be used.
    """
    from mmssl.training.readers import AudioReader
    from mmssl.training.speaker import num_classes, train_speaker
    from mmssl.training.speaker_data import usable_clips
    from mmssl.training.speaker_files import save_speaker_model

    config, folder = context.config, context.exp_dir / TRAINING
    settings, common = dict(config["training"]), config["speaker"]
    stages = stages_of(settings)
    parts = parts_of(context)
    model = build_model(context)
    _check_saving(context)
    reader = AudioReader(model.sample_rate, min_samples=model.min_length)
    on_error = config["data"]["on_error"]
    clips, skipped = usable_clips(parts["train"], reader, common["min_seconds"], common["min_clips"], on_error)
    speeds = tuple(settings["speeds"])
    loss = build_loss(config, model.output_size, num_classes(clips, speeds))
    options = {k: v for k, v in settings.items() if k not in ("first", "large_margin")}
    _clear_other_run(context, folder, {"clips": [c.id for c in clips], "dev": [c.id for c in parts["dev"]]})
    log.info("   %s, %.2f M parameters to train", described(context), _trained_millions(model))
    log.info("   the history grows in exp/%s/%s/stage0/history.jsonl", context.exp, TRAINING)
    began = time.monotonic()
    result = train_speaker(
        model,
        loss,
        clips,
        parts["dev"],
        folder,
        stages=stages,
        augmentation=augmentation(context, model.sample_rate),
        spec_augment=spec_augment(config["augmentation"]),
        min_seconds=common["min_seconds"],
        min_clips=common["min_clips"],
        on_error=on_error,
        trials_within=config["trials"]["within"],
        device=context.device(),
        **known("training", options, train_speaker),
    )
    seconds = time.monotonic() - began
    save_speaker_model(context.exp_dir / MODEL, model)
    steps = sum(stage.steps for stage in stages)
    summary = {
        "system": described(context),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": round(_trained_millions(model) * 1e6),
        "embedding_size": model.output_size,
        "speakers": result.num_speakers,
        "clips": len(clips),
        "steps": steps,
        "seconds": seconds,
        "resumed_from": result.resumed_from,
        "best": result.best,
        "dev_trials": len(result.trials),
        "skipped": {**skipped, **result.skipped},
        "history": result.history,
    }
    write_json(context.exp_dir / TRAINING_SUMMARY, summary)
    return (
        f"{result.num_speakers} speakers, {len(clips)} clips, {steps} steps; kept step {int(result.best['step'])} of "
        f"stage {int(result.best['stage']) + 1}: EER {100 * result.best['dev_eer']:.2f} % on {len(result.trials)} "
        "development trials"
    )


def stages_of(settings: Mapping[str, Any]) -> list[SpeakerStage]:
    """The stages of the section `training`: the first, and large-margin fine-tuning where it has steps.

    Raises:
        ConfigError: an unknown key or a value out of range.
    """
    from mmssl.training.speaker_stage import SpeakerStage, large_margin_stage

    stages = [SpeakerStage(**known("training.first", settings["first"], SpeakerStage))]
    if settings["large_margin"]["steps"]:
        fine = known("training.large_margin", settings["large_margin"], large_margin_stage)
        stages.append(large_margin_stage(**fine))
    return stages


def augmentation(context: Context, sample_rate: int) -> Augmentation | None:
    """Noise and rooms of the section `augmentation`.

    Raises:
        DataError: a folder does not exist or holds no sound.
    """
    from mmssl.training.speaker_augment import SYNTHETIC, speaker_augmentation

    def place(value: str | None) -> str | None:
        return value if value in (None, SYNTHETIC) else str(context.folder / Path(str(value)).expanduser())

    given = context.config["augmentation"]
    return speaker_augmentation(place(given["noise"]), place(given["rooms"]), given["probability"], sample_rate)


def spec_augment(given: Mapping[str, Any]) -> SpecAugment | None:
    """Masks of the section `augmentation`; None where it asks for none."""
    from mmssl.augment.spectrogram import SpecAugment

    if not given["bin_masks"] and not given["frame_masks"]:
        return None
    sizes = {name: given[name] for name in ("max_bins", "bin_masks", "max_frames", "frame_masks")}
    return SpecAugment(max_warp=0, **sizes)


def _check_saving(context: Context) -> None:
    """Save the model as it is, so that one that cannot be saved stops the run before it is trained, and not after.

    Raises:
        CheckpointError: it cannot be saved.
    """
    from mmssl.training.speaker_files import save_speaker_model

    context.exp_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.exp_dir) as folder:
        save_speaker_model(folder, build_model(context))


def _clear_other_run(context: Context, folder: Path, clips: Mapping[str, Any]) -> None:
    """Remove checkpoints of a run with other settings, which could not go on as this one."""
    config = context.config
    if config["loss"]["kind"] == CONTRASTIVE and config["training"]["clips_per_speaker"] < 2:
        raise ConfigError("loss.kind=supcon compares clips of a speaker: set training.clips_per_speaker=2 or more.")
    sections = ("upstream", "interface", "encoder", "speaker", "loss", "augmentation", "features")
    depends = {name: config[name] for name in sections}
    depends["within"] = config["trials"]["within"]
    depends["training"] = {k: v for k, v in config["training"].items() if k not in _NO_CHANGE}
    fingerprint = digest({**depends, **clips})
    path = folder / SETTINGS
    if path.is_file() and read_json(path)["digest"] == fingerprint:
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(context.exp_dir / MODEL, ignore_errors=True)
    write_json(path, {"digest": fingerprint})


def _trained_millions(model: Any) -> float:
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
