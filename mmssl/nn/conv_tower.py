"""Stacks of convolutional stages over pictures, videos or spectrograms, of which every stage is a layer over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import conv_length, shortest_input
from mmssl.nn.spectrogram import LogSpectrogram

Pooling = Literal["mean", "max"]
TimeConv = tuple[int, int, int]
"""Kernel, stride and padding of a layer along time."""


class ConvTower(nn.Module):
    """A stem and stages; the output of each is pooled over everything but channels and time.

    The parts are called `stem`, `layer1`, `layer2`, ... as in torchvision's networks.

    Args:
        stem: first part, or None for a tower whose first stage takes the input.
        stages: further parts, each from the output of the one before.
        hidden_sizes: channels that come out of each part.
        time_convs: what each part does along time, as (kernel, stride, padding) in order; empty where it keeps time.
        time_axis: of the maps (B, C, ...), -1 for spectrograms (B, C, F, T), 2 for video (B, C, T, H, W); None for
            pictures (N, C, H, W), which have no time.
        pooling: "mean" or "max" over space or frequency.
    """

    def __init__(
        self,
        stem: nn.Module | None,
        stages: Sequence[nn.Module],
        hidden_sizes: Sequence[int],
        time_convs: Sequence[Sequence[TimeConv]],
        time_axis: int | None,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "max"):
            raise ConfigError(f"pooling must be 'mean' or 'max', got {pooling!r}.")
        self.names = ["stem"] * (stem is not None) + [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, part in zip(self.names, [*([] if stem is None else [stem]), *stages], strict=True):
            self.add_module(name, part)
        self.hidden_sizes, self.time_axis, self.pooling = tuple(hidden_sizes), time_axis, pooling
        self.time_convs: list[tuple[TimeConv, ...]] = []
        for convs in time_convs:
            self.time_convs.append((*(self.time_convs[-1] if self.time_convs else ()), *convs))
        if not len(self.names) == len(self.hidden_sizes) == len(self.time_convs):
            raise ConfigError("A conv tower needs one width and one list of time convolutions per part.")

    @property
    def hop_lengths(self) -> tuple[int, ...]:
        """Input steps between two frames of each layer."""
        hops = []
        for convs in self.time_convs:
            hop = 1
            for _, stride, _ in convs:
                hop *= stride
            hops.append(hop)
        return tuple(hops)

    @property
    def min_length(self) -> int:
        """Input steps of the shortest clip of which every layer has a frame."""
        # `shortest_input` wants the padding of both ends together
        return max(shortest_input([(k, s, 2 * p) for k, s, p in convs]) for convs in self.time_convs)

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Frames (B,) of a layer for inputs of `lengths` (B,) steps."""
        for kernel, stride, padding in self.time_convs[layer]:
            lengths = conv_length(lengths, kernel, stride, padding)
        return lengths

    def maps(self, x: Tensor) -> list[Tensor]:
        """Output (B, C_k, ...) of every part."""
        found = []
        for name in self.names:
            x = getattr(self, name)(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        """Clips (B, C, ...) without padding -> one (B, T_k, D_k) per layer; (N, D_k) for pictures."""
        return [self._pooled(part) for part in self.maps(x)]

    def _pooled(self, part: Tensor) -> Tensor:
        flat = part.flatten(2) if self.time_axis is None else part.movedim(self.time_axis, 1).flatten(3)
        return flat.amax(-1) if self.pooling == "max" else flat.mean(-1)


class AudioTower(nn.Module):
    """A spectrogram and a conv tower on it.

    Args:
        spectrogram: waveforms (B, T) -> (B, F, T').
        trunk: tower over (B, 1, F, T').
    """

    def __init__(self, spectrogram: LogSpectrogram, trunk: ConvTower) -> None:
        super().__init__()
        self.spectrogram, self.trunk = spectrogram, trunk
        self.hidden_sizes = trunk.hidden_sizes
        self.hop_lengths = tuple(hop * spectrogram.hop_length for hop in trunk.hop_lengths)
        self.min_length = spectrogram.min_length(trunk.min_length)

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Frames (B,) of a layer for `lengths` (B,) samples."""
        return self.trunk.output_lengths(self.spectrogram.output_lengths(lengths), layer)

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        """Waveforms (B, T) without padding -> one (B, T_k, D_k) per layer."""
        return self.trunk(self.spectrogram(waveforms)[:, None].to(_dtype(self)))


class VideoTower(nn.Module):
    """A conv tower on colour video, or on each of its pictures alone where the tower has no time axis.

    Args:
        trunk: tower over (B, C, T, H, W), or over pictures (N, C, H, W).
        mean, std: of each colour, for pictures in [0, 1].
    """

    def __init__(self, trunk: ConvTower, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.trunk = trunk
        self.mean, self.std = tuple(mean), tuple(std)
        self.hidden_sizes, self.hop_lengths, self.min_length = trunk.hidden_sizes, trunk.hop_lengths, trunk.min_length

    def output_lengths(self, lengths: Tensor, layer: int) -> Tensor:
        """Frames (B,) of a layer for `lengths` (B,) video frames."""
        return self.trunk.output_lengths(lengths, layer)

    def forward(self, video: Tensor) -> list[Tensor]:
        """Video (B, T, C, H, W) in [0, 1] without padding -> one (B, T_k, D_k) per layer.

        Raises:
            InputError: the pictures have not as many colours as the tower takes.
        """
        if video.shape[2] != len(self.mean):
            raise InputError(
                f"The video tower takes pictures of {len(self.mean)} channels, got {video.shape[2]}: "
                f"repeat the channel of grey pictures three times."
            )
        mean, std = (torch.tensor(v, dtype=torch.float32, device=video.device) for v in (self.mean, self.std))
        x = ((video.float() - mean[:, None, None]) / std[:, None, None]).to(_dtype(self))
        if self.trunk.time_axis is not None:
            return self.trunk(x.transpose(1, 2))
        return [layer.unflatten(0, video.shape[:2]) for layer in self.trunk(x.flatten(0, 1))]


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
