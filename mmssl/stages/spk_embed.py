"""Stage 3 of recipes/spk: embeddings of the clips that scoring needs, and means of log-mel as the baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmssl.data.files import natural_key
from mmssl.data.trials import read_trials
from mmssl.errors import DataError, InputError, MediaError
from mmssl.files import replace_file
from mmssl.stages.context import Context, log
from mmssl.stages.spk_prepare import seconds_of
from mmssl.stages.spk_setup import EMBEDDINGS, MODEL, TRIALS, parts_of, speaker_of
from mmssl.types import Clip

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.downstream.speaker_model import SpeakerModel

Floats = npt.NDArray[np.float32]
MEAN_OF = "mel"


@dataclass(frozen=True)
class Embedded:
    """Vectors of the clips of one part, a row each.

    Attributes:
        ids: of the clips.
        speakers: of the clips.
        seconds: (N,) durations.
        embeddings: (N, E): of whole clips, or means over crops where `embedding.crops` asks for them.
        whole: (N, E) of whole clips.
        log_mel: (N, M) mean log-mel spectrum over time, without any training.
    """

    ids: tuple[str, ...]
    speakers: tuple[str, ...]
    seconds: Floats
    embeddings: Floats
    whole: Floats
    log_mel: Floats


def embed(context: Context) -> str:
    """Write exp/NAME/embeddings/PART.npz of test, development and training clips.

    Raises:
        MediaError: a file cannot be read.
        DataError: a clip is too short for the model.
    """
    from mmssl.training.speaker_files import load_speaker_model

    # the run has just made the model itself, plug-ins included
    model = load_speaker_model(context.exp_dir / MODEL, device=context.device(), trust=True)
    counts = []
    for part, clips in asked(context).items():
        found = embed_clips(model, clips, context.config["embedding"], context.device())
        write_embedded(context.exp_dir / EMBEDDINGS / f"{part}.npz", found)
        counts.append(f"{len(clips)} {part}")
        log.info("   %d %s clips done", len(clips), part)
    return f"{', '.join(counts)} clips, {model.output_size} dimensions"


def asked(context: Context) -> dict[str, list[Clip]]:
    """Clips of each part that scoring needs: those of the trials, all of development, some of training."""
    parts = parts_of(context)
    lists = [read_trials(path) for path in sorted((context.data / TRIALS).glob("*.txt"))]
    named = {name for trials in lists for name in (*trials.enrol, *trials.test)}
    most, members = context.config["embedding"]["cohort_clips"], defaultdict(list)
    for clip in sorted(parts["train"], key=lambda c: natural_key(c.id)):
        members[speaker_of(clip)].append(clip)
    # evenly taken, since neighbours in a corpus are of one recording
    cohort = [clip for own in members.values() for clip in own[:: -(-len(own) // most)]]
    return {"test": [c for c in parts["test"] if c.id in named], "dev": parts["dev"], "train": cohort}


def embed_clips(model: SpeakerModel, clips: Sequence[Clip], settings: Mapping[str, Any], device: str) -> Embedded:
    """Embed clips, batch by batch of about equal durations; no vector depends on its batch.

    Raises:
        MediaError: a file cannot be read.
        DataError: a clip is too short for the model.
    """
    import torch

    from mmssl.downstream.pooling import masked_mean
    from mmssl.lengths import pad, seconds_to_samples
    from mmssl.training.readers import AudioReader
    from mmssl.types import Padded
    from mmssl.upstreams.base import load_upstream

    reader = AudioReader(model.sample_rate, min_samples=model.min_length)
    mel = load_upstream(MEAN_OF, sample_rate=model.sample_rate)
    crop = max(seconds_to_samples(settings["crop_seconds"], model.sample_rate), model.min_length)
    seconds = [seconds_of(clip) for clip in clips]
    rows: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in batches(clips, seconds, settings["batch_seconds"]):
        waves = [_wave(reader, clip, max(model.min_length, mel.spec.min_length)) for clip in batch]
        padded = Padded(*pad(waves))
        moved = padded.to(device)
        try:
            whole = model.embed(moved).float().cpu()
            crops = model.embed_crops(moved, crop, settings["crops"]).float().cpu() if settings["crops"] else whole
        except InputError as error:
            raise DataError(f"The clips {batch[0].id!r} to {batch[-1].id!r}: {error}") from error
        with torch.no_grad():
            mean = masked_mean(mel(padded.data, padded.lengths)["audio"][-1])
        rows |= {clip.id: row for clip, row in zip(batch, zip(whole, crops, mean, strict=True), strict=True)}
    columns = [torch.stack([rows[clip.id][k] for clip in clips]).numpy() for k in range(3)]
    names = tuple(speaker_of(clip) for clip in clips)
    ids = tuple(clip.id for clip in clips)
    return Embedded(ids, names, np.array(seconds, np.float32), columns[1], columns[0], columns[2])


def batches(clips: Sequence[Clip], seconds: Sequence[float], most: float) -> Iterator[list[Clip]]:
    """Clips of like durations together, at most `most` seconds with padding in a batch, one clip at least."""
    order = sorted(range(len(clips)), key=lambda k: (seconds[k], clips[k].id))
    batch: list[Clip] = []
    for k in order:
        if batch and seconds[k] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(clips[k])
    if batch:
        yield batch


def write_embedded(path: Path, found: Embedded) -> None:
    """Write one part, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: np.asarray(getattr(found, name)) for name in Embedded.__dataclass_fields__}
    with replace_file(path) as file:
        np.savez(file, **columns)  # type: ignore[arg-type]


def read_embedded(path: Path) -> Embedded:
    """Read one part that `write_embedded` wrote."""
    with np.load(path, allow_pickle=False) as columns:
        found = {name: columns[name] for name in Embedded.__dataclass_fields__}
    return Embedded(**found | {name: tuple(found[name].tolist()) for name in ("ids", "speakers")})


def _wave(reader: Any, clip: Clip, least: int) -> Tensor:
    try:
        wave = reader.load(clip, 0, 2**62).waveform
    except MediaError as error:
        raise MediaError(f"The clip {clip.id!r}: {error}") from error
    if len(wave) < least:
        raise DataError(
            f"The clip {clip.id!r} has {len(wave)} samples, the model needs {least}: raise speaker.min_seconds and let "
            "such clips be left out (data.on_error=skip)."
        )
    return wave
