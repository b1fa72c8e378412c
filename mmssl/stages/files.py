"""Files of an experiment: atomic JSON, digests of what a stage reads, and a list of what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmssl.errors import StageError
from mmssl.files import replace_file


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all: temporary name in the same folder, fsync, replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote.

    Raises:
        StageError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StageError(f"{path} does not exist. Run the stage that writes it (./run.sh --list).") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(
            f"{path} is not readable JSON: {error}. Remove it and run the stage that writes it again."
        ) from error


def digest(value: Any) -> str:
    """sha256 of a plain value, the same for the same value whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def input_digest(paths: Iterable[Path]) -> str:
    """sha256 over files (by content) and folders (by the name, size and time of every file in them)."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(str(path).encode())
        if path.is_dir():
            for root, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(names):
                    status = (Path(root) / name).stat()
                    total.update(f"{root}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        elif path.is_file():
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level: {"a": {"b": 1}} -> {"a.b": 1}. Empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{name}.")
        else:
            flat[name] = item
    return flat
