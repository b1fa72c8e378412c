"""Tables of clips: CSV with commas, semicolons or tabs.

The columns id, audio, video, image, start, duration, speaker and split are the fields of a clip; every other column is
a label. An empty cell means that the clip has no such value.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.data.files import read_text, relative_media, resolve_media, write_text
from mmssl.errors import DataError, did_you_mean
from mmssl.types import Clip

COLUMNS = ("id", "audio", "video", "image", "start", "duration", "speaker", "split")
DELIMITERS = (",", ";", "\t")


def import_csv(
    path: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    *,
    numeric: Sequence[str] = (),
    delimiter: str | None = None,
) -> list[Clip]:
    """Read a table whose first line names its columns.

    Args:
        path: of the file, UTF-8.
        columns: column of the file -> field or label, for columns that have another name: {"filename": "audio"}.
            A column that goes to "" is left out.
        numeric: labels whose values are numbers (they become floats); all other labels stay text: "01" is not 1.
        delimiter: "," or ";" or a tab; None takes the one that gives the first line most columns.

    Returns:
        One clip a row. Relative media paths are seen from the table's folder.

    Raises:
        DataError: a column is missing, named twice or unknown, a row has another number of cells, an id is empty or
            comes twice, or a number is none. The message names file and line.
    """
    text = read_text(path, "table")
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    if not header_line:
        raise DataError(
            f"The table {path} is empty. Its first line must name the columns: {', '.join(COLUMNS)}, labels."
        )
    separator = delimiter or max(DELIMITERS, key=lambda d: len(next(csv.reader([header_line], delimiter=d))))
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if names is None:
                names = _named(path, [cell.strip() for cell in row], columns or {}, numeric)
                continue
            where = f"{path}:{reader.line_num}"
            if len(row) != len(names):
                raise DataError(
                    f"{where}: {len(row)} cells, but the first line names {len(names)} columns (separated by "
                    f"{separator!r}). Quote cells that hold the separator, or name the delimiter."
                )
            clip = _clip(where, {n: cell for n, cell in zip(names, row, strict=True) if n and cell}, path, numeric)
            if clip.id in lines:
                raise DataError(
                    f"{where}: the id {clip.id!r} is already in line {lines[clip.id]}. Give every clip its own."
                )
            lines[clip.id] = reader.line_num
            clips.append(clip)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a table ({error}). Check its quotes.") from error
    if not clips:
        raise DataError(f"The table {path} has no row below the names of its columns. Add one row for each clip.")
    return clips


def export_csv(path: str | os.PathLike[str], clips: Iterable[Clip], *, delimiter: str = ",") -> None:
    """Write a table; `import_csv` gives equal clips back where `numeric` names the labels that are numbers.

    Args:
        path: of the file. Media under its folder are written relative to it, others absolute.
        clips: in the order to write.
        delimiter: "," or ";" or a tab.

    Raises:
        DataError: there is no clip, an id comes twice, a label has the name of a field or is neither text nor a number,
            or the file cannot be written.
    """
    if delimiter not in DELIMITERS:
        raise DataError(f"The delimiter {delimiter!r} is not one of {', '.join(map(repr, DELIMITERS))}.")
    rows = list(clips)
    if not rows:
        raise DataError(f"There is no clip to write to {path}.")
    folder = Path(path).absolute().parent
    labels = list(dict.fromkeys(name for clip in rows for name in clip.labels))
    taken = [name for name in labels if name in COLUMNS or name != name.strip() or not name]
    if taken:
        raise DataError(
            f"The label name {taken[0]!r} is a clip's field, empty or padded with spaces. Rename the label."
        )
    stream = io.StringIO(newline="")
    # "\r\n", as RFC 4180 has it: the writer then quotes every cell that holds either character
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow([*COLUMNS, *labels])
    seen: set[str] = set()
    for clip in rows:
        if clip.id in seen or not clip.id:
            raise DataError(f"The id {clip.id!r} is empty or comes twice. Give every clip an id of its own.")
        seen.add(clip.id)
        fields = {name: getattr(clip, name) for name in COLUMNS}
        for name in ("audio", "video", "image"):
            if fields[name] is not None:
                fields[name] = relative_media(fields[name], folder)
        cells = [_cell(fields[name], name, clip) for name in COLUMNS]
        writer.writerow(cells + [_cell(clip.labels.get(name), name, clip) for name in labels])
    write_text(path, stream.getvalue())


def _named(
    path: str | os.PathLike[str], header: Sequence[str], columns: Mapping[str, str], numeric: Sequence[str]
) -> list[str]:
    """Names of the columns after renaming, "" for those to leave out."""
    for name in columns:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}.{did_you_mean(name, header)} It has: {', '.join(header)}.")
    names = [columns.get(name, name) for name in header]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{path} has two columns for {twice[0]!r}. Rename one, or leave it out (columns: name -> '').")
    if "id" not in names:
        raise DataError(
            f"{path} has no column 'id'.{did_you_mean('id', names)} It has: {', '.join(header)}. "
            f"Add one, or say which column it is (columns: name -> 'id')."
        )
    for name in numeric:
        if name not in names or name in COLUMNS:
            labels = [n for n in names if n and n not in COLUMNS]
            raise DataError(f"{path} has no label {name!r} to read as numbers.{did_you_mean(name, labels)}")
    return names


def _clip(where: str, cells: Mapping[str, str], path: str | os.PathLike[str], numeric: Sequence[str]) -> Clip:
    if "id" not in cells:
        raise DataError(f"{where}: the id is empty. Give every clip an id that no other has.")
    folder = Path(path).absolute().parent
    fields: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for name, cell in cells.items():
        if name in ("audio", "video", "image"):
            fields[name] = resolve_media(cell, folder)
        elif name in ("start", "duration"):
            fields[name] = _number(cell, name, where)
        elif name in COLUMNS:
            fields[name] = cell
        else:
            labels[name] = _number(cell, name, where) if name in numeric else cell
    return Clip(**fields, labels=labels)


def _number(cell: str, name: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{where}: {name} is {cell!r}, not a number. Write it with a point, as in 1.5, or leave it empty."
        )
    return value


def _cell(value: object, name: str, clip: Clip) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return "" if name == "start" and value == 0 else repr(value)
    raise DataError(f"Clip {clip.id!r}: {name} is {value!r}. A table holds text and finite numbers only.")
