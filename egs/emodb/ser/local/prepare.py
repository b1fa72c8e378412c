"""EmoDB: wav/03a01Fa.wav is speaker 03, text a01, emotion F, version a."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

# the letter is the first of the German word: Wut, Langeweile, Ekel, Angst, Freude, Trauer, neutral
EMOTIONS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
MEN = {"03", "10", "11", "12", "15"}
NAME = re.compile(r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<version>[a-z])")
LAYOUT = "a folder of files such as 03a01Fa.wav, or one with such a folder wav/ in it."


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    clips = []
    for path in corpus_files(root, "EmoDB", ["*.wav", "wav/*.wav"], LAYOUT):
        match = NAME.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path} is not named as EmoDB names its files: {LAYOUT} Remove it, or check data.root.")
        labels = {
            "emotion": EMOTIONS[match["emotion"]],
            "text": match["text"],
            "gender": "male" if match["speaker"] in MEN else "female",
        }
        clips.append(Clip(id=path.stem, audio=str(path), labels=labels, speaker=match["speaker"]))
    return clips
