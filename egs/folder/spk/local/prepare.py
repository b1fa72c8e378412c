"""A folder of sound files with a folder for each speaker, a manifest, or several corpora in one pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmssl.data.manifest import read_manifest
from mmssl.data.trials import read_trials, write_trials
from mmssl.errors import ConfigError, DataError
from mmssl.stages.spk_corpus import FIRST_FOLDER, pooled, speaker_files, with_splits
from mmssl.types import Clip


def prepare(
    root: Path | None,
    folder: Path,
    manifest: str | None = None,
    speaker: str = FIRST_FOLDER,
    test_speakers: int | Sequence[str] | None = None,
    dev_speakers: int | Sequence[str] = 0,
    trials: Sequence[str] = (),
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Clip]:
    """Clips with speaker and split; trial lists that are given go to folder/trials.

    Args:
        root: of the files.
        folder: where trial lists go.
        manifest: of `mmssl data`, below the root, instead of the files themselves. Its splits are kept where all
            clips have one.
        speaker: regular expression whose first group is the speaker; by default the first folder below the root.
        test_speakers, dev_speakers: names, or how many.
        trials: names of lists below the root with lines "1 ENROL TEST" or "0 ENROL TEST" of clip ids, which are the
            paths below the root.
        sources: several corpora in one pool.
    """
    if root is None:
        raise DataError("Say where the speakers are: add data.root=FOLDER, with a folder of sound files for each.")
    if sources:
        if manifest is not None:
            raise ConfigError("data.options.sources and data.options.manifest exclude each other: give one.")
        clips = pooled(sources, root, folder.parent)
    elif manifest is not None:
        clips = [
            replace(clip, labels={**clip.labels, "speaker": clip.speaker}) for clip in read_manifest(root / manifest)
        ]
        if not all(clip.split for clip in clips):
            clips = with_splits(clips, test_speakers, dev_speakers)
    else:
        clips = with_splits(speaker_files(root, speaker=speaker), test_speakers, dev_speakers)
    for name in trials:
        listed = read_trials(root / name)
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        write_trials(folder / "trials" / f"{Path(name).stem}.txt", listed)
    return clips
