"""Augmentations of log-mel spectrograms (T, mels), and mixup of any two clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.augment.base import Augmentation, Range, checked_range, integer, require_dims, uniform
from mmssl.errors import ConfigError, InputError, did_you_mean

_KIND = "a spectrogram (T, mels)"
# time warp W, widest frequency mask F, frequency masks, widest time mask T, largest share p, time masks: table 1
_POLICIES = {
    "LB": (80, 27, 1, 100, 1.0, 1),
    "LD": (80, 27, 2, 100, 1.0, 2),
    "SM": (40, 15, 2, 70, 0.2, 2),
    "SS": (40, 27, 2, 70, 0.2, 2),
}


class SpecAugment(Augmentation):
    """Warp time, then mask blocks of mel bands and of frames.

    Source: Park et al. 2019, "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", section
    2. The warp is linear on both sides of the point that is moved. A mask's width is uniform on 0, ..., the widest, its
    place uniform over all where it fits.

    Args:
        max_warp: most frames by which a point is moved; 0 for no warp. Clips of 2 max_warp frames or less keep time.
        max_bins: widest mask of bands.
        bin_masks: how many.
        max_frames: widest mask of frames.
        max_share: widest mask of frames as a share of the clip.
        frame_masks: how many.
        fill: what stands in masks; None for the clip's mean. 0 is the paper's, for features of mean 0.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        max_warp: int = 80,
        max_bins: int = 27,
        bin_masks: int = 2,
        max_frames: int = 100,
        max_share: float = 1.0,
        frame_masks: int = 2,
        fill: float | None = 0.0,
    ) -> None:
        if min(max_warp, max_bins, bin_masks, max_frames, frame_masks) < 0 or not 0 <= max_share <= 1:
            raise ConfigError(
                "SpecAugment takes widths and counts of at least 0 and max_share in [0, 1], got "
                f"{max_warp}, {max_bins}, {bin_masks}, {max_frames}, {frame_masks} and {max_share}."
            )
        self.max_warp, self.max_bins, self.bin_masks = max_warp, max_bins, bin_masks
        self.max_frames, self.max_share, self.frame_masks, self.fill = max_frames, max_share, frame_masks, fill

    @classmethod
    def policy(cls, name: str, fill: float | None = 0.0) -> SpecAugment:
        """A policy of table 1 of the paper: "LB", "LD" (LibriSpeech), "SM" or "SS" (Switchboard).

        Raises:
            ConfigError: another name.
        """
        if name not in _POLICIES:
            raise ConfigError(
                f"No SpecAugment policy {name!r}; there are {', '.join(_POLICIES)}.{did_you_mean(name, _POLICIES)}"
            )
        warp, bins, bin_masks, frames, share, frame_masks = _POLICIES[name]
        return cls(warp, bins, bin_masks, frames, share, frame_masks, fill)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, mels) -> (T, mels)."""
        require_dims(x, (2,), _KIND)
        frames, bins = x.shape
        out = x.clone()
        if self.max_warp and frames > 2 * self.max_warp:
            centre = integer(self.max_warp, frames - self.max_warp - 1, generator)
            out = warp_time(out, centre, centre + integer(1 - self.max_warp, self.max_warp - 1, generator))
        fill = float(x.mean()) if self.fill is None else self.fill
        for _ in range(self.bin_masks):
            width = min(integer(0, self.max_bins, generator), bins)
            start = integer(0, bins - width, generator)
            out[:, start : start + width] = fill
        widest = min(self.max_frames, int(self.max_share * frames))
        for _ in range(self.frame_masks):
            width = integer(0, widest, generator)
            start = integer(0, frames - width, generator)
            out[start : start + width] = fill
        return out


def warp_time(x: Tensor, source: int, target: int) -> Tensor:
    """Stretch (T, mels) linearly so that frame `source` comes to `target`; both are inside, the ends stay."""
    last = len(x) - 1
    place = torch.arange(len(x), dtype=torch.float64, device=x.device)
    left = place * (source / target)
    right = source + (place - target) * ((last - source) / (last - target))
    origin = torch.where(place <= target, left, right).clamp(0, last)
    below = origin.floor().long().clamp(max=last - 1)
    part = (origin - below).to(x.dtype)[:, None]
    return x[below] * (1 - part) + x[below + 1] * part


class SpectrogramCrop(Augmentation):
    """BYOL-A's random resize crop: a box of random size on a canvas around the spectrogram, resized to its size.

    Source: Niizumi et al. 2021, "BYOL for Audio", section III-B.2, and the authors' code: box sizes are cut to the
    canvas, which is filled with zeros (the mean, after normalisation); bicubic, corners aligned.

    Args:
        canvas: size of the canvas, in units of the spectrogram's: (time, bands), at least 1.
        time_scale, band_scale: ranges of the box's size in the same units.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        canvas: Range = (1.5, 1.0),
        time_scale: Range = (0.6, 1.5),
        band_scale: Range = (0.6, 1.5),
    ) -> None:
        if len(canvas) != 2 or min(canvas) < 1:
            raise ConfigError(f"canvas must be two factors of at least 1 (time, bands), got {list(canvas)}.")
        self.canvas = (float(canvas[0]), float(canvas[1]))
        self.time_scale = checked_range("time_scale", time_scale, 0.01)
        self.band_scale = checked_range("band_scale", band_scale, 0.01)

    def box(self, frames: int, bins: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """First frame, first band, frames and bands of a box on the canvas."""
        sizes, starts = [], []
        for size, canvas, scale in zip((frames, bins), self.canvas, (self.time_scale, self.band_scale), strict=True):
            whole = int(size * canvas)
            length = min(max(int(uniform(*scale, generator) * size), 1), whole)
            sizes.append(length)
            starts.append(integer(0, whole - length, generator))
        return starts[0], starts[1], sizes[0], sizes[1]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, mels) -> (T, mels)."""
        require_dims(x, (2,), _KIND)
        frames, bins = x.shape
        canvas = x.new_zeros(int(frames * self.canvas[0]), int(bins * self.canvas[1]))
        top, left = (len(canvas) - frames) // 2, (canvas.shape[1] - bins) // 2
        canvas[top : top + frames, left : left + bins] = x
        t, f, height, width = self.box(frames, bins, generator)
        box = canvas[t : t + height, f : f + width]
        resized = F.interpolate(box[None, None], size=(frames, bins), mode="bicubic", align_corners=True)
        return resized[0, 0]


class LinearFader(Augmentation):
    """Fade in or out: a straight line over time, in the log domain, added to all bands.

    Source: Niizumi et al. 2023, "BYOL for Audio: Exploring Pre-trained General-purpose Audio Representations", section
    III-C.3: both ends uniform on [-gain, gain].

    Args:
        gain: of the line's ends, in units of the spectrogram; at least 0.

    Raises:
        ConfigError: a negative gain.
    """

    def __init__(self, gain: float = 1.0) -> None:
        if gain < 0:
            raise ConfigError(f"gain must be at least 0, got {gain}.")
        self.gain = gain

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, mels) -> (T, mels)."""
        require_dims(x, (2,), _KIND)
        head, tail = (uniform(-self.gain, self.gain, generator) for _ in range(2))
        return x + torch.linspace(head, tail, len(x), dtype=x.dtype, device=x.device)[:, None]


class Mixup(Augmentation):
    """Mix a clip with another one, whose share is drawn uniformly from [0, ratio).

    A clip that is longer is cropped at a random place; one that is shorter is refused.

    Args:
        others: clips to mix with, of the same kind.
        ratio: largest share of the other clip, in [0, 1].
        log_domain: mix exponentials, as of log-mel values (`log_mixup_exp`), not the values themselves.

    Raises:
        ConfigError: a ratio out of range, or no clips.
    """

    def __init__(self, others: Sequence[Tensor], ratio: float = 0.4, log_domain: bool = False) -> None:
        if not 0 <= ratio <= 1 or not others:
            raise ConfigError(f"Mixup needs a ratio in [0, 1] and other clips, got {ratio} and {len(others)} clips.")
        self.others, self.ratio, self.log_domain = list(others), ratio, log_domain

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, ...) -> (T, ...)."""
        other = self.others[integer(0, len(self.others) - 1, generator)].to(x)
        if len(other) < len(x) or other.shape[1:] != x.shape[1:]:
            raise InputError(f"A clip {tuple(other.shape)} cannot be mixed into one {tuple(x.shape)}.")
        start = integer(0, len(other) - len(x), generator)
        share = uniform(0, self.ratio, generator)
        mixed = log_mixup_exp if self.log_domain else mixup
        return mixed(x, other[start : start + len(x)], share)


def mixup(x: Tensor, other: Tensor, share: float) -> Tensor:
    """(1 - share) x + share other (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1)."""
    return (1 - share) * x + share * other


def log_mixup_exp(x: Tensor, other: Tensor, share: float) -> Tensor:
    """Log of (1 - share) exp(x) + share exp(other): sounds add up in the linear domain.

    Source: Niizumi et al. 2021, "BYOL for Audio", equation 4.
    """
    weights = torch.tensor([1 - share, share], dtype=x.dtype, device=x.device).log()
    return torch.logaddexp(x + weights[0], other + weights[1])
