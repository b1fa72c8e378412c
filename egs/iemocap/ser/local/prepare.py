"""IEMOCAP: SessionN/sentences/wav/DIALOGUE/UTTERANCE.wav, labels in SessionN/dialog/EmoEvaluation/DIALOGUE.txt."""

from __future__ import annotations

import re
from pathlib import Path

from mmssl.errors import DataError
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

# excited is counted as happy, as SUPERB and most papers do; the other categories are left out
EMOTIONS = {"ang": "anger", "hap": "happiness", "exc": "happiness", "neu": "neutral", "sad": "sadness"}
LINE = re.compile(
    r"\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\s+(?P<id>Ses(?P<session>0[1-5])[FM]_\w+_(?P<gender>[FM])\d+)\s+"
    r"(?P<emotion>\w+)\s+\[(?P<valence>[\d.]+), (?P<activation>[\d.]+), (?P<dominance>[\d.]+)\]"
)
LAYOUT = "the folder IEMOCAP_full_release, with Session1 to Session5, each with sentences/wav and dialog/EmoEvaluation."


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    patterns = [f"{top}Session[1-5]/dialog/EmoEvaluation/Ses*.txt" for top in ("", "IEMOCAP_full_release/")]
    clips = []
    for path in corpus_files(root, "IEMOCAP", patterns, LAYOUT):
        session = path.parents[2]
        for match in LINE.finditer(path.read_text(encoding="utf-8", errors="replace")):
            emotion = EMOTIONS.get(match["emotion"])
            if emotion is None:
                continue
            wav = session / "sentences" / "wav" / path.stem / f"{match['id']}.wav"
            if not wav.is_file():
                raise DataError(
                    f"{path} names {match['id']}, but {wav} is not there: the copy of IEMOCAP is not whole."
                )
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
            clips.append(
                Clip(id=match["id"], audio=str(wav), labels=labels, speaker=f"{session.name}_{match['gender']}")
            )
    return clips
