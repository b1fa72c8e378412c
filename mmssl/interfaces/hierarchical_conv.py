"""Convolutions over the layer axis whose number grows with the logarithm of the number of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmssl.errors import ConfigError
from mmssl.interfaces.base import Interface
from mmssl.interfaces.joining import CommonWidth, RateAligner, common_hop, floor_log, normalized
from mmssl.lengths import conv_length, valid_mask
from mmssl.types import Layers, Padded


class HierarchicalConv(Interface):
    """Hierarchical convolution: strided convolutions over the layers of each frame.

    From Shih and Harwath, "Interface Design for Self-Supervised Speech Models" (Interspeech 2024), as their published
    code (atosystem/SSL_Interface) has it: for each frame by itself the L layers are a sequence of D channels; floor(log
    of L to the base of the stride) convolutions of kernel 5, stride 3 and padding 2 run over it, each followed by a
    ReLU; all keep D channels but the last, which gives D // L' for the L' positions that are left; channels and
    positions are flattened into one vector. 13 layers go 13 -> 5 -> 2, 25 layers 25 -> 9 -> 3.

    Chosen here, where the paper's code stops with an error or leaves it open: streams with fewer layers than the
    stride get one convolution; where L' does not divide the width, the output is the largest multiple of L' below it;
    layers of unequal width or rate are joined as in `WeightedSum`; only valid frames are computed.

    It is not affine: a ReLU follows every convolution.

    Args:
        hidden_sizes: width of each layer.
        hop_lengths: hop of each layer.
        kernel_size: over layers, odd.
        stride: over layers, at least 2.
        normalize: first bring each frame of each layer to mean 0 and variance 1 over its features.
        width: channels D; None for the largest width. Only layers of another width get a projection.
        rate: common rate, "slowest" or "fastest".

    Raises:
        ConfigError: an argument is out of its range, or token layers are mixed with layers over time.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        hop_lengths: Sequence[int],
        kernel_size: int = 5,
        stride: int = 3,
        normalize: bool = False,
        width: int | None = None,
        rate: str = "slowest",
    ) -> None:
        super().__init__(hidden_sizes, hop_lengths)
        if kernel_size < 1 or kernel_size % 2 == 0 or stride < 2:
            raise ConfigError(
                f"HierarchicalConv takes an odd kernel_size and a stride of at least 2, got {kernel_size} and {stride}."
            )
        self.normalize = normalize
        self.hop = common_hop(self.hop_lengths, rate)
        self.width = CommonWidth(self.hidden_sizes, width)
        channels, left = self.width.output_size, len(self.hidden_sizes)
        depth = max(1, floor_log(left, stride))
        convolutions: list[nn.Module] = []
        for number in range(depth):
            left = conv_length(left, kernel_size, stride, kernel_size // 2)
            out = max(1, channels // left) if number == depth - 1 else channels
            convolutions += [nn.Conv1d(channels, out, kernel_size, stride, kernel_size // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*convolutions)
        self.output_size = out * left

    def combine(self, layers: Layers) -> Padded:
        """Run the convolutions over the layers of every valid frame."""
        aligned = RateAligner(layers, self.hop_lengths, self.hop)
        mask = valid_mask(aligned.lengths)
        frames = []
        for layer in range(len(layers)):
            valid = aligned[layer][mask]
            frames.append(self.width(normalized(valid) if self.normalize else valid, layer))
        combined = self.convolutions(torch.stack(frames, dim=-1)).flatten(1)
        data = combined.new_zeros(*mask.shape, self.output_size)
        data[mask] = combined
        return Padded(data, aligned.lengths)
