"""A pool of unlabelled speech from FSDD, EmoDB and RAVDESS and from any further folder, without the tested speakers.

Labelled clips of all speakers are written to data/probe/{digits,speakers,emodb,ravdess}.jsonl for compare.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mmssl.data.manifest import write_manifest
from mmssl.errors import DataError
from mmssl.media.audio import audio_info
from mmssl.stages.corpus import corpus_files
from mmssl.types import Clip

# the last speakers of each corpus by name; compare.yaml tests on them
UNSEEN = {"fsdd": {"nicolas", "theo", "yweweler"}, "emodb": {"14", "15", "16"}, "ravdess": {"07", "08"}}
NAMES = {
    "fsdd": r"(?P<digit>\d)_(?P<speaker>[a-z]+)_\d+",
    "emodb": r"(?P<speaker>\d\d)[ab]\d\d(?P<emotion>[WLEAFTN])[a-z]",
    "ravdess": r"03-01-(?P<emotion>0[1-8])-0[12]-0[12]-0[12]-(?P<speaker>\d\d)",
}
FILES = {
    "fsdd": ["fsdd/*.wav", "fsdd/recordings/*.wav"],
    "emodb": ["emodb/wav/*.wav", "emodb/*.wav"],
    "ravdess": ["ravdess/Actor_*/03-01-*.wav", "ravdess/*/Actor_*/03-01-*.wav"],
}
# a column of AudioMAE's patches lasts 0.175 s
LEAST_SECONDS = 0.18
LAYOUT = "a folder with fsdd/, emodb/ and ravdess/ in it, each as its publisher has it."


def prepare(root: Path | None, folder: Path, extra: str | None = None) -> list[Clip]:
    """Clips to pretrain on, none of them of a speaker that is tested.

    Args:
        root: folder with fsdd/, emodb/ and ravdess/.
        folder: data/ of the recipe; manifests for the probes go to its folder probe.
        extra: folder with further recordings (wav, flac, ogg, mp3, g722), at any depth.
    """
    clips = {corpus: long_enough(read(root, corpus)) for corpus in NAMES}
    for corpus, name in (("fsdd", "digits"), ("emodb", "emodb"), ("ravdess", "ravdess")):
        write_manifest(folder / "probe" / f"{name}.jsonl", divided(clips[corpus], "speaker", UNSEEN[corpus]))
    unseen = [clip for clip in clips["fsdd"] if clip.speaker in UNSEEN["fsdd"]]
    write_manifest(folder / "probe" / "speakers.jsonl", divided(unseen, "digit", set("56789")))
    pool = [clip for corpus, own in clips.items() for clip in own if clip.speaker not in UNSEEN[corpus]]
    return pool if extra is None else pool + recordings(Path(extra))


def read(root: Path | None, corpus: str) -> list[Clip]:
    """All clips of one of the three corpora, with their labels."""
    found = []
    for path in corpus_files(root, corpus, FILES[corpus], LAYOUT):
        match = re.fullmatch(NAMES[corpus], path.stem)
        if match is None:
            raise DataError(f"{path} is not named as {corpus} names its files. Remove it, or check data.root.")
        labels = {**match.groupdict(), "corpus": corpus}
        found.append(Clip(id=path.stem, audio=str(path), labels=labels, speaker=match["speaker"]))
    return found


def long_enough(clips: Iterable[Clip]) -> list[Clip]:
    """The clips that every encoder of the comparison can take."""
    return [clip for clip in clips if audio_info(str(clip.audio)).duration >= LEAST_SECONDS]


def divided(clips: Iterable[Clip], group: str, tested: set[str]) -> list[Clip]:
    """The clips with the split that the probe uses."""
    return [replace(clip, split="test" if clip.group(group) in tested else "train") for clip in clips]


def recordings(folder: Path) -> list[Clip]:
    """Clips without labels of every recording below a folder."""
    kinds = {".wav", ".flac", ".ogg", ".mp3", ".g722"}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds and path.is_file())
    if not paths:
        raise DataError(f"data.options.extra={folder}: no recording ({', '.join(sorted(kinds))}) is below it.")
    return [Clip(id=f"extra-{path.relative_to(folder).with_suffix('')}", audio=str(path)) for path in paths]
