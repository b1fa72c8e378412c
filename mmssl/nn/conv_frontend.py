"""The convolutional waveform encoder of wav2vec 2.0 and its descendants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import conv_stack_length, hop_length, receptive_field
from mmssl.nn.conv_blocked import blocked_front_end
from mmssl.nn.packed import Packed, runs_on_fast_path


class ConvFrontEnd(nn.Module):
    """Waveform to frames by unpadded convolutions with GELU (wav2vec 2.0, Baevski et al. 2020, section 2).

    Each clip is computed on its own length, so that the group norm over time, which makes the features of padded
    batches depend on their padding elsewhere, sees all frames of the clip and nothing else.

    Args:
        channels: output channels of each convolution.
        kernels: kernel size of each.
        strides: stride of each.
        bias: whether the convolutions have one.
        norm: "group": after the first convolution, over time, a group per channel (base models);
            "layer": after every convolution, over channels (large models, data2vec).
    """

    def __init__(
        self,
        channels: Sequence[int] = (512,) * 7,
        kernels: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        bias: bool = False,
        norm: Literal["group", "layer"] = "group",
    ) -> None:
        super().__init__()
        if not len(channels) == len(kernels) == len(strides) >= 1:
            raise ConfigError(
                f"The conv front end needs as many channels as kernels and strides, got {len(channels)} channels, "
                f"{len(kernels)} kernels and {len(strides)} strides."
            )
        if norm not in ("group", "layer"):
            raise ConfigError(f"The conv front end's norm must be 'group' or 'layer', got {norm!r}.")
        self.layers = tuple(zip(kernels, strides, strict=True))
        inputs = (1, *channels[:-1])
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, k, s, bias=bias) for i, o, k, s in zip(inputs, channels, kernels, strides, strict=True)
        )
        self.norms = nn.ModuleList(
            [nn.GroupNorm(channels[0], channels[0])] if norm == "group" else [nn.LayerNorm(c) for c in channels]
        )
        self.output_size = channels[-1]
        self._init_weights()

    @property
    def min_length(self) -> int:
        """The shortest clip that gives a frame, in samples."""
        return receptive_field(self.layers)

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return hop_length(self.layers)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples."""
        return conv_stack_length(lengths, self.layers)

    def forward(self, waveforms: Sequence[Tensor]) -> Packed:
        """Frames of clips.

        Args:
            waveforms: clips (T_b,), each at least `min_length` samples.

        Returns:
            Packed (N, C), frames of each clip exactly as `output_lengths` says.
        """
        fast = not self.training and runs_on_fast_path(*waveforms, *self.parameters())
        run = self._blocked if fast else self._plain
        return Packed.of([run(waveform) for waveform in waveforms])

    def _blocked(self, waveform: Tensor) -> Tensor:
        return blocked_front_end(waveform, self._convolutions(), list(self.norms))

    def _plain(self, waveform: Tensor) -> Tensor:
        x = waveform[None, None]
        for index, conv in enumerate(self._convolutions()):
            x = conv(x)
            norm = self.norms[0]
            if not isinstance(norm, nn.GroupNorm):
                x = self.norms[index](x.transpose(1, 2)).transpose(1, 2)
            elif index == 0:
                # not the module itself, which refuses a clip of a single frame
                x = torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
            x = F.gelu(x)
        return x[0].t()

    def _convolutions(self) -> list[nn.Conv1d]:
        return cast("list[nn.Conv1d]", list(self.convs))

    @torch.no_grad()
    def _init_weights(self) -> None:
        for conv in self._convolutions():
            nn.init.kaiming_normal_(conv.weight)
            if conv.bias is not None:
                bound = math.sqrt(1 / (conv.in_channels * conv.kernel_size[0]))
                nn.init.uniform_(conv.bias, -bound, bound)
