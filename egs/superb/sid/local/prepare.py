"""VoxCeleb1: wav/SPEAKER/VIDEO/FILE.wav (or dev/wav and test/wav) and iden_split.txt."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

SPLITS = {"1": "train", "2": "dev", "3": "test"}
LAYOUT = "the folder of VoxCeleb1 with iden_split.txt and wav/idNNNNN (or dev/wav and test/wav)."


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    (table,) = corpus_files(root, "VoxCeleb1", ["iden_split.txt"], LAYOUT)
    tops = [table.parent / top for top in ("wav", "dev/wav", "test/wav")]
    clips = []
    for line in table.read_text(encoding="utf-8").splitlines():
        number, name = line.split()
        found = [top / name for top in tops if (top / name).is_file()]
        if not found:
            raise DataError(
                f"{table} names {name}, which is in none of {', '.join(map(str, tops))}: the copy is not whole."
            )
        speaker = name.split("/")[0]
        clips.append(
            Clip(
                id=name.removesuffix(".wav").replace("/", "-"),
                audio=str(found[0]),
                labels={"speaker_name": speaker},
                speaker=speaker,
                split=SPLITS[number],
            )
        )
    return clips
