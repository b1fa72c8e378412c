"""Synchrony of sound and video: scores over shifts, the offset, and clips whose sound does not belong.

Source: Chung and Zisserman 2016, "Out of time: automated lip sync in the wild" (SyncNet), section 3: features of both
streams are compared at every shift, the best shift is the offset, and how far it stands out is the confidence. The
scores here are cosines, and training picks the true shift among all of a clip by cross entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.downstream.pooling import without_padding
from mmssl.errors import ConfigError, InputError
from mmssl.metrics.ranking import roc_auc
from mmssl.metrics.verification import eer
from mmssl.types import Layers, Padded, TaskOutput

if TYPE_CHECKING:
    from mmssl.interfaces.aligned import AlignedStreams


@dataclass(frozen=True)
class OffsetEstimate:
    """What the scores over shifts say of each clip.

    Attributes:
        offset: (B,) int64, frames by which the sound comes after the picture; negative where it comes before.
        confidence: (B,) how far the best score stands above the median of all shifts that the clip allows.
    """

    offset: Tensor
    confidence: Tensor


def shift_scores(audio: Padded, video: Padded, max_shift: int, least_frames: int = 1) -> Tensor:
    """Mean cosine of both streams at each shift.

    At shift s, video frame t meets audio frame t + s, over all t for which both exist: nothing wraps around, and no
    padding is met.

    Args:
        audio: (B, T, E) frames.
        video: (B, U, E) frames on the same clock.
        max_shift: S, in frames.
        least_frames: fewer frames in common give the score -inf.

    Returns:
        (B, 2 S + 1), of the shifts -S ... S.

    Raises:
        ConfigError: a negative `max_shift`, or `least_frames` below 1.
        InputError: widths or numbers of clips differ, or a clip has no frame.
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
    sound, sight = without_padding(audio), without_padding(video)
    a, v = F.normalize(sound.data, dim=-1), F.normalize(sight.data, dim=-1)
    scores = []
    for shift in range(-max_shift, max_shift + 1):
        first, skipped = max(0, shift), max(0, -shift)
        common = torch.minimum(sound.lengths - first, sight.lengths - skipped).clamp(min=0)
        size = max(0, min(a.shape[1] - first, v.shape[1] - skipped))
        cosines = (a[:, first : first + size] * v[:, skipped : skipped + size]).sum(-1)
        valid = torch.arange(size, device=a.device)[None] < common[:, None]
        mean = cosines.masked_fill(~valid, 0).sum(1) / common.clamp(min=1)
        scores.append(mean.masked_fill(common < least_frames, -torch.inf))
    return torch.stack(scores, dim=1)


def estimate_offset(scores: Tensor) -> OffsetEstimate:
    """Best shift and its confidence, from scores (B, 2 S + 1). Of equal scores the shift nearest to 0 is taken.

    Raises:
        InputError: not an odd number of shifts, or a clip without a finite score.
    """
    found = _checked_scores(scores)
    reach = found.shape[1] // 2
    shifts = torch.arange(-reach, reach + 1, device=found.device)
    nearest = shifts.abs().argsort(stable=True)
    best = nearest[found[:, nearest].argmax(1)]
    top = found.gather(1, best[:, None])[:, 0]
    median = found.masked_fill(~torch.isfinite(found), torch.nan).nanmedian(1).values
    return OffsetEstimate(shifts[best], top - median)


def manipulation_scores(scores: Tensor) -> Tensor:
    """(B,) how much better another shift fits than none, from scores (B, 2 S + 1): higher for clips that were changed.

    Neighbouring shifts do not count as others, since an offset of one frame is not heard.

    Raises:
        InputError: as `estimate_offset`, or shifts of fewer than two frames.
    """
    found = _checked_scores(scores)
    reach = found.shape[1] // 2
    if reach < 2:
        raise InputError("Detection needs scores of shifts of at least two frames: raise max_shift.")
    near = found[:, reach - 1 : reach + 2].amax(1)
    far = torch.cat([found[:, : reach - 1], found[:, reach + 2 :]], dim=1).amax(1)
    return far - near


def sync_metrics(scores: Tensor, offsets: Tensor) -> dict[str, float]:
    """Offsets found, from scores (B, 2 S + 1) and true offsets (B,).

    Returns:
        "accuracy" (exact), "accuracy_within_1" (frames), "mean_absolute_error" (frames) and "confidence" (mean).
    """
    estimate = estimate_offset(scores)
    error = (estimate.offset - offsets.to(estimate.offset)).abs().double()
    return {
        "accuracy": float((error == 0).double().mean()),
        "accuracy_within_1": float((error <= 1).double().mean()),
        "mean_absolute_error": float(error.mean()),
        "confidence": float(estimate.confidence.double().mean()),
    }


def detection_metrics(scores: npt.ArrayLike, is_manipulated: npt.ArrayLike) -> dict[str, float]:
    """ "auc" and "eer" of manipulation scores (n,), for labels (n,) that are True where a clip was changed.

    Raises:
        InputError: shapes, scores or labels are wrong, or one class is empty.
    """
    values = np.asarray(scores, dtype=np.float64)
    return {"auc": roc_auc(values, is_manipulated), "eer": eer(values, is_manipulated)}


def shift_frames(audio: Padded, video: Padded, offsets: Tensor) -> tuple[Padded, Padded]:
    """Cut clips so that their sound comes `offsets` (B,) frames late (early where negative). Nothing wraps around.

    Both streams lose |offset| frames, the video at one end and the sound at the other.

    Raises:
        InputError: an offset that leaves a clip no frame.
    """
    shared = torch.minimum(audio.lengths, video.lengths)
    lengths = shared - offsets.abs()
    if int(lengths.min()) < 1:
        raise InputError(f"Offsets {offsets.tolist()} leave no frame of clips of {shared.tolist()} frames.")
    # a late sound: video frame t now meets audio frame t + offset of the new clip, that is frame t of the old one
    return _cut(audio, (-offsets).clamp(min=0), lengths), _cut(video, offsets.clamp(min=0), lengths)


class Synchrony(nn.Module):
    """Projects both streams frame by frame and finds the shift at which they fit.

    Args:
        aligned: both streams on one clock.
        embedding_size: width in which they are compared.
        hidden_size: of the projection's hidden layer.
        max_shift: S, in frames.
        temperature: divides the cosines in training.
        least_frames: shifts with fewer frames in common do not count.

    Attributes:
        monitor: the score that selects.

    Raises:
        ConfigError: a value out of range.
    """

    monitor = "dev_accuracy_within_1"

    def __init__(
        self,
        aligned: AlignedStreams,
        embedding_size: int = 128,
        hidden_size: int = 256,
        max_shift: int = 15,
        temperature: float = 0.1,
        least_frames: int = 1,
    ) -> None:
        super().__init__()
        if min(embedding_size, hidden_size, max_shift, least_frames) < 1 or not temperature > 0:
            raise ConfigError("Sizes, max_shift and least_frames must be at least 1 and the temperature above 0.")
        self.aligned, self.max_shift, self.temperature = aligned, max_shift, temperature
        self.least_frames = least_frames
        self.projections = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.LayerNorm(size), nn.Linear(size, hidden_size), nn.GELU(), nn.Linear(hidden_size, embedding_size)
                )
                for name, size in aligned.sizes.items()
            }
        )

    def frames(self, streams: Mapping[str, Layers]) -> dict[str, Padded]:
        """Projected frames (B, T, E) of "audio" and "video" on one clock."""
        aligned = self.aligned(streams)
        return {name: Padded(self.projections[name](found.data), found.lengths) for name, found in aligned.items()}

    def scores(self, streams: Mapping[str, Layers]) -> Tensor:
        """(B, 2 S + 1) scores of the shifts."""
        found = self.frames(streams)
        return shift_scores(found["audio"], found["video"], self.max_shift, self.least_frames)

    def forward(self, streams: Mapping[str, Layers], targets: Tensor) -> TaskOutput:
        """Cross entropy of the true shift among all.

        Args:
            streams: of B clips.
            targets: (B,) int64, frames by which the sound is late.

        Raises:
            InputError: an offset that is not among the shifts, or at which a clip is too short.
        """
        scores = self.scores(streams)
        if (
            targets.shape != scores.shape[:1]
            or targets.is_floating_point()
            or int(targets.abs().max()) > self.max_shift
        ):
            raise InputError(
                f"Targets must be ({len(scores)},) whole offsets from -{self.max_shift} to {self.max_shift} frames, "
                f"got {targets.tolist()}."
            )
        index = targets.long() + self.max_shift
        if not bool(torch.isfinite(scores.gather(1, index[:, None])).all()):
            raise InputError("A clip is too short for its offset: leave it out, or lower max_shift or least_frames.")
        return TaskOutput(F.cross_entropy(scores / self.temperature, index), len(scores), scores)

    @torch.no_grad()
    def predict(self, streams: Mapping[str, Layers]) -> Tensor:
        """Scores (B, 2 S + 1) in eval mode, without gradients."""
        training = self.training
        self.eval()
        try:
            return self.scores(streams)
        finally:
            self.train(training)

    def metrics(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """As `sync_metrics`."""
        return sync_metrics(scores, targets)


def _cut(frames: Padded, starts: Tensor, lengths: Tensor) -> Padded:
    steps = torch.arange(int(lengths.max()), device=frames.data.device)
    index = (starts[:, None] + steps).clamp(max=frames.data.shape[1] - 1)
    rows = torch.arange(len(starts), device=frames.data.device)[:, None]
    return without_padding(Padded(frames.data[rows, index], lengths))


def _checked_scores(scores: Tensor) -> Tensor:
    if scores.dim() != 2 or scores.shape[1] % 2 == 0 or not bool(torch.isfinite(scores).any(1).all()):
        raise InputError(
            f"Scores over shifts must be (B, 2 S + 1) with a finite one for each clip, got {tuple(scores.shape)}."
        )
    return scores.detach()
