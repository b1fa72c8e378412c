"""VGGSound: vggsound.csv (YouTube id, start in s, label, train or test), and the videos that are still to be had."""

from __future__ import annotations

import csv
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.context import log
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LAYOUT = "a folder with vggsound.csv and the videos in it or below it, named YOUTUBEID_000030.mp4 (start in s)."


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    """Clips that are there; how many are not is said, since videos disappear."""
    table = corpus_files(root, "VGGSound", ["vggsound.csv", "*/vggsound.csv"], LAYOUT)[0]
    files = {path.stem: path for path in sorted(Path(root or folder).rglob("*.mp4"))}
    clips, absent = [], 0
    with table.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if len(row) != 4 or not row[1].strip().isdigit() or row[3].strip() not in ("train", "test"):
                raise DataError(f"{table}:{number}: expected YouTube id, start, label and train or test, got {row}.")
            video, start, label, split = (value.strip() for value in row)
            path = files.get(f"{video}_{int(start):06d}")
            if path is None:
                absent += 1
                continue
            clips.append(Clip(id=path.stem, video=str(path), labels={"sound": label, "source": video}, split=split))
    if not clips:
        raise DataError(f"None of the {absent} clips of {table} is there. VGGSound is expected as {LAYOUT}")
    if absent:
        log.info("   %d of %d clips of vggsound.csv are not there", absent, absent + len(clips))
    return clips
