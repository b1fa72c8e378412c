"""The corpora of egs/mini/aver, av_retrieval and av_sync: talking heads with emotions in voice and face, made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmssl.errors import ConfigError
from mmssl.media.mini import make_mini
from mmssl.stages.av_prepare import PRETRAIN
from mmssl.types import Clip


def prepare(
    root: Path | None,
    folder: Path,
    seed: int = 0,
    num_speakers: int = 12,
    task_speakers: int = 12,
    num_sentences: int = 20,
    sentences_per_speaker: int = 6,
    pretrain_speakers: int = 120,
    pretrain_sentences: int = 2,
) -> list[Clip]:
    """Speakers who say much for the task, and many others who say little for pretraining alone.

    An encoder that hears few speakers learns who they are; of many it learns what they have in common.

    Args:
        root: where the corpora are, or are to be made; None for `folder`.
        folder: data/ of the recipe.
        seed, num_speakers, num_sentences, sentences_per_speaker: of the corpus `mini`, see
            `mmssl.media.mini.make_mini`.
        task_speakers: 1 to `num_speakers`: the first so many; clips of the others are for pretraining.
        pretrain_speakers, pretrain_sentences: of the corpus `mini_pretrain`, made by the next seed; 0 speakers for
            none.

    Raises:
        ConfigError: `task_speakers` is out of range.
    """
    if not 0 < task_speakers <= num_speakers:
        raise ConfigError(f"task_speakers must be 1 to num_speakers={num_speakers}, got {task_speakers}.")
    place = folder if root is None else root
    clips = make_mini(
        place / "mini",
        seed=seed,
        num_speakers=num_speakers,
        num_sentences=num_sentences,
        sentences_per_speaker=sentences_per_speaker,
        video=True,
    )
    names = sorted({str(clip.speaker) for clip in clips})[:task_speakers]
    found = [clip if clip.speaker in names else replace(clip, split=PRETRAIN) for clip in clips]
    if pretrain_speakers:
        others = make_mini(
            place / "mini_pretrain",
            seed=seed + 1,
            num_speakers=pretrain_speakers,
            num_sentences=num_sentences,
            sentences_per_speaker=pretrain_sentences,
            video=True,
        )
        # the two corpora number their speakers alike
        found += [replace(c, id=f"pre_{c.id}", speaker=f"pre_{c.speaker}", split=PRETRAIN) for c in others]
    return found
