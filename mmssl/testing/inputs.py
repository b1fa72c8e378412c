"""Inputs for any upstream, drawn from what its spec declares: noise and tones, moving pictures, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.types import UpstreamSpec

PICTURE = (64, 64)
"""Height and width of pictures where an upstream takes any."""


@dataclass(frozen=True)
class Batch:
    """Clips side by side, with the lengths that `Upstream.forward` takes.

    Attributes:
        tensors: "waveforms" (B, T), "video" (B, T, C, H, W) and / or "images" (B, C, H, W).
        lengths: the same names (without images) -> (B,) int64.
    """

    tensors: dict[str, Tensor]
    lengths: dict[str, Tensor]

    @property
    def size(self) -> int:
        """Number of clips."""
        return len(next(iter(self.tensors.values())))

    def kwargs(self) -> dict[str, Tensor]:
        """Keyword arguments for the upstream."""
        names = {"waveforms": "lengths", "video": "video_lengths"}
        return self.tensors | {names[name]: value for name, value in self.lengths.items()}

    def select(self, clips: Sequence[int]) -> Batch:
        """The clips with these numbers, in this order, without padding beyond the longest."""
        index = torch.tensor(list(clips))
        lengths = {name: value[index] for name, value in self.lengths.items()}
        tensors = {}
        for name, value in self.tensors.items():
            rows = value[index]
            tensors[name] = rows[:, : int(lengths[name].max())] if name in lengths else rows
        return Batch(tensors, lengths)

    def padded(self, extra: int, value: float) -> Batch:
        """The same clips with `value` past each length, and `extra` more steps of it at the end."""
        tensors = {}
        for name, data in self.tensors.items():
            if name in self.lengths:
                data = torch.cat([data, data.new_zeros(len(data), extra, *data.shape[2:])], dim=1)
                for row, length in enumerate(self.lengths[name].tolist()):
                    data[row, length:] = value
            tensors[name] = data
        return Batch(tensors, self.lengths)


def unit_rate(spec: UpstreamSpec) -> float:
    """Samples (or, without waveforms, video frames) per second; 1 for images."""
    return float(spec.sample_rate or spec.video_fps or 1)


def video_frames(spec: UpstreamSpec, length: int) -> int:
    """Video frames that go with `length` samples; `length` itself where there are no waveforms."""
    if "waveforms" not in spec.inputs or not spec.sample_rate or not spec.video_fps:
        return length
    return max(1, int(length * spec.video_fps / spec.sample_rate))


def draw(spec: UpstreamSpec, lengths: Sequence[int], names: Sequence[str], channels: int = 3) -> Batch:
    """Clips of given lengths that depend on their place in the batch alone; zero past each length.

    Args:
        spec: of the upstream.
        lengths: of each clip, in samples (without waveforms in the spec: in video frames; ignored for images).
        names: which of the spec's inputs to draw.
        channels: of video and images.
    """
    tensors, sizes = {}, {}
    if "waveforms" in names:
        clips = [_waveform(length, seed, unit_rate(spec)) for seed, length in enumerate(lengths)]
        tensors["waveforms"] = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        sizes["waveforms"] = torch.tensor(list(lengths))
    size = spec.image_size or PICTURE
    if "video" in names:
        frames = [video_frames(spec, length) for length in lengths]
        videos = [_pictures(count, seed, channels, size) for seed, count in enumerate(frames)]
        tensors["video"] = torch.nn.utils.rnn.pad_sequence(videos, batch_first=True)
        sizes["video"] = torch.tensor(frames)
    if "images" in names:
        tensors["images"] = torch.cat([_pictures(1, seed, channels, size) for seed in range(len(lengths))])
    return Batch(tensors, sizes)


def _waveform(length: int, seed: int, rate: float) -> Tensor:
    """(T,) in [-1, 1]: a tone whose pitch and loudness change, and noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / rate
    pitch = 110.0 * (1.0 + 0.3 * seed)
    tone = torch.sin(2 * math.pi * pitch * time + 3 * torch.sin(2 * math.pi * 2 * time))
    loudness = 0.6 + 0.4 * torch.sin(2 * math.pi * 3 * time + seed)
    return 0.2 * tone * loudness + 0.05 * torch.randn(length, generator=generator)


def _pictures(count: int, seed: int, channels: int, size: tuple[int, int]) -> Tensor:
    """(T, C, H, W) in [0, 1]: a wave that moves over the picture, and noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    shift = torch.arange(count)[:, None, None] / 7 + seed
    wave = 0.5 + 0.3 * torch.sin(2 * math.pi * (rows * 2 + columns * 3 + shift))
    noise = 0.2 * torch.rand(count, channels, height, width, generator=generator)
    return wave[:, None] * 0.8 + noise
