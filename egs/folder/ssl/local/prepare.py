"""A folder of media files, at any depth, without labels."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import ConfigError, DataError
from mmssl.types import Clip

SUFFIXES = {
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".au", ".sph", ".g722", ".wma"),
    "video": (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".flv"),
    "images": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"),
}


def prepare(root: Path | None, folder: Path, kind: str = "audio") -> list[Clip]:
    if kind not in SUFFIXES:
        raise ConfigError(f"data.options.kind must be one of {', '.join(SUFFIXES)}, got {kind!r}.")
    if root is None:
        raise DataError("Say which folder to train on: add data.root=FOLDER.")
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist. Give one as data.root=FOLDER.")
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES[kind] and path.is_file() and not path.name.startswith(".")
    )
    if not files:
        present = sorted({path.suffix.lower() for path in root.rglob("*") if path.is_file()} - {""})
        raise DataError(
            f"{root} holds no {kind} file ({' '.join(SUFFIXES[kind])}); it holds {' '.join(present) or 'nothing'}. "
            "Another kind: data.options.kind=audio, video or images."
        )
    return [clip(kind, str(path), path.relative_to(root).as_posix()) for path in files]


def clip(kind: str, path: str, name: str) -> Clip:
    """A clip of one file; its name below the folder is its id."""
    if kind == "images":
        return Clip(id=name, image=path)
    return Clip(id=name, video=path) if kind == "video" else Clip(id=name, audio=path)
