"""Distances of sound and pictures over a range of shifts, and what they say of a clip.

Source of the distance, the offset and the confidence: Chung and Zisserman 2016, "Out of time: automated lip sync in the
wild" (SyncNet), section 3: Euclidean distances between features of both streams, averaged over the clip at each shift;
the offset is where the mean is least, the confidence is the median over shifts minus that minimum. Their frames are
embeddings of 0.2 s of either stream whose norm training leaves free; here frames are scaled to norm 1, so that
distances lie in [0, 2] and confidences of one model compare across clips. Frames without a partner at a shift are left
out where SyncNet repeats the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.downstream.sync import estimate_offset
from mmssl.errors import ConfigError, InputError
from mmssl.types import Padded

IN_SYNC, SHIFTED, NO_MATCH = "in sync", "shifted", "no match"


@dataclass(frozen=True)
class SyncJudgement:
    """What the distances over shifts say of one clip.

    Attributes:
        offset: frames by which the sound comes after the picture; negative where it comes before.
        confidence: median of the distances minus the least, in [0, 2].
        distances: at the shifts -S ... S; infinite where too few frames meet.
        verdict: "in sync"; "shifted", where another shift fits; "no match", where none stands out: the sound is of
            something else, or nothing can be seen or heard by which to tell.
    """

    offset: int
    confidence: float
    distances: tuple[float, ...]
    verdict: str

    @property
    def manipulated(self) -> bool:
        """Whether sound and pictures do not belong together as they are."""
        return self.verdict != IN_SYNC


def shift_distances(audio: Padded, video: Padded, max_shift: int, least_frames: int = 1) -> Tensor:
    """Mean Euclidean distance of both streams, frames scaled to norm 1, at each shift.

    At shift s video frame t meets audio frame t + s, over all t for which both exist.

    Args:
        audio: (B, T, E) frames.
        video: (B, U, E) frames on the same clock.
        max_shift: S, in frames.
        least_frames: with fewer frames in common the distance is infinite.

    Returns:
        (B, 2 S + 1) in [0, 2], of the shifts -S ... S.

    Raises:
        ConfigError: a negative `max_shift`, or `least_frames` below 1.
        InputError: widths or numbers of clips differ.
    """
    if max_shift < 0 or least_frames < 1:
        raise ConfigError(
            f"max_shift must be at least 0 and least_frames at least 1, got {max_shift} and {least_frames}."
        )
    if len(audio.lengths) != len(video.lengths) or audio.data.shape[-1] != video.data.shape[-1]:
        raise InputError(
            f"Synchrony compares frames of one width and of the same clips, got {tuple(audio.data.shape)} and "
            f"{tuple(video.data.shape)}."
        )
    rows = []
    for sound, sight in zip(audio.unpad(), video.unpad(), strict=True):
        a, v = F.normalize(sound.double(), dim=-1), F.normalize(sight.double(), dim=-1)
        row = []
        for shift in range(-max_shift, max_shift + 1):
            begin, skipped = max(0, shift), max(0, -shift)
            common = min(len(a) - begin, len(v) - skipped)
            if common < least_frames:
                row.append(a.new_tensor(torch.inf))
                continue
            row.append((a[begin : begin + common] - v[skipped : skipped + common]).norm(dim=-1).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows).to(audio.data.dtype)


def judge(distances: Tensor, tolerance: int = 1, threshold: float | None = None) -> list[SyncJudgement]:
    """What distances (B, 2 S + 1) say of each clip.

    Args:
        distances: of `shift_distances`.
        tolerance: frames of offset that still count as in sync.
        threshold: a lower confidence counts as no match; None for none, so that offsets alone are judged.

    Raises:
        ConfigError: a negative tolerance.
        InputError: not an odd number of shifts, or a clip that is too short for every shift.
    """
    if tolerance < 0:
        raise ConfigError(f"tolerance must be 0 frames or more, got {tolerance}.")
    estimate = estimate_offset(-distances)
    found = []
    rows = zip(estimate.offset.tolist(), estimate.confidence.tolist(), distances.tolist(), strict=True)
    for offset, confidence, row in rows:
        unsure = threshold is not None and confidence < threshold
        verdict = NO_MATCH if unsure else SHIFTED if abs(offset) > tolerance else IN_SYNC
        found.append(SyncJudgement(offset, confidence, tuple(row), verdict))
    return found
