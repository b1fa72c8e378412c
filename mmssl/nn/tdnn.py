"""Time-delay networks for speakers, on padded batches: nothing past a clip's end reaches a frame or a statistic.

Convolutions keep the number of frames and read zeros beyond a clip's ends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.lengths import valid_mask
from mmssl.nn.masked import zero_steps
from mmssl.types import Padded


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over (B, C, T) whose statistics in training cover the valid steps only."""

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) with (B,) valid steps (None for all) -> (B, C, T); in training zero past each length."""
        if not self.training or lengths is None or int(lengths.min()) >= input.shape[-1]:
            return super().forward(input)
        valid = valid_mask(lengths, input.shape[-1])
        normed = super().forward(input.transpose(1, 2)[valid])
        out = normed.new_zeros(len(input), input.shape[-1], input.shape[1])
        out[valid] = normed
        return out.transpose(1, 2)


class TdnnLayer(nn.Module):
    """A dilated convolution over time, ReLU, batch norm (x-vectors; ECAPA-TDNN's Conv1D + ReLU + BN).

    Args:
        inputs, channels: widths.
        kernel: frames that are seen, odd.
        dilation: distance between them.
    """

    def __init__(self, inputs: int, channels: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"The kernel of a TDNN layer must be odd, got {kernel}.")
        self.conv = nn.Conv1d(inputs, channels, kernel, dilation=dilation, padding=kernel // 2 * dilation)
        self.norm = MaskedBatchNorm(channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C', T)."""
        if self.conv.kernel_size[0] > 1:
            x = zero_steps(x, lengths)
        return self.norm(F.relu(self.conv(x)), lengths)


class SqueezeExcitation(nn.Module):
    """Scale channels by a gate that sees the mean of each channel over the clip (ECAPA-TDNN, section 3.2).

    Args:
        channels: width.
        bottleneck: width between the two linear maps.
    """

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        mean, _ = _moments(x, lengths, correction=0)
        return x * self.excite(self.squeeze(mean).relu()).sigmoid()[..., None]


class SERes2Block(nn.Module):
    """ECAPA-TDNN's block: a Res2 convolution between two dense layers, squeeze-excitation, a residual connection.

    Source: Desplanques et al. 2020, "ECAPA-TDNN", section 3.2 and figure 1.

    Args:
        channels: width.
        kernel, dilation: of the Res2 convolutions.
        scale: groups of channels; each but the last is convolved after the result of the one before is added to it.
        bottleneck: of the squeeze-excitation.
    """

    def __init__(
        self, channels: int, kernel: int = 3, dilation: int = 2, scale: int = 8, bottleneck: int = 128
    ) -> None:
        super().__init__()
        if channels % scale:
            raise ConfigError(f"The Res2 scale must divide the channels, got {channels} channels and scale {scale}.")
        self.scale = scale
        self.expand = TdnnLayer(channels, channels)
        width = channels // scale
        self.steps = nn.ModuleList(TdnnLayer(width, width, kernel, dilation) for _ in range(scale - 1))
        self.contract = TdnnLayer(channels, channels)
        self.gate = SqueezeExcitation(channels, bottleneck)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        groups = self.expand(x, lengths).chunk(self.scale, dim=1)
        done: list[Tensor] = []
        for index, step in enumerate(self.steps):
            done.append(step(groups[index] + done[-1] if done else groups[index], lengths))
        joined = torch.cat([*done, groups[-1]], dim=1)
        return self.gate(self.contract(joined, lengths), lengths) + x


class StatisticsPooling(nn.Module):
    """Mean and standard deviation of each channel over the valid frames (Snyder et al. 2018, section 3).

    Args:
        eps: floor of the variance.
    """

    def __init__(self, eps: float = 1e-10) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, 2 C)."""
        mean, variance = _moments(x, lengths, correction=0)
        return torch.cat([mean, variance.clamp(min=self.eps).sqrt()], dim=1)


class AttentiveStatistics(nn.Module):
    """Mean and deviation over frames, weighted per channel by an attention that also sees the clip's own statistics.

    Source: Desplanques et al. 2020, "ECAPA-TDNN", section 3.1, equations 1-4.

    Args:
        channels: width.
        bottleneck: width of the attention.
        eps: floor of the variances.
        tanh: before the scores, after ReLU and batch norm; RawNet3's and SKA-TDNN's implementations have none.
    """

    def __init__(self, channels: int, bottleneck: int = 128, eps: float = 1e-4, tanh: bool = True) -> None:
        super().__init__()
        self.eps, self.tanh = eps, tanh
        self.hidden = TdnnLayer(3 * channels, bottleneck)
        self.scores = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, 2 C)."""
        mean, variance = _moments(x, lengths, correction=1)
        context = torch.cat([mean, variance.clamp(min=self.eps).sqrt()], dim=1)
        x = zero_steps(x, lengths)
        hidden = self.hidden(torch.cat([x, context[..., None].expand(-1, -1, x.shape[-1])], dim=1), lengths)
        scores = self.scores(hidden.tanh() if self.tanh else hidden)
        if lengths is not None:
            scores = scores.masked_fill(~valid_mask(lengths, x.shape[-1])[:, None], float("-inf"))
        weights = scores.softmax(dim=-1)
        mean = (weights * x).sum(dim=-1)
        variance = (weights * x.pow(2)).sum(dim=-1) - mean.pow(2)
        return torch.cat([mean, variance.clamp(min=self.eps).sqrt()], dim=1)


class EcapaEncoder(nn.Module):
    """ECAPA-TDNN: frames of a filterbank to a speaker embedding.

    Source: Desplanques et al. 2020, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and Aggregation in TDNN
    Based Speaker Verification": each block takes the sum of the outputs of all before it, the first convolution
    included, and the outputs of the three blocks are joined.

    Args:
        input_size: features of a frame.
        channels: width of the blocks: 512 (6.2 M parameters) or 1024 (14.7 M) in the paper.
        joined_size: width of the dense layer that joins the blocks.
        embedding_size: of the result.
        scale: of the Res2 convolutions.
        bottleneck: of the squeeze-excitation.
        attention_size: of the attentive pooling.
    """

    def __init__(
        self,
        input_size: int = 80,
        channels: int = 1024,
        joined_size: int = 1536,
        embedding_size: int = 192,
        scale: int = 8,
        bottleneck: int = 128,
        attention_size: int = 128,
    ) -> None:
        super().__init__()
        self.stem = TdnnLayer(input_size, channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(channels, 3, dilation, scale, bottleneck) for dilation in (2, 3, 4))
        self.join = nn.Conv1d(3 * channels, joined_size, 1)
        self.pooling = AttentiveStatistics(joined_size, attention_size)
        self.pooled_norm = nn.BatchNorm1d(2 * joined_size)
        self.embedding = nn.Linear(2 * joined_size, embedding_size)
        self.embedding_norm = nn.BatchNorm1d(embedding_size)
        self.layer_sizes = (*(channels,) * 4, joined_size)
        self.output_size = embedding_size

    def frame_layers(self, features: Padded) -> list[Tensor]:
        """What every layer before the pooling gives.

        Args:
            features: (B, T, input_size) with lengths.

        Returns:
            (B, C, T) of the first convolution, the three blocks and the dense layer that joins them.
        """
        lengths = features.lengths
        total = self.stem(features.data.transpose(1, 2), lengths)
        outputs = [total]
        for block in self.blocks:
            outputs.append(block(total, lengths))
            total = total + outputs[-1]
        return [*outputs, F.relu(self.join(torch.cat(outputs[1:], dim=1)))]

    def pool(self, joined: Tensor, lengths: Tensor) -> Tensor:
        """Embedding (B, embedding_size) of the last layer's frames (B, C, T)."""
        return self.embedding_norm(self.embedding(self.pooled_norm(self.pooling(joined, lengths))))

    def forward(self, features: Padded) -> Tensor:
        """Frames (B, T, input_size) with lengths -> embeddings (B, embedding_size)."""
        return self.pool(self.frame_layers(features)[-1], features.lengths)


class XVectorEncoder(nn.Module):
    """x-vector network: five TDNN layers, mean and deviation over the clip, a linear map.

    Source: Snyder et al. 2018, "X-vectors: Robust DNN Embeddings for Speaker Recognition", table 1 up to segment 6,
    4.2 M parameters. The paper's convolutions shorten a clip by 7 frames at each end; these read zeros there.

    Args:
        input_size: features of a frame.
        channels: width of the first four layers.
        wide_size: width of the fifth.
        embedding_size: of the result, taken before its nonlinearity.
    """

    def __init__(
        self, input_size: int = 24, channels: int = 512, wide_size: int = 1500, embedding_size: int = 512
    ) -> None:
        super().__init__()
        self.layer_sizes = (*(channels,) * 4, wide_size)
        inputs = (input_size, *self.layer_sizes[:-1])
        contexts = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
        self.layers = nn.ModuleList(
            TdnnLayer(i, o, *context) for i, o, context in zip(inputs, self.layer_sizes, contexts, strict=True)
        )
        self.pooling = StatisticsPooling()
        self.embedding = nn.Linear(2 * wide_size, embedding_size)
        self.output_size = embedding_size

    def frame_layers(self, features: Padded) -> list[Tensor]:
        """Frames (B, T, input_size) with lengths -> (B, C, T) of each of the five layers."""
        x, outputs = features.data.transpose(1, 2), []
        for layer in self.layers:
            x = layer(x, features.lengths)
            outputs.append(x)
        return outputs

    def pool(self, last: Tensor, lengths: Tensor) -> Tensor:
        """Embedding (B, embedding_size) of the fifth layer's frames (B, C, T)."""
        return self.embedding(self.pooling(last, lengths))

    def forward(self, features: Padded) -> Tensor:
        """Frames (B, T, input_size) with lengths -> embeddings (B, embedding_size)."""
        return self.pool(self.frame_layers(features)[-1], features.lengths)


def _moments(x: Tensor, lengths: Tensor | None, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, C) of (B, C, T) over the valid frames, with n - `correction` below the variance."""
    if lengths is None:
        lengths = torch.full((len(x),), x.shape[-1], device=x.device)
    count = lengths[:, None].to(x.dtype)
    valid = valid_mask(lengths, x.shape[-1])[:, None]
    mean = x.masked_fill(~valid, 0).sum(dim=-1) / count
    centred = (x - mean[..., None]).masked_fill(~valid, 0)
    return mean, centred.pow(2).sum(dim=-1) / (count - correction).clamp(min=1)
