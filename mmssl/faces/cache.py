"""Lines of JSON that several processes append to, and that outlive a kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmssl.data.files import write_text
from mmssl.errors import DataError

_LONGEST_NAME = 120


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record, whole and synced to the disk; half a line that a kill left is closed off first."""
    line = json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n"
    with path.open("ab+") as file:
        # the system releases the lock when the process ends, however it ends
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a file by their "id", the last of each; lines that are not whole are passed over."""
    found: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return found
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("id"), str):
            found[record["id"]] = record
    return found


def same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder, or compare them with those it was begun with.

    Raises:
        DataError: they differ; the message names each difference.
    """
    wanted = json.loads(json.dumps(settings))
    if not path.is_file():
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        raise DataError(f"{path} is damaged. Delete the folder {path.parent} and run again.")
    if kept != wanted:
        differences = "; ".join(
            f"{key}: {kept.get(key)!r} there, {wanted.get(key)!r} asked for"
            for key in sorted(kept.keys() | wanted.keys())
            if kept.get(key) != wanted.get(key)
        )
        raise DataError(
            f"{path.parent} was begun with other settings ({differences}). Write into another folder, or delete that "
            "one."
        )


def source_stamp(*paths: str | None) -> list[list[int] | None]:
    """Size and time of change of files; another stamp means that a result is out of date."""
    stamps: list[list[int] | None] = []
    for path in paths:
        try:
            state = None if path is None else Path(path).stat()
        except OSError:
            state = None
        stamps.append(None if state is None else [state.st_size, state.st_mtime_ns])
    return stamps


def file_name(identifier: str) -> str:
    """A name for the files of a clip: its id with what file names cannot hold in percent notation."""
    import hashlib

    name = quote(identifier, safe=" +,=@~()[]", errors="surrogateescape")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(identifier.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        name = f"{name[: _LONGEST_NAME - 17]}-{digest}"
    return name
