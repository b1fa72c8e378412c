"""Known labels of frames, for judging clusters: from tables of segments to one label for each frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmssl.errors import DataError
from mmssl.metrics.clusters import ClusterQuality, contingency, quality

SUFFIXES = (".tsv", ".lablaut")
Segments = list[tuple[float, float, str]]


def read_alignment(path: str | Path) -> Segments:
    """Segments (start, end, label) of a clip, in seconds.

    Formats: a tsv file of start, end and label with a heading (the corpus `mini`), or the label files of EmoDB
    (`.lablaut`: after a line "#", the end of each segment, a colour and the label).

    Raises:
        DataError: the file is missing or is of another form.
    """
    path = Path(path)
    try:
        # EmoDB's comments are Latin-1
        lines = path.read_text(encoding="utf-8" if path.suffix == ".tsv" else "latin-1").splitlines()
        if path.suffix == ".tsv":
            rows = [line.split("\t") for line in lines[1:] if line]
            return [(float(start), float(end), label) for start, end, label in rows]
        body = [line.split() for line in lines[lines.index("#") + 1 :] if line.strip()]
        found: Segments = []
        for time, _, *words in body:
            found.append((found[-1][1] if found else 0.0, float(time), words[0].strip("!_") if words else ""))
        return found
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not an alignment ({error}): a tsv file of start, end and label with a heading, or EmoDB's "
            "lablaut."
        ) from error


def frame_labels(segments: Segments, num_frames: int, rate: float, codes: dict[str, int]) -> np.ndarray:
    """Label of each frame: that of the segment in which the middle of the frame's step lies.

    Args:
        segments: of the clip.
        num_frames: of the clip.
        rate: frames per second.
        codes: label -> number; labels that are new are added.

    Returns:
        (num_frames,) int64, -1 where no segment is.
    """
    middles = (np.arange(num_frames) + 0.5) / rate
    labels = np.full(num_frames, -1, dtype=np.int64)
    for start, end, name in segments:
        labels[(middles >= start) & (middles < end)] = codes.setdefault(name, len(codes))
    return labels


def judge_units(
    units: Mapping[str, np.ndarray], folder: str | Path, rate: float, num_clusters: int
) -> ClusterQuality | None:
    """Purities and PNMI of the cluster ids of clips over the alignments in a folder.

    Args:
        units: clip id -> (n,).
        folder: with `<clip id>.tsv` or `<clip id>.lablaut`; clips without a file are left out.
        rate: of the units, in Hz.
        num_clusters: K.

    Returns:
        None where no clip has an alignment.

    Raises:
        DataError: an alignment cannot be read.
    """
    codes: dict[str, int] = {}
    labels, clusters = [], []
    for clip, own in units.items():
        path = next((p for s in SUFFIXES if (p := Path(folder) / f"{clip}{s}").is_file()), None)
        if path is not None:
            labels.append(frame_labels(read_alignment(path), len(own), rate, codes))
            clusters.append(own)
    if not labels:
        return None
    return quality(contingency(np.concatenate(labels), np.concatenate(clusters), len(codes), num_clusters))
