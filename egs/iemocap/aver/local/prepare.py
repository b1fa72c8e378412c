"""IEMOCAP with video: SessionN/dialog/avi/DivX/DIALOGUE.avi, cut by the times in SessionN/dialog/EmoEvaluation."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.errors import ConfigError, DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

# excited is counted as happy, as most papers do; the other categories are left out
EMOTIONS = {"ang": "anger", "hap": "happiness", "exc": "happiness", "neu": "neutral", "sad": "sadness"}
LINE = re.compile(
    r"\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\s+(?P<id>Ses(?P<session>0[1-5])[FM]_\w+_(?P<gender>[FM])\d+)\s+"
    r"(?P<emotion>\w+)\s+\[(?P<valence>[\d.]+), (?P<activation>[\d.]+), (?P<dominance>[\d.]+)\]"
)
LAYOUT = (
    "the folder IEMOCAP_full_release, with Session1 to Session5, each with dialog/avi/DivX and dialog/EmoEvaluation."
)


def prepare(root: Path | None, folder: Path, sound: str = "video") -> list[Clip]:
    """sound: "video", that of the dialogue's video file, or "dialogue", dialog/wav/DIALOGUE.wav.

    Both are on the clock of the utterances' times; the wav files of single sentences are not.
    """
    if sound not in ("video", "dialogue"):
        raise ConfigError(f"data.options.sound must be video or dialogue, got {sound!r}.")
    patterns = [f"{top}Session[1-5]/dialog/EmoEvaluation/Ses*.txt" for top in ("", "IEMOCAP_full_release/")]
    clips = []
    for path in corpus_files(root, "IEMOCAP", patterns, LAYOUT):
        session = path.parents[2]
        video = session / "dialog" / "avi" / "DivX" / f"{path.stem}.avi"
        wav = session / "dialog" / "wav" / f"{path.stem}.wav" if sound == "dialogue" else None
        for file in (video, wav):
            if file is not None and not file.is_file():
                raise DataError(f"{path} is there, but {file} is not: the copy of IEMOCAP is not whole.")
        for match in LINE.finditer(path.read_text(encoding="utf-8", errors="replace")):
            emotion = EMOTIONS.get(match["emotion"])
            if emotion is None:
                continue
            labels = {
                "emotion": emotion,
                "category": match["emotion"],
                "session": session.name,
                "kind": "improvised" if "impro" in path.stem else "scripted",
                "gender": "male" if match["gender"] == "M" else "female",
                "valence": float(match["valence"]),
                "activation": float(match["activation"]),
                "dominance": float(match["dominance"]),
            }
            start, end = float(match["start"]), float(match["end"])
            clips.append(
                Clip(
                    id=match["id"],
                    audio=None if wav is None else str(wav),
                    video=str(video),
                    start=start,
                    duration=round(end - start, 4),
                    labels=labels,
                    speaker=f"{session.name}_{match['gender']}",
                )
            )
    return clips
