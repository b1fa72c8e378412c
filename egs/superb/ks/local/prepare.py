"""Speech Commands v1: WORD/SPEAKER_nohash_N.wav with validation_list.txt, and the folder of the test set."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import DataError
from mmssl.media.audio import audio_info
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
TRAIN, TEST = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
LAYOUT = f"a folder with {TRAIN} (the corpus) and {TEST} (the 12-class test set), as they are published."


def prepare(root: Path | None, folder: Path) -> list[Clip]:
    known = corpus_files(root, "Speech Commands v1", [f"{TRAIN}/*/*.wav"], LAYOUT)
    tested = corpus_files(root, "the test set of Speech Commands v1", [f"{TEST}/*/*.wav"], LAYOUT)
    lists = {name: known[0].parents[1] / f"{name}_list.txt" for name in ("validation", "testing")}
    for path in lists.values():
        if not path.is_file():
            raise DataError(f"{path} is not there: unpack the whole archive {TRAIN}.")
    listed = {name: set(path.read_text(encoding="utf-8").split()) for name, path in lists.items()}
    clips = []
    for path in known:
        name = f"{path.parent.name}/{path.name}"
        if path.parent.name == "_background_noise_":
            clips += silence(path)
        elif name not in listed["testing"]:
            clips.append(clip(path, "dev" if name in listed["validation"] else "train"))
    return clips + [clip(path, "test") for path in tested]


def clip(path: Path, split: str) -> Clip:
    word = path.parent.name.strip("_")
    keyword = word if word in (*WORDS, "silence") else "unknown"
    speaker = path.stem.partition("_nohash_")[0]
    return Clip(
        id=f"{split}-{word}-{path.stem}",
        audio=str(path),
        labels={"keyword": keyword, "word": word},
        speaker=speaker,
        split=split,
    )


def silence(path: Path) -> list[Clip]:
    """Pieces of 1 s of a recording of noise: the first 80 % for training, the others for development."""
    count = int(audio_info(path).duration)
    return [
        Clip(
            id=f"silence-{path.stem}-{k:03d}",
            audio=str(path),
            start=float(k),
            duration=1.0,
            labels={"keyword": "silence", "word": "silence"},
            speaker=f"noise-{path.stem}",
            split="train" if k < 0.8 * count else "dev",
        )
        for k in range(count)
    ]
