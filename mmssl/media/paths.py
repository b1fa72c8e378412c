"""Checks of paths that are the same for sound, video and images, and writing without halves."""

from __future__ import annotations

import os
from pathlib import Path

from mmssl.errors import MediaError
from mmssl.files import replace_file


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a regular, readable file that is not empty.

    Raises:
        MediaError: it is none.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise MediaError(f"{file} does not exist. Check the path, and whether the corpus is complete.") from error
        raise MediaError(f"{file} cannot be read ({error}). Check the path and its permissions.") from error
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise MediaError(f"{file} is {kind}: give the path of one media file.")
    if size == 0:
        raise MediaError(f"{file} is empty (0 bytes). Restore it from its source or leave the clip out.")
    if not os.access(file, os.R_OK):
        raise MediaError(f"{file} cannot be read: permission denied. Change its permissions.")
    return file


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with replace_file(path) as file:
        file.write(content)
