"""RAVDESS speech with video: Actor_01/01-01-EE-II-SS-RR-AA.mp4 has emotion EE, intensity II, statement SS, actor AA."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
NAME = re.compile(
    r"01-01-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<statement>0[12])-(?P<repetition>0[12])-(?P<actor>\d\d)"
)
PATTERNS = ["Actor_*/01-01-*.mp4", "*/Actor_*/01-01-*.mp4", "01-01-*.mp4"]
LAYOUT = (
    "a folder with Actor_01, Actor_02, ... in it, of files such as 01-01-05-01-02-01-12.mp4 (sound and video, speech)."
)


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    clips = []
    for path in corpus_files(root, "RAVDESS", PATTERNS, LAYOUT):
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path} is not named as RAVDESS names its files: {LAYOUT} Remove it, or check data.root.")
        labels = {
            "emotion": EMOTIONS[match["emotion"]],
            "intensity": "normal" if match["intensity"] == "01" else "strong",
            "statement": match["statement"],
            "gender": "male" if int(match["actor"]) % 2 else "female",
        }
        clips.append(Clip(id=path.stem, video=str(path), labels=labels, speaker=match["actor"]))
    return clips
