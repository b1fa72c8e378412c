"""Kinetics-Sounds: the classes of Kinetics-400 that can be heard, from lists of files and classes."""

from __future__ import annotations

import csv
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.context import log
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LISTS = {"train": "train_data_path.csv", "dev": "val_data_path.csv", "test": "test_data_path.csv"}
LAYOUT = (
    "the folder of Kinetics-400 with train/, val/, test/ and replacement/, and in it AV-SUPERB's three lists "
    f"{', '.join(LISTS.values())} (file from here, number of its class; no header)."
)
ID_LENGTH = 11


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    """Clips that are there; how many are not is said."""
    clips: list[Clip] = []
    absent = 0
    for split, name in LISTS.items():
        table = corpus_files(root, "Kinetics-Sounds", [name], LAYOUT)[0]
        with table.open(newline="", encoding="utf-8") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if len(row) < 2 or not row[1].strip().isdigit():
                    raise DataError(f"{table}:{number}: expected a file and the number of its class, got {row}.")
                path = table.parent / row[0].strip()
                if not path.is_file():
                    absent += 1
                    continue
                # YOUTUBEID_000010_000020.mp4
                labels = {"action": f"class{int(row[1]):02d}", "source": path.stem[:ID_LENGTH]}
                clips.append(Clip(id=path.stem, video=str(path), labels=labels, split=split))
    if not clips:
        raise DataError(f"None of the {absent} files of the lists is there. Kinetics-Sounds is expected as {LAYOUT}")
    if absent:
        log.info("   %d of %d files of the lists are not there", absent, absent + len(clips))
    return clips
