"""mini: the corpus is made here, by the speech synthesiser that comes with mmssl; nothing is read."""

from __future__ import annotations

from pathlib import Path

from mmssl.media.mini import make_mini
from mmssl.types import Clip


def prepare(
    root: Path | None,
    folder: Path,
    seed: int = 0,
    num_speakers: int = 12,
    num_sentences: int = 20,
    sentences_per_speaker: int = 10,
) -> list[Clip]:
    return make_mini(
        folder / "mini" if root is None else root,
        seed=seed,
        num_speakers=num_speakers,
        num_sentences=num_sentences,
        sentences_per_speaker=sentences_per_speaker,
    )
