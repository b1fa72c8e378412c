"""What the text formats of this package share: atomic writing, reading, and media paths relative to a file's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from mmssl.errors import DataError
from mmssl.files import is_url, replace_file

Item = TypeVar("Item")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file that is there whole or not at all. Folders on the way are made.

    Raises:
        DataError: the file cannot be written (no room, no permission, text that is not UTF-8); an older file of that
            name is untouched.
    """
    # a link is written through, not replaced by a file
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error}. Make room or choose another folder, then try again."
        ) from error
    except UnicodeEncodeError as error:
        bad = str(error.object)[max(0, error.start - 40) : error.end + 40]
        raise DataError(
            f"{path} cannot be written: {bad!r} is not UTF-8 text. Rename the file, or change the value."
        ) from error


def read_text(path: str | os.PathLike[str], kind: str) -> str:
    """Read a UTF-8 file, with or without byte order mark.

    Args:
        path: of the file.
        kind: what it should be, for messages: "manifest".

    Raises:
        DataError: it is missing, a folder, unreadable, or not UTF-8 (the message names the line).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"The {kind} {path} does not exist (seen from {Path.cwd()}). Check the path.") from error
    except OSError as error:
        raise DataError(f"The {kind} {path} cannot be read: {error.strerror or error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason}). Convert the {kind} to UTF-8.") from error


def resolve_media(path: str, folder: Path) -> str:
    """Absolute path of a media file that is written relative to `folder`; URLs stay as they are."""
    if is_url(path):
        return path
    whole = folder.absolute() / path
    # ".." after a link means the link's target, so that only the file system can take it away; links stay otherwise
    return str(whole.resolve() if ".." in whole.parts else whole)


def relative_media(path: str, folder: Path) -> str:
    """The inverse of `resolve_media`: relative where the file lies under `folder`, else absolute."""
    if is_url(path):
        return path
    whole = Path(resolve_media(path, Path.cwd()))
    base = folder.absolute()
    if ".." in base.parts:
        base = base.resolve()
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorting key under which numbers inside names count as numbers: s2 < s10."""
    parts = []
    for part in filter(None, re.split(r"([0-9]+)", text)):
        if part.isascii() and part.isdigit():
            # more digits make a larger number; int() would refuse very long ones
            digits = part.lstrip("0")
            parts.append((0, len(digits), digits))
        else:
            parts.append((1, 0, part))
    return tuple(parts), text


def some(names: Iterable[Item], limit: int = 5, form: Callable[[Item], str] = str) -> str:
    """The first names of a list for a message: "a, b, c (and 7 more)"."""
    every = list(names)
    rest = f" (and {len(every) - limit} more)" if len(every) > limit else ""
    return ", ".join(form(n) for n in every[:limit]) + rest
