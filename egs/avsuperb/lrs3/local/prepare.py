"""LRS3: trainval/SPEAKER/CLIP.mp4 and test/SPEAKER/CLIP.mp4, each with the sentence in CLIP.txt."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

PARTS = {"train": "trainval", "test": "test"}
LAYOUT = "the folder of LRS3 with trainval/SPEAKER/NNNNN.mp4 and test/SPEAKER/NNNNN.mp4, each with its NNNNN.txt."
LINE = "Text:"


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    """Clips with their characters: letters, digits and apostrophes with spaces between, | between words."""
    clips = []
    for split, part in PARTS.items():
        for path in corpus_files(root, "LRS3", [f"{part}/*/*.mp4"], LAYOUT):
            speaker = path.parent.name
            labels = {"characters": _characters(path.with_suffix(".txt"))}
            name = f"{part}-{speaker}-{path.stem}"
            clips.append(Clip(name, video=str(path), labels=labels, speaker=speaker, split=split))
    return clips


def _characters(path: Path) -> str:
    """Of a text file whose first line is "Text:  WORDS"."""
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
    words = first.removeprefix(LINE).split()
    if not first.startswith(LINE) or not words:
        raise DataError(f'{path} is not there or does not begin with "{LINE} WORDS". LRS3 is expected as {LAYOUT}')
    return " | ".join(" ".join(word.upper()) for word in words)
