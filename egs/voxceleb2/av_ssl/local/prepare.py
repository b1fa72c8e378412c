"""VoxCeleb2: (dev/)mp4/SPEAKER/VIDEO/FILE.mp4, and vox2_meta.csv where labels are wanted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LAYOUT = "a folder with dev/mp4/idNNNNN/VIDEO/NNNNN.mp4 (and test/mp4/...), and vox2_meta.csv for the probe."
GENDERS = {"f": "female", "m": "male"}


def prepare(root: Path | None, folder: Path, probe_per_speaker: int = 5) -> list[Clip]:
    files = corpus_files(root, "VoxCeleb2", ["*/mp4/id*/*/*.mp4", "mp4/id*/*/*.mp4"], LAYOUT)
    genders = read_genders(root / "vox2_meta.csv") if root is not None else {}
    seen: Counter[str] = Counter()
    clips = []
    for path in files:
        speaker, part = path.parents[1].name, path.parents[3].name
        seen[speaker] += 1
        labelled = speaker in genders and (not probe_per_speaker or seen[speaker] <= probe_per_speaker)
        clips.append(
            Clip(
                id=f"{speaker}-{path.parent.name}-{path.stem}",
                video=str(path),
                labels={"gender": genders[speaker]} if labelled else {},
                speaker=speaker,
                split="test" if part == "test" else "train",
            )
        )
    return clips


def read_genders(path: Path) -> dict[str, str]:
    """Speaker -> gender, from the columns of vox2_meta.csv: VoxCeleb2 ID, VGGFace2 ID, Gender, Set."""
    if not path.is_file():
        return {}
    rows = [[cell.strip() for cell in line.split(",")] for line in path.read_text(encoding="utf-8").splitlines()]
    return {row[0]: GENDERS[row[2].lower()] for row in rows[1:] if len(row) > 2 and row[2].lower() in GENDERS}
