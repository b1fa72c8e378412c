"""Residual networks over a filterbank as a picture, for speaker embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import conv_length
from mmssl.nn.equal_lengths import map_equal_lengths
from mmssl.nn.resnet2d import ResidualBlock, init_convs, stage_widths
from mmssl.nn.tdnn import StatisticsPooling
from mmssl.types import Padded

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    221: (6, 16, 48, 3),
    293: (10, 20, 64, 3),
}
EXPANSION = 4


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut (He et al. 2016, figure 5 right); the stride is the middle's.

    Parameters are called as in torchvision's `Bottleneck`.

    Args:
        inputs: channels that come in.
        width: channels of the middle; four times as many come out.
        stride: in both directions.
    """

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 * width, H', W')."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out)).relu()))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class ResNetEncoder(nn.Module):
    """Frames of a filterbank to a speaker embedding by a two-dimensional residual network.

    Source: Zeinali et al. 2019, "BUT System Description to VoxCeleb Speaker Recognition Challenge 2019", table 1: a
    3 x 3 stem without pooling, four stages of strides 1, 2, 2, 2, mean and standard deviation over time of every
    channel and frequency, a linear map. Depths 18 and 34 have basic blocks, the others bottlenecks; 221 and 293 are
    the depths of WeSpeaker (Chen et al. 2023, "Build a SRE Challenge System").

    No clip meets padding: clips of one length run together. In training, where batch norm looks across clips, all
    clips of a batch must have one length (crops).

    Args:
        input_size: features of a frame.
        depth: 18, 34, 50, 101, 152, 221 or 293.
        width: channels of the first stage, 32 in the papers.
        embedding_size: of the result.

    Raises:
        ConfigError: there is no such depth, or a size is below 1.
    """

    def __init__(self, input_size: int = 80, depth: int = 34, width: int = 32, embedding_size: int = 256) -> None:
        super().__init__()
        if depth not in BLOCKS or min(input_size, width, embedding_size) < 1:
            raise ConfigError(
                f"The depth of a ResNetEncoder is one of {', '.join(map(str, BLOCKS))}, its sizes are at least 1; got "
                f"{depth=}, {input_size=}, {width=}, {embedding_size=}."
            )
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, bands, stages = width, input_size, []
        for size, number, first_stride in zip(stage_widths(width), BLOCKS[depth], (1, 2, 2, 2), strict=True):
            blocks: list[nn.Module] = []
            for index in range(number):
                stride = first_stride if index == 0 else 1
                blocks.append((ResidualBlock if depth < 50 else BottleneckBlock)(channels, size, stride))
                channels = size if depth < 50 else EXPANSION * size
            bands = conv_length(bands, 3, first_stride, 1)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        init_convs(self.modules())
        self.pooling = StatisticsPooling()
        self.embedding = nn.Linear(2 * channels * bands, embedding_size)
        self.input_size, self.output_size = input_size, embedding_size

    def forward(self, features: Padded) -> Tensor:
        """Embed a batch.

        Args:
            features: (B, T, input_size) with lengths, at least one frame per clip.

        Returns:
            (B, embedding_size).

        Raises:
            InputError: the width is another one, a clip has no frame, or lengths differ in training.
        """
        if features.data.dim() != 3 or features.data.shape[-1] != self.input_size:
            raise InputError(f"The network takes (B, T, {self.input_size}), got {tuple(features.data.shape)}.")
        if torch.compiler.is_exporting():
            # a graph cannot sort clips by their lengths: it takes clips of one length
            return self._embed(features.data)[0][:, 0]
        shortest, longest = int(features.lengths.min()), int(features.lengths.max())
        if shortest < 1 or longest > features.data.shape[1]:
            raise InputError(f"Lengths must lie in 1 to {features.data.shape[1]}, got {shortest} to {longest}.")
        if self.training and shortest < longest:
            raise InputError(
                f"In training all clips of a batch must have one length, got {shortest} to {longest} frames: batch "
                "norm would see each length apart. Cut crops of one length."
            )
        return map_equal_lengths(features, self._embed).hidden_states[0][:, 0]

    def _embed(self, clips: Tensor) -> list[Tensor]:
        """(b, T, F) without padding -> one (b, 1, embedding_size)."""
        x = self.bn1(self.conv1(clips.transpose(1, 2)[:, None])).relu()
        for stage in self.stages:
            x = stage(x)
        return [self.embedding(self.pooling(torch.flatten(x, 1, 2)))[:, None]]
