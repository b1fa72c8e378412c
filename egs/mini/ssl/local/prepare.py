"""mini: the corpora are made here, by what comes with mmssl; nothing is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmssl.errors import ConfigError
from mmssl.media.mini import make_mini
from mmssl.media.mini_images import make_mini_images
from mmssl.types import Clip

KINDS = ("audio", "video", "images")


def prepare(
    root: Path | None,
    folder: Path,
    kind: str = "audio",
    seed: int = 0,
    num_speakers: int = 12,
    num_sentences: int = 20,
    sentences_per_speaker: int = 10,
    images_per_class: int = 100,
) -> list[Clip]:
    if kind not in KINDS:
        raise ConfigError(f"data.options.kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    folder = folder if root is None else root
    if kind == "images":
        clips = make_mini_images(folder / "mini_images", seed=seed, images_per_class=images_per_class)
        return [replace(clip, split=part(clip, number)) for number, clip in enumerate(clips)]
    # a folder of its own for those with faces, who are more speakers: neither takes the other's place
    return make_mini(
        folder / ("mini_video" if kind == "video" else "mini"),
        seed=seed,
        num_speakers=num_speakers,
        num_sentences=num_sentences,
        sentences_per_speaker=sentences_per_speaker,
        video=kind == "video",
    )


def part(clip: Clip, number: int) -> str | None:
    """Of the training pictures, every fifth is for development."""
    return "dev" if clip.split == "train" and number % 5 == 0 else clip.split
