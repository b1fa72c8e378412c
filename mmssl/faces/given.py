"""Boxes that are known already: hand-made, published with a corpus, or from another tool."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.data.files import read_text
from mmssl.errors import DataError, did_you_mean
from mmssl.faces.boxes import Face
from mmssl.faces.detectors import FaceDetector

if TYPE_CHECKING:
    import numpy

COLUMNS = ("clip", "frame", "left", "top", "right", "bottom")
Boxes = Mapping[int, tuple[float, float, float, float]]


class GivenBoxes(FaceDetector):
    """Boxes from a file.

    JSON: clip id -> one box for all frames, or a list with a box or null for each frame, or an object frame -> box.
    CSV: the columns clip, frame, left, top, right, bottom; an empty frame means all frames. A box is (left, top, right,
    bottom) in pixels, with edges between pixels; frames count from 0, the first picture of the clip. Frames without a
    box are interpolated and counted.

    Args:
        file: path of the .json or .csv file.

    Raises:
        DataError: the file is missing, or a box is not four numbers in order.
    """

    def __init__(self, file: str):
        text = read_text(file, "file of boxes")
        self._file = file
        self._checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._boxes = _from_csv(text, file) if Path(file).suffix.lower() == ".csv" else _from_json(text, file)

    def detect(self, pictures: numpy.ndarray, clip_id: str) -> list[list[Face]]:
        """The boxes of the clip."""
        if clip_id not in self._boxes:
            raise DataError(
                f"{self._file} has no boxes of the clip {clip_id!r}.{did_you_mean(clip_id, self._boxes)} Add them, or "
                "leave the clip out."
            )
        boxes = self._boxes[clip_id]
        always = boxes.get(-1)
        late = [frame for frame in boxes if frame >= len(pictures)]
        if late:
            raise DataError(
                f"{self._file} has a box for frame {max(late)} of the clip {clip_id!r}, which has {len(pictures)} "
                "frames. Frames count from 0, the first of the clip."
            )
        chosen = [boxes.get(index, always) for index in range(len(pictures))]
        return [[] if box is None else [Face(box)] for box in chosen]

    def fingerprint(self) -> dict[str, str]:
        """Checksum of the file."""
        return {"file": self._checksum}


def _from_json(text: str, file: str) -> dict[str, Boxes]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}). Write an object of clip ids, or a .csv file.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} must hold an object of clip ids and boxes, got {type(content).__name__}.")
    return {clip: _of_clip(value, f"{file}: clip {clip!r}") for clip, value in content.items()}


def _of_clip(value: Any, where: str) -> Boxes:
    """Frame -> box; frame -1 stands for every frame that has none of its own."""
    if isinstance(value, dict):
        return {_frame(key, where): _box(box, where) for key, box in value.items() if box is not None}
    if isinstance(value, list) and value and all(isinstance(item, list) or item is None for item in value):
        return {index: _box(box, where) for index, box in enumerate(value) if box is not None}
    return {-1: _box(value, where)}


def _from_csv(text: str, file: str) -> dict[str, Boxes]:
    rows = csv.DictReader(io.StringIO(text))
    absent = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if absent:
        raise DataError(f"{file} has no column {', '.join(absent)}. It must have: {', '.join(COLUMNS)}.")
    found: dict[str, dict[int, tuple[float, float, float, float]]] = {}
    for row in rows:
        where = f"{file}:{rows.line_num}"
        frame = _frame(row["frame"], where) if row["frame"] else -1
        boxes = found.setdefault(row["clip"], {})
        if frame in boxes:
            raise DataError(f"{where}: the clip {row['clip']!r} has a box for this frame already. Remove one.")
        boxes[frame] = _box([row[name] for name in COLUMNS[2:]], where)
    return dict(found)


def _frame(value: Any, where: str) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: a frame is a whole number from 0, got {value!r}.")
    return int(text)


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(edge) for edge in value)
    except (TypeError, ValueError):
        left = top = right = bottom = math.nan
    if not (math.isfinite(left + top + right + bottom) and left < right and top < bottom):
        raise DataError(
            f"{where}: a box is four finite numbers left < right and top < bottom, in the order left, top, right, "
            f"bottom; got {value!r}."
        )
    return left, top, right, bottom
