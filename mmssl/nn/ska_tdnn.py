"""SKA-TDNN: a time-delay network that chooses between kernel sizes by attention, behind a two-dimensional front.

Nothing past a clip's end reaches a frame, a statistic or a norm. Source of all: Mun et al. 2022, "Frequency and
Multi-Scale Selective Kernel Attention for Speaker Verification" (SLT), sections 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import conv_length, valid_mask
from mmssl.nn.masked import zero_steps
from mmssl.nn.rawnet3 import masked_mean
from mmssl.nn.tdnn import AttentiveStatistics, TdnnLayer
from mmssl.types import Padded

KERNELS = (5, 7)
LEAST_WIDTH = 16


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over (B, C, F, T) whose statistics in training cover the valid steps only."""

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, F, T) with (B,) valid steps (None for all) -> the same; in training zero past each length."""
        if not self.training or lengths is None or int(lengths.min()) >= input.shape[-1]:
            return super().forward(input)
        valid = valid_mask(lengths, input.shape[-1])
        # (valid steps, C, F, 1) has the same values per channel
        normed = super().forward(input.permute(0, 3, 1, 2)[valid][..., None])
        out = normed.new_zeros(*valid.shape, *input.shape[1:3])
        out[valid] = normed[..., 0]
        return out.permute(0, 2, 3, 1)


class KernelChoice(nn.Module):
    """Weights of several feature maps, per channel, from a summary of their sum (Li et al. 2019, "Selective Kernel").

    Args:
        size: of the summary, and of the weights.
        reduction: the hidden width is `size` / `reduction`, at least 16.
        choices: feature maps.
    """

    def __init__(self, size: int, reduction: int, choices: int = len(KERNELS)) -> None:
        super().__init__()
        width = max(LEAST_WIDTH, size // reduction)
        self.squeeze = nn.Linear(size, width)
        self.scores = nn.ModuleList(nn.Linear(width, size) for _ in range(choices))

    def forward(self, summary: Tensor) -> Tensor:
        """(B, size) -> (choices, B, size), summing to 1 over the choices."""
        hidden = self.squeeze(summary).relu()
        return torch.stack([score(hidden) for score in self.scores]).softmax(dim=0)


class ConvNorm2d(nn.Module):
    """A two-dimensional convolution that keeps the size at stride 1, ReLU, batch norm.

    Args:
        inputs, channels: widths.
        kernel: in both directions, odd.
        stride: in frequency and time.
    """

    def __init__(self, inputs: int, channels: int, kernel: int = 3, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, kernel, stride, padding=kernel // 2)
        self.norm = MaskedBatchNorm2d(channels)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, F, T) with (B,) lengths -> (B, C', F', T') with lengths."""
        x = self.conv(clear(x, lengths))
        lengths = conv_length(lengths, self.conv.kernel_size[1], self.conv.stride[1], int(self.conv.padding[1]))
        return self.norm(x.relu(), lengths), lengths


class SelectiveConv2d(nn.Module):
    """Convolutions of several kernels, weighted per frequency band ("fwSKA") or per channel ("cwSKA").

    Args:
        channels: width.
        size: of the weights: the number of bands for "frequency", of channels for "channel".
        over: "frequency" or "channel".
        reduction: see `KernelChoice`.
    """

    def __init__(self, channels: int, size: int, over: str, reduction: int = 8) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm2d(channels, channels, kernel) for kernel in KERNELS)
        self.choice = KernelChoice(size, reduction)
        self.over = over

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, F, T) -> (B, C, F, T)."""
        maps = torch.stack([conv(x, lengths)[0] for conv in self.convs])
        over_time = clear(maps.sum(0), lengths).sum(-1) / lengths[:, None, None]
        if self.over == "frequency":
            return (maps * self.choice(over_time.mean(1))[:, :, None, :, None]).sum(0)
        return (maps * self.choice(over_time.mean(2))[:, :, :, None, None]).sum(0)


class FrontBlock(nn.Module):
    """The front's residual block, "fcwSKA": a convolution, then selection per band and per channel (figure 2).

    Args:
        channels: width.
        bands: of the input.
        reduction: see `KernelChoice`.
    """

    def __init__(self, channels: int, bands: int, reduction: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = MaskedBatchNorm2d(channels)
        self.by_band = SelectiveConv2d(channels, bands, "frequency", reduction)
        self.by_channel = SelectiveConv2d(channels, channels, "channel", reduction)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, F, T) -> (B, C, F, T)."""
        out = self.norm(self.conv(clear(x, lengths)).relu(), lengths)
        return (self.by_channel(self.by_band(out, lengths), lengths) + x).relu()


class NormedSqueezeExcitation(nn.Module):
    """Squeeze-excitation with a batch norm between its two linear maps.

    Args:
        channels: width.
        bottleneck: width between the maps.
    """

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        hidden = self.norm(self.squeeze(masked_mean(x, lengths)).relu())
        return x * self.excite(hidden).sigmoid()[..., None]


class SelectiveBlock(nn.Module):
    """ECAPA-TDNN's block whose Res2 steps choose between kernels, "msSKA" (section 3.3).

    All steps share the weights that choose.

    Args:
        channels: width.
        dilation: of the steps.
        scale: groups of channels.
        reduction: see `KernelChoice`.

    Raises:
        ConfigError: the scale does not divide the channels.
    """

    def __init__(self, channels: int, dilation: int, scale: int = 8, reduction: int = 4) -> None:
        super().__init__()
        if channels % scale:
            raise ConfigError(f"The Res2 scale must divide the channels, got {channels} channels and scale {scale}.")
        self.scale = scale
        width = channels // scale
        self.expand = TdnnLayer(channels, channels)
        self.steps = nn.ModuleList(
            nn.ModuleList(TdnnLayer(width, width, kernel, dilation) for kernel in KERNELS) for _ in range(scale - 1)
        )
        self.choice = KernelChoice(width, reduction)
        self.contract = TdnnLayer(channels, channels)
        self.gate = NormedSqueezeExcitation(channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        groups = self.expand(x, lengths).chunk(self.scale, dim=1)
        done: list[Tensor] = []
        for index, convs in enumerate(self.steps):
            given = groups[index] + done[-1] if done else groups[index]
            assert isinstance(convs, nn.ModuleList)
            maps = torch.stack([conv(given, lengths) for conv in convs])
            weights = self.choice(masked_mean(maps.sum(0), lengths))
            done.append((maps * weights[..., None]).sum(0))
        joined = torch.cat([*done, groups[-1]], dim=1)
        return self.gate(self.contract(joined, lengths), lengths) + x


class SkaTdnnEncoder(nn.Module):
    """SKA-TDNN: frames of a filterbank to a speaker embedding.

    A two-dimensional front halves the bands twice and the frames once; ECAPA-TDNN's three blocks follow, each with the
    sum of all before it, a dense layer and attentive statistics.

    Args:
        input_size: features of a frame; a multiple of 4.
        channels: width of the blocks.
        front_channels: width of the front.
        joined_size: width of the dense layer that joins the blocks.
        embedding_size: of the result.
        scale: of the Res2 steps.
        attention_size: of the attentive pooling.

    Raises:
        ConfigError: a size does not fit.
    """

    def __init__(
        self,
        input_size: int = 80,
        channels: int = 1024,
        front_channels: int = 128,
        joined_size: int = 1536,
        embedding_size: int = 192,
        scale: int = 8,
        attention_size: int = 128,
    ) -> None:
        super().__init__()
        if input_size % 4 or min(input_size, front_channels, embedding_size) < 1:
            raise ConfigError(
                f"input_size of a SkaTdnnEncoder must be a multiple of 4 and sizes at least 1, got {input_size=}, "
                f"{front_channels=}, {embedding_size=}."
            )
        self.front_in = ConvNorm2d(1, front_channels, 3, (2, 1))
        self.front_blocks = nn.ModuleList(FrontBlock(front_channels, input_size // 2) for _ in range(2))
        self.front_out = ConvNorm2d(front_channels, front_channels, 3, (2, 2))
        self.stem = TdnnLayer(front_channels * input_size // 4, channels, 5)
        self.blocks = nn.ModuleList(SelectiveBlock(channels, dilation, scale) for dilation in (2, 3, 4))
        self.join = nn.Conv1d(3 * channels, joined_size, 1)
        self.pooling = AttentiveStatistics(joined_size, attention_size, tanh=False)
        self.pooled_norm = nn.BatchNorm1d(2 * joined_size)
        self.embedding = nn.Linear(2 * joined_size, embedding_size)
        self.embedding_norm = nn.BatchNorm1d(embedding_size)
        self.input_size, self.output_size = input_size, embedding_size

    def forward(self, features: Padded) -> Tensor:
        """Frames (B, T, input_size) with lengths -> embeddings (B, embedding_size).

        Raises:
            InputError: the width is another one, or a clip has no frame.
        """
        if features.data.dim() != 3 or features.data.shape[-1] != self.input_size:
            raise InputError(f"The network takes (B, T, {self.input_size}), got {tuple(features.data.shape)}.")
        if not torch.compiler.is_exporting() and int(features.lengths.min()) < 1:
            raise InputError("A clip without a frame has no embedding: leave it out.")
        x, lengths = self.front_in(features.data.transpose(1, 2)[:, None], features.lengths)
        for block in self.front_blocks:
            x = block(x, lengths)
        x, lengths = self.front_out(x, lengths)
        total = self.stem(x.flatten(1, 2), lengths)
        outputs: list[Tensor] = []
        for block in self.blocks:
            outputs.append(block(total, lengths))
            total = total + outputs[-1]
        joined = F.relu(self.join(torch.cat(outputs, dim=1)))
        return self.embedding_norm(self.embedding(self.pooled_norm(self.pooling(joined, lengths))))


def clear(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, C, F, T) with every step past each length set to zero."""
    return zero_steps(x.flatten(1, 2), lengths).unflatten(1, x.shape[1:3])
