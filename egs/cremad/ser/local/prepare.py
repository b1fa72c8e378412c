"""CREMA-D: AudioWAV/1001_DFA_ANG_XX.wav is actor 1001, sentence DFA, intended emotion ANG, intensity XX."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from mmssl.errors import ConfigError, DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
LETTERS = {name[0]: emotion for name, emotion in EMOTIONS.items()}
NAME = re.compile(r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>LO|MD|HI|XX?)")
LAYOUT = "a folder with AudioWAV/1001_DFA_ANG_XX.wav and so on in it."
VOTES = "processedResults/summaryTable.csv"


def prepare(root: Path | None, folder: Path, labels: str = "intended") -> list[Clip]:
    if labels not in ("intended", "perceived"):
        raise ConfigError(f"data.options.labels must be intended or perceived, got {labels!r}.")
    files = corpus_files(root, "CREMA-D", ["AudioWAV/*.wav", "*.wav"], LAYOUT)
    heard = perceived(root, required=labels == "perceived") if root is not None else {}
    clips = []
    for path in files:
        match = NAME.fullmatch(path.stem)
        if match is None or match["emotion"] not in EMOTIONS:
            raise DataError(f"{path} is not named as CREMA-D names its files: {LAYOUT} Remove it, or check data.root.")
        intended, vote = EMOTIONS[match["emotion"]], heard.get(path.stem)
        emotion = intended if labels == "intended" else vote
        if emotion is None:
            continue
        known = {"emotion": emotion, "intended": intended, "sentence": match["sentence"], "level": match["level"]}
        if vote is not None:
            known["perceived"] = vote
        clips.append(Clip(id=path.stem, audio=str(path), labels=known, speaker=match["actor"]))
    return clips


def perceived(root: Path, required: bool) -> dict[str, str]:
    """File stem -> what most listeners of the voice alone heard; files with a tied vote are absent."""
    for path in (root / VOTES, root / "summaryTable.csv", root.parent / VOTES):
        if path.is_file():
            break
    else:
        if not required:
            return {}
        raise DataError(
            f"data.options.labels=perceived needs the listeners' votes: {root / VOTES} of CREMA-D is not there."
        )
    votes = {}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        columns = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
        missing = [name for name in ("filename", "voicevote") if name not in columns]
        if missing:
            raise DataError(
                f"{path} has no column {missing[0]!r}; it has {', '.join(map(str, rows.fieldnames or ()))}."
            )
        for row in rows:
            vote = row[columns["voicevote"]].strip()
            if vote in LETTERS:
                votes[Path(row[columns["filename"]].strip()).stem] = LETTERS[vote]
    return votes
