"""Layers of unequal rate and width, brought to one.

Rate. Frame i of a layer with hop h stands for the span of time [i h, (i + 1) h). On the common hop H, frame j of a
layer is the mean of its frames over [j H, (j + 1) H), each weighted by its overlap with that span. A faster layer is
averaged that way, a slower one repeated; hops need not divide each other. Where a clip's layer ends inside the span,
the frames that exist are averaged; where it ends before it, its last frame is repeated. The clip gets as many frames as
the shortest layer of the common hop has, and none if any of its layers has none. Frames past a clip's length are never
read. Layers of one hop, tokens without a time axis (hop 0) among them, must agree in length and are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.types import Layers, Padded

RATES = ("slowest", "fastest")


def common_hop(hop_lengths: Sequence[int], rate: str = "slowest") -> int:
    """Hop length that layers are brought to.

    Args:
        hop_lengths: of the layers; 0 for tokens without a time axis.
        rate: "slowest" (the longest hop) or "fastest" (the shortest).

    Raises:
        ConfigError: `rate` is neither, or only some layers have a time axis.
    """
    if rate not in RATES:
        raise ConfigError(f"rate is {' or '.join(map(repr, RATES))}, got {rate!r}.")
    if 0 in hop_lengths and any(hop_lengths):
        raise ConfigError(
            f"Layers with a time axis cannot be joined with token sequences (hop length 0); got hop lengths "
            f"{list(hop_lengths)}. Choose layers of one kind."
        )
    return max(hop_lengths) if rate == "slowest" else min(hop_lengths)


class RateAligner:
    """Brings layers to a common rate, one at a time, so that no more than one aligned copy is alive.

    Args:
        layers: of one batch.
        hop_lengths: of the layers.
        hop: the common hop, one of `hop_lengths`.

    Attributes:
        lengths: (B,) frames of each clip at the common rate.

    Raises:
        InputError: all layers have the same hop, yet their lengths differ.
    """

    def __init__(self, layers: Layers, hop_lengths: Sequence[int], hop: int) -> None:
        self._layers = layers
        self._hops = tuple(hop_lengths)
        self._hop = hop
        lengths = torch.stack(layers.lengths)
        one_hop = len(set(hop_lengths)) == 1
        # a graph that is being recorded holds whole clips of one length, and cannot look at the numbers
        recorded = one_hop and torch.compiler.is_exporting()
        self._equal = recorded or (one_hop and bool((lengths == lengths[0]).all()))
        if one_hop and not self._equal:
            clip = int((lengths != lengths[0]).any(0).nonzero()[0])
            raise InputError(
                f"All layers have the hop length {hop}, so a clip must have as many frames in each as in the others; "
                f"clip {clip} of the batch has {lengths[:, clip].tolist()}. The upstream declares a wrong hop length, "
                "or the layers come from two sources."
            )
        self.lengths = lengths[0] if self._equal else self._common_lengths(lengths)
        self._size = layers[0].data.shape[1] if recorded else int(self.lengths.max())

    def __getitem__(self, layer: int) -> Tensor:
        """(B, T, D_k) frames of a layer at the common rate; arbitrary past `lengths`."""
        padded = self._layers[layer]
        if self._equal or self._hops[layer] == self._hop:
            return padded.data[:, : self._size]
        return resample_frames(padded, self._hops[layer], self._hop, self._size)

    def _common_lengths(self, lengths: Tensor) -> Tensor:
        at_hop = lengths[[k for k, h in enumerate(self._hops) if h == self._hop]]
        return at_hop.amin(0) * (lengths.amin(0) > 0)


def resample_frames(padded: Padded, hop: int, new_hop: int, size: int) -> Tensor:
    """Mean of the frames of hop `hop` over each of `size` spans of `new_hop`, weighted by overlap, (B, size, D)."""
    data, lengths = padded.data, padded.lengths
    starts = torch.arange(size, device=data.device) * new_hop
    first = starts // hop
    rows = torch.arange(len(data), device=data.device)[:, None]
    last = (lengths - 1).clamp(min=0)[:, None]
    total = data.new_zeros(len(data), size, data.shape[-1])
    covered = data.new_zeros(len(data), size)
    for step in range(-(-new_hop // hop) + 1):
        frame = first + step
        overlap = torch.minimum((frame + 1) * hop, starts + new_hop) - torch.maximum(frame * hop, starts)
        weight = overlap.clamp(min=0).to(data.dtype) * (frame < lengths[:, None])
        if bool((overlap <= 0).all()):
            continue
        total = total.addcmul(data[rows, torch.minimum(frame, last)], weight[..., None])
        covered = covered + weight
    ended = covered == 0
    mean = total / covered.masked_fill(ended, 1)[..., None]
    return torch.where(ended[..., None], data[rows, last], mean)


class CommonWidth(nn.Module):
    """Learned linear projections of the layers whose width is not the common one; the others pass unchanged.

    Args:
        hidden_sizes: width of each layer.
        output_size: the common width; None for the largest of them.

    Raises:
        ConfigError: `output_size` is below 1.
    """

    def __init__(self, hidden_sizes: Sequence[int], output_size: int | None = None) -> None:
        super().__init__()
        self.output_size = max(hidden_sizes) if output_size is None else output_size
        if self.output_size < 1:
            raise ConfigError(f"output_size is the width of the joined sequence, at least 1, got {output_size}.")
        self.projections = nn.ModuleDict(
            {
                str(k): nn.Linear(size, self.output_size)
                for k, size in enumerate(hidden_sizes)
                if size != self.output_size
            }
        )

    def forward(self, data: Tensor, layer: int) -> Tensor:
        """Project (B, T, D_k) frames of a layer to (B, T, output_size)."""
        name = str(layer)
        return self.projections[name](data) if name in self.projections else data


def floor_log(value: int, base: int) -> int:
    """Largest n with base**n <= value, for value >= 1: the floor of the logarithm, free of rounding."""
    return max(n for n in range(math.floor(math.log(value, base)) + 2) if base**n <= value)


def normalized(data: Tensor) -> Tensor:
    """Each frame (.., D) to mean 0 and variance 1 over its features: layer norm without gain and bias."""
    return F.layer_norm(data, data.shape[-1:])
