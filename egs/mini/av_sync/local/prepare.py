"""mini: talking heads with emotions in voice and face, made here; nothing is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmssl.errors import ConfigError
from mmssl.media.mini import make_mini
from mmssl.types import Clip


def prepare(
    root: Path | None,
    folder: Path,
    seed: int = 0,
    num_speakers: int = 20,
    task_speakers: int = 12,
    num_sentences: int = 20,
    sentences_per_speaker: int = 6,
) -> list[Clip]:
    """The first `task_speakers` are for the task; clips of the others are for pretraining alone."""
    if not 0 < task_speakers <= num_speakers:
        raise ConfigError(f"task_speakers must be 1 to num_speakers={num_speakers}, got {task_speakers}.")
    clips = make_mini(
        folder / "mini" if root is None else root,
        seed=seed,
        num_speakers=num_speakers,
        num_sentences=num_sentences,
        sentences_per_speaker=sentences_per_speaker,
        video=True,
    )
    names = sorted({str(clip.speaker) for clip in clips})[:task_speakers]
    return [clip if clip.speaker in names else replace(clip, split="pretrain") for clip in clips]
