"""Manifests: one clip a line, as JSON, in any order.

    {"id": "03a01Wa", "audio": "wav/03a01Wa.wav", "speaker": "03", "labels": {"emotion": "anger"}}

The keys are the fields of `mmssl.types.Clip`; a key that is absent has the field's default. Media paths are relative to
the manifest's folder, absolute, or URLs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.files import read_text, relative_media, resolve_media, write_text
from mmssl.errors import DataError, did_you_mean
from mmssl.types import Clip

MEDIA_FIELDS = ("audio", "video", "image")
FIELDS = tuple(f.name for f in dataclasses.fields(Clip))
_SHOWN_FAULTS = 10


@dataclass(frozen=True)
class LineFault:
    """What is wrong in one line of a manifest.

    Attributes:
        line: number of the line, from 1.
        field: the key at fault, or "" where the whole line is.
        problem: what is wrong and what was given.
        fix: what to write instead.
    """

    line: int
    field: str
    problem: str
    fix: str


def read_manifest(path: str | os.PathLike[str]) -> list[Clip]:
    """Read a manifest.

    Args:
        path: of the JSONL file.

    Returns:
        The clips in the order of their lines, with absolute media paths. Whether the media exist is not looked at:
        `mmssl.data.validate` does that.

    Raises:
        DataError: the file is missing or empty, or a line is not JSON, has an unknown key, a value of a wrong type, or
            the id of an earlier line. The message names file and line of every fault (ten at most).
    """
    clips, faults = scan_manifest(path)
    if faults:
        lines = [f"{path}:{f.line}: {f.problem} {f.fix}" for f in faults[:_SHOWN_FAULTS]]
        if len(faults) > _SHOWN_FAULTS:
            lines.append(f"... and {len(faults) - _SHOWN_FAULTS} more faults in {path}")
        raise DataError("\n".join(lines))
    return clips


def scan_manifest(path: str | os.PathLike[str]) -> tuple[list[Clip], list[LineFault]]:
    """Read what can be read of a manifest: the clips of the good lines, and every fault of the others.

    Raises:
        DataError: the file is missing, not UTF-8, or has no line.
    """
    text = read_text(path, "manifest")
    folder = Path(path).absolute().parent
    clips: list[Clip] = []
    faults: list[LineFault] = []
    seen: dict[str, int] = {}
    # only "\n" ends a line: JSON strings may hold U+2028 and other separators that str.splitlines would cut at
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        entry, found = _parse_line(line, number)
        identifier = entry.get("id")
        if isinstance(identifier, str) and identifier:
            if identifier in seen:
                problem = f"the id {identifier!r} is already the id of line {seen[identifier]}."
                found.append(LineFault(number, "id", problem, "Give every clip an id of its own."))
            seen.setdefault(identifier, number)
        faults += found
        if not found:
            clips.append(_to_clip(entry, folder))
    if not clips and not faults:
        raise DataError(
            f"The manifest {path} holds no clip. Write one JSON object a line, or run the stage that writes it."
        )
    return clips, faults


def write_manifest(path: str | os.PathLike[str], clips: Iterable[Clip]) -> None:
    """Write a manifest atomically; `read_manifest` gives equal clips back.

    Args:
        path: of the JSONL file; its folder is made.
        clips: in the order to write. Media under the manifest's folder are written relative to it, others absolute;
            a relative path in a clip is taken from the current folder. Fields at their default are left out.

    Raises:
        DataError: there is no clip, an id comes twice, a value is of a wrong type, or the file cannot be written.
    """
    folder = Path(path).absolute().parent
    lines: list[str] = []
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise DataError(
                f"Two clips have the id {clip.id!r}. Give every clip an id of its own before writing {path}."
            )
        seen.add(clip.id)
        lines.append(_to_line(clip, folder))
    if not lines:
        raise DataError(f"There is no clip to write to {path}. Check the corpus folder and any filter on its clips.")
    write_text(path, "\n".join(lines) + "\n")


def _parse_line(line: str, number: int) -> tuple[dict[str, Any], list[LineFault]]:
    """One line -> its JSON object (empty where there is none) and what is wrong with it."""
    try:
        entry = json.loads(line, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        fix = 'Write one JSON object a line, like {"id": "a", "audio": "a.wav"}.'
        return {}, [LineFault(number, "", f"not JSON ({error}).", fix)]
    if not isinstance(entry, dict):
        return {}, [LineFault(number, "", f"a JSON {_kind(entry)}, not an object.", 'Write {"id": ..., ...}.')]
    faults = []
    for key in entry:
        if key not in FIELDS:
            fix = f"Allowed: {', '.join(FIELDS)}; anything else goes into labels."
            faults.append(LineFault(number, key, f"unknown key {key!r}.{did_you_mean(key, FIELDS)}", fix))
    if "id" not in entry:
        faults.append(LineFault(number, "id", "no id.", "Give every clip an id, a string that no other has."))
    for key in FIELDS:
        if key in entry and (expected := _expected(key, entry[key])):
            problem = f"{key} is {_shown(entry[key])} ({_kind(entry[key])})."
            faults.append(LineFault(number, key, problem, f"It must be {expected}."))
    return entry, faults


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} comes twice")
    return entry


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _expected(key: str, value: Any) -> str:
    """What a field must be, or an empty string where the value is right."""
    if key == "id":
        return "" if isinstance(value, str) and value else "a string that is not empty"
    if key in (*MEDIA_FIELDS, "speaker", "split"):
        return "" if value is None or (isinstance(value, str) and value) else "a string that is not empty, or null"
    if key == "labels":
        return "" if isinstance(value, dict) else 'an object of label names and values, like {"emotion": "anger"}'
    if key == "duration" and value is None:
        return ""
    return "" if _is_finite_number(value) else "a finite number of seconds"


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _to_clip(entry: dict[str, Any], folder: Path) -> Clip:
    values = dict(entry)
    for key in MEDIA_FIELDS:
        if values.get(key) is not None:
            values[key] = resolve_media(values[key], folder)
    for key in ("start", "duration"):
        if values.get(key) is not None:
            values[key] = float(values[key])
    return Clip(**values)


def _to_line(clip: Clip, folder: Path) -> str:
    entry: dict[str, Any] = {"id": clip.id}
    for key in MEDIA_FIELDS:
        media = getattr(clip, key)
        if media is not None:
            entry[key] = relative_media(os.fspath(media), folder)
    if clip.start:
        entry["start"] = clip.start
    for key in ("duration", "speaker", "split"):
        if getattr(clip, key) is not None:
            entry[key] = getattr(clip, key)
    if clip.labels:
        entry["labels"] = dict(clip.labels)
    for key, value in entry.items():
        if expected := _expected(key, value):
            raise DataError(f"Clip {clip.id!r} cannot be written: {key} is {_shown(value)}; it must be {expected}.")
    _check_label_names(clip, list(clip.labels))
    try:
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        # file names that are not UTF-8 reach Python as lone surrogates, which only an escape can carry
        return line if _encodable(line) else json.dumps(entry, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Clip {clip.id!r} cannot be written as JSON: {error}. "
            f"Labels may hold strings, finite numbers and lists of them."
        ) from error


def _check_label_names(clip: Clip, names: Sequence[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"Clip {clip.id!r} cannot be written: the label name {name!r} is not a string.")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
