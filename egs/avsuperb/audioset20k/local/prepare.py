"""AudioSet-20K: the official lists of balanced training and evaluation segments, and the videos that are to be had."""

from __future__ import annotations

import csv
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.context import log
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LISTS = {"train": "balanced_train_segments.csv", "test": "eval_segments.csv"}
NAMES = "class_labels_indices.csv"
LAYOUT = (
    f"a folder with {', '.join(LISTS.values())} and {NAMES} of AudioSet, and the 10 s segments in it or below it, "
    "named YOUTUBEID.mp4 or YOUTUBEID_ and anything."
)
ID_LENGTH = 11


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    """Segments that are there; how many are not is said, since videos disappear."""
    table = corpus_files(root, "AudioSet", [NAMES, f"*/{NAMES}"], LAYOUT)[0]
    with table.open(newline="", encoding="utf-8") as stream:
        names = {row["mid"]: row["display_name"] for row in csv.DictReader(stream)}
    files = {path.stem[:ID_LENGTH]: path for path in sorted(Path(root or folder).rglob("*.mp4")) if _named(path)}
    clips: list[Clip] = []
    absent = 0
    for split, name in LISTS.items():
        listed = corpus_files(table.parent, "AudioSet", [name], LAYOUT)[0]
        for video, mids in _segments(listed):
            unknown = [mid for mid in mids if mid not in names]
            if unknown:
                raise DataError(f"{listed}: the label {unknown[0]} of {video} is not in {table}.")
            if video not in files:
                absent += 1
                continue
            labels = {"sounds": [names[mid] for mid in mids], "source": video}
            clips.append(Clip(id=video, video=str(files[video]), labels=labels, split=split))
    if not clips:
        raise DataError(f"None of the {absent} segments is there. AudioSet is expected as {LAYOUT}")
    if absent:
        log.info("   %d of %d segments are not there", absent, absent + len(clips))
    return clips


def _named(path: Path) -> bool:
    return len(path.stem) == ID_LENGTH or path.stem[ID_LENGTH : ID_LENGTH + 1] == "_"


def _segments(path: Path) -> list[tuple[str, list[str]]]:
    """YouTube id and labels of each line: id, start, end, "label,label"."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        row = next(csv.reader([line], skipinitialspace=True))
        if len(row) != 4 or len(row[0]) != ID_LENGTH or not row[3]:
            raise DataError(f'{path}:{number}: expected YouTube id, start, end and "label,label", got {line[:100]!r}.')
        found.append((row[0], row[3].split(",")))
    return found
