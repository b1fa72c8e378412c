"""Fluent Speech Commands: data/{train,valid,test}_data.csv and wavs/speakers/SPEAKER/FILE.wav."""

from __future__ import annotations

import csv
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

SPLITS = {"train": "train", "valid": "dev", "test": "test"}
LAYOUT = "the folder fluent_speech_commands_dataset, with data/train_data.csv and wavs/speakers."


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    patterns = [f"{top}data/*_data.csv" for top in ("", "fluent_speech_commands_dataset/")]
    clips = []
    for table in corpus_files(root, "Fluent Speech Commands", patterns, LAYOUT):
        split = SPLITS.get(table.name.removesuffix("_data.csv"))
        if split is None:
            continue
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                wav = table.parents[1] / row["path"]
                if not wav.is_file():
                    raise DataError(f"{table} names {row['path']}, but {wav} is not there: the copy is not whole.")
                slots = {key: row[key] for key in ("action", "object", "location")}
                clips.append(
                    Clip(
                        id=wav.stem,
                        audio=str(wav),
                        labels={"intent": " ".join(slots.values()), **slots, "text": row["transcription"]},
                        speaker=row["speakerId"],
                        split=split,
                    )
                )
    return clips
