"""Positions of a transformer by convolution, and the relative position buckets of WavLM."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.nn.packed import Packed, gelu_of_own, runs_on_fast_path


class ConvPositions(nn.Module):
    """One wide grouped convolution with weight norm over its taps, then GELU (wav2vec 2.0, section 2).

    Args:
        hidden_size: width of the frames.
        kernel: taps of the convolution; an even kernel sees one frame more of the past than of the future.
        groups: groups of the convolution.
    """

    def __init__(self, hidden_size: int, kernel: int = 128, groups: int = 16) -> None:
        super().__init__()
        self.groups = groups
        self.weight_v = nn.Parameter(torch.empty(hidden_size, hidden_size // groups, kernel))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 / (kernel * hidden_size)))
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, frames: Packed) -> Tensor:
        """Positions (N, D) to add to packed frames (N, D)."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        return gelu_of_own(_same_conv(frames, weight, self.bias, self.groups))


class ConvStackPositions(nn.Module):
    """Several narrower grouped convolutions, each with a layer norm without parameters and GELU (data2vec).

    Source: Baevski et al. 2022, "data2vec", section 4.2; its code.

    Args:
        hidden_size: width of the frames.
        kernel: taps of each convolution.
        groups: groups of each convolution.
        depth: number of convolutions.
    """

    def __init__(self, hidden_size: int, kernel: int = 19, groups: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(hidden_size, hidden_size, kernel, groups=groups) for _ in range(depth))
        for conv in self._convolutions():
            nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * hidden_size)))
            nn.init.constant_(cast("Tensor", conv.bias), 0.0)

    def forward(self, frames: Packed) -> Tensor:
        """Positions (N, D) to add to packed frames (N, D)."""
        for conv in self._convolutions():
            x = _same_conv(frames, conv.weight, conv.bias, conv.groups)
            frames = frames.replace(gelu_of_own(F.layer_norm(x, x.shape[-1:])))
        return frames.data

    def _convolutions(self) -> list[nn.Conv1d]:
        return cast("list[nn.Conv1d]", list(self.convs))


def _same_conv(frames: Packed, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Convolve each clip with zeros beyond its ends: (N, D) -> (N, D); an even kernel's last output is dropped."""
    padding = weight.shape[-1] // 2
    if runs_on_fast_path(frames.data, weight):
        # two-dimensional with channels last: no copy of the frames, and a kernel that is twice as fast
        flat = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        clips = [
            F.conv2d(x.t()[None, :, None], flat, bias, padding=(0, padding), groups=groups)[0, :, 0, : len(x)].t()
            for x in frames.split()
        ]
    else:
        clips = [
            F.conv1d(x.t()[None], weight, bias, padding=padding, groups=groups)[0, :, : len(x)].t()
            for x in frames.split()
        ]
    return Packed.of(clips).data


def relative_position_buckets(offsets: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each signed distance: exact up to a quarter of the buckets, then logarithmic up to `max_distance`.

    Source: T5 (Raffel et al. 2020), used by WavLM (Chen et al. 2022, section 3.1) with 320 buckets to 800 frames.

    Args:
        offsets: int64, key position minus query position.
        num_buckets: in all; half of them for keys after the query.
        max_distance: from which on all distances share a bucket.

    Returns:
        int64 in [0, num_buckets), of the shape of `offsets`.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offsets.abs()
    # in float32 and in this order, since the edges of the buckets are where published models were trained with them
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far).to(torch.int64).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + (offsets > 0) * half
