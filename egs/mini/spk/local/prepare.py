"""mini: the corpus is made here, by the speech synthesiser that comes with mmssl; nothing is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmssl.data.files import natural_key
from mmssl.errors import ConfigError
from mmssl.media.mini import make_mini
from mmssl.types import Clip


def prepare(
    root: Path | None,
    folder: Path,
    seed: int = 0,
    num_speakers: int = 24,
    num_sentences: int = 20,
    sentences_per_speaker: int = 4,
    test_speakers: int = 8,
) -> list[Clip]:
    """The clips of the last `test_speakers` speakers are the test part, all others are trained on."""
    if not 2 <= test_speakers <= num_speakers - 2:
        raise ConfigError(
            f"data.options.test_speakers must be from 2 to num_speakers - 2 = {num_speakers - 2}, got {test_speakers}."
        )
    clips = make_mini(
        folder / "mini" if root is None else root,
        seed=seed,
        num_speakers=num_speakers,
        num_sentences=num_sentences,
        sentences_per_speaker=sentences_per_speaker,
    )
    tested = set(sorted({str(clip.speaker) for clip in clips}, key=natural_key)[-test_speakers:])
    return [
        replace(
            clip,
            labels={**clip.labels, "speaker": clip.speaker},
            split="test" if clip.speaker in tested else "train",
        )
        for clip in clips
    ]
