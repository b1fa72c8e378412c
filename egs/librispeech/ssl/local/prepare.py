"""LibriSpeech: SUBSET/SPEAKER/CHAPTER/FILE.flac and SPEAKERS.TXT."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

LAYOUT = "the folder LibriSpeech with SPEAKERS.TXT and train-clean-100/SPEAKER/CHAPTER/*.flac and its like."
GENDERS = {"F": "female", "M": "male"}


def prepare(root: Path | None, folder: Path, probe_per_speaker: int = 5) -> list[Clip]:
    files = corpus_files(root, "LibriSpeech", ["*-*/*/*/*.flac", "LibriSpeech/*-*/*/*/*.flac"], LAYOUT)
    top = files[0].parents[3]
    genders = read_genders(top / "SPEAKERS.TXT")
    seen: Counter[str] = Counter()
    clips = []
    for path in files:
        subset, speaker = path.parents[2].name, path.parents[1].name
        seen[speaker] += 1
        labelled = not probe_per_speaker or seen[speaker] <= probe_per_speaker
        labels = {"subset": subset} | ({"gender": genders[speaker]} if labelled and speaker in genders else {})
        clips.append(
            Clip(id=path.stem, audio=str(path), labels=labels, speaker=speaker, split=subset.partition("-")[0])
        )
    return clips


def read_genders(path: Path) -> dict[str, str]:
    """Speaker -> gender: lines of number | sex | subset | minutes | name, comments after ";"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): the probe's label comes from there.") from error
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line and not line.startswith(";")]
    return {row[0]: GENDERS[row[1]] for row in rows if len(row) > 1 and row[1] in GENDERS}
