"""CREMA-D with video: VideoFlash/1001_DFA_ANG_XX.flv is actor 1001, sentence DFA, intended ANG, intensity XX."""

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
VOTES = {"voice": "voicevote", "face": "facevote", "multimodal": "multimodalvote"}
NAME = re.compile(r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>LO|MD|HI|XX?)")
PATTERNS = ["VideoFlash/*.flv", "VideoFlash/*.mp4", "*.flv", "*.mp4"]
LAYOUT = "a folder with VideoFlash/1001_DFA_ANG_XX.flv and so on in it; AudioWAV/ is used where it is there."
TABLE = "processedResults/summaryTable.csv"


def prepare(root: Path | None, folder: Path, labels: str = "intended", sound: str = "wav") -> list[Clip]:
    """labels: intended, voice, face or multimodal (what most of those who heard, saw, or did both chose).
    sound: "wav" of AudioWAV/ where the file is there, or "video", that of the video file."""
    if labels not in ("intended", *VOTES) or sound not in ("wav", "video"):
        raise ConfigError(
            f"data.options.labels must be intended, {', '.join(VOTES)}, and data.options.sound wav or video; got "
            f"{labels!r} and {sound!r}."
        )
    files = corpus_files(root, "CREMA-D", PATTERNS, LAYOUT)
    votes = {} if labels == "intended" else read_votes(root or folder, VOTES[labels])
    clips = []
    for path in files:
        match = NAME.fullmatch(path.stem)
        if match is None or match["emotion"] not in EMOTIONS:
            raise DataError(f"{path} is not named as CREMA-D names its files: {LAYOUT} Remove it, or check data.root.")
        intended = EMOTIONS[match["emotion"]]
        emotion = intended if labels == "intended" else votes.get(path.stem)
        if emotion is None:
            # a tied vote
            continue
        wav = path.parent.parent / "AudioWAV" / f"{path.stem}.wav"
        known = {"emotion": emotion, "intended": intended, "sentence": match["sentence"], "level": match["level"]}
        audio = str(wav) if sound == "wav" and wav.is_file() else None
        clips.append(Clip(id=path.stem, audio=audio, video=str(path), labels=known, speaker=match["actor"]))
    return clips


def read_votes(root: Path, column: str) -> dict[str, str]:
    """File stem -> what most raters chose; files with a tied vote are absent."""
    path = next((p for p in (root / TABLE, root / "summaryTable.csv", root.parent / TABLE) if p.is_file()), None)
    if path is None:
        raise DataError(f"data.options.labels other than intended need the raters' votes: {root / TABLE} is not there.")
    votes = {}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        columns = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
        for name in ("filename", column):
            if name not in columns:
                raise DataError(f"{path} has no column {name!r}; it has {', '.join(map(str, rows.fieldnames or ()))}.")
        for row in rows:
            vote = row[columns[column]].strip()
            if vote in LETTERS:
                votes[Path(row[columns["filename"]].strip()).stem] = LETTERS[vote]
    return votes
