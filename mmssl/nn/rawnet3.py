"""RawNet3: a waveform to a speaker embedding by learned band-pass filters and Res2 blocks over time.

Nothing past a clip's end reaches a frame, a statistic or a norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import conv_length, valid_mask, zero_padding
from mmssl.nn.masked import zero_steps
from mmssl.nn.sinc import SincConv
from mmssl.nn.tdnn import AttentiveStatistics, TdnnLayer
from mmssl.types import Padded

POOLS = (5, 3)
LOG_FLOOR = 1e-6


class AnalyticSincConv(SincConv):
    """Band-pass filters in pairs, one even and one odd (a quarter period apart), whose two edges are learned.

    Source: Pariente et al. 2020, "Filterbank Design for End-to-End Speech Separation", section 2.3, equation 9. The
    even filters are SincNet's, the window is a symmetric Hamming window.

    Args:
        num_filters: even; the first half are the even filters, the second half the odd ones of the same bands.
        kernel: taps of a filter, odd.
        stride: samples between two outputs.
        sample_rate, min_low_hz, min_band_hz: see `SincConv`.

    Raises:
        ConfigError: the number of filters is odd, or a value is out of range.
    """

    def __init__(
        self,
        num_filters: int = 256,
        kernel: int = 251,
        stride: int = 10,
        sample_rate: int = 16000,
        min_low_hz: float = 50.0,
        min_band_hz: float = 50.0,
    ) -> None:
        if num_filters < 2 or num_filters % 2 or stride < 1:
            raise ConfigError(
                f"AnalyticSincConv takes an even number of filters and a stride of at least 1, got {num_filters} "
                f"and {stride}."
            )
        super().__init__(num_filters // 2, kernel, sample_rate, min_low_hz, min_band_hz)
        self.stride = stride

    def filters(self) -> Tensor:
        """The filters (num_filters, 1, kernel) float32."""
        half = self.kernel // 2
        low = self.min_low_hz + self.low_hz.float().abs()
        high = (low + self.min_band_hz + self.band_hz.float().abs()).clamp(self.min_low_hz, self.sample_rate / 2)
        window = torch.hamming_window(self.kernel, periodic=False, device=low.device)[:half]
        time = 2 * torch.pi * torch.arange(-half, 0, device=low.device) / self.sample_rate
        scale = window / (time / 2) / (2 * (high - low)[:, None])
        even = (torch.sin(high[:, None] * time) - torch.sin(low[:, None] * time)) * scale
        odd = (torch.cos(low[:, None] * time) - torch.cos(high[:, None] * time)) * scale
        middle = torch.ones_like(low)[:, None]
        even = torch.cat([even, middle, even.flip(1)], dim=1)
        odd = torch.cat([odd, 0 * middle, -odd.flip(1)], dim=1)
        return torch.cat([even, odd])[:, None]

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, 1, T) -> (B, num_filters, (T - kernel) // stride + 1), in the type of the waveforms."""
        return F.conv1d(waveforms, self.filters().to(waveforms.dtype), stride=self.stride)


class FeatureMapScaling(nn.Module):
    """Add a learned number to each channel, then scale it by a gate that sees the clip's means.

    Source: Jung et al. 2020, "Improved RawNet with Feature Map Scaling for Text-Independent Speaker Verification Using
    Raw Waveforms", section 3, with the learned addend of Jung et al. 2022 ("alpha-feature map scaling").

    Args:
        channels: width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(channels, 1))
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return (x + self.shift) * self.gate(masked_mean(x, lengths)).sigmoid()[..., None]


class RawNetBlock(nn.Module):
    """RawNet3's block: a Res2 convolution between two dense layers, a shortcut, max pooling, feature map scaling.

    Source: Jung et al. 2022, "Pushing the limits of raw waveform speaker recognition", section 2 ("AFMS-Res2MP").

    Args:
        inputs, channels: widths.
        dilation: of the Res2 convolutions of three frames.
        scale: groups of channels.
        pool: frames that become one; 1 for none.

    Raises:
        ConfigError: the scale does not divide the channels.
    """

    def __init__(self, inputs: int, channels: int, dilation: int, scale: int = 8, pool: int = 1) -> None:
        super().__init__()
        if channels % scale:
            raise ConfigError(f"The Res2 scale must divide the channels, got {channels} channels and scale {scale}.")
        self.scale, self.pool = scale, pool
        width = channels // scale
        self.expand = TdnnLayer(inputs, channels)
        self.steps = nn.ModuleList(TdnnLayer(width, width, 3, dilation) for _ in range(scale - 1))
        self.contract = TdnnLayer(channels, channels)
        self.shortcut = nn.Conv1d(inputs, channels, 1, bias=False) if inputs != channels else nn.Identity()
        self.scaling = FeatureMapScaling(channels)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) with (B,) lengths -> (B, C', T // pool) with lengths."""
        groups = self.expand(x, lengths).chunk(self.scale, dim=1)
        done: list[Tensor] = []
        for index, step in enumerate(self.steps):
            done.append(step(groups[index] + done[-1] if done else groups[index], lengths))
        out = self.contract(torch.cat([*done, groups[-1]], dim=1), lengths) + self.shortcut(x)
        if self.pool > 1:
            out, lengths = pooled(out, lengths, self.pool)
        return self.scaling(out, lengths), lengths


class RawNet3Encoder(nn.Module):
    """RawNet3: waveforms to speaker embeddings.

    Source: Jung et al. 2022, "Pushing the limits of raw waveform speaker recognition" (Interspeech), section 2: 16.28 M
    parameters at the default sizes, one frame per 150 samples before the pooling. Pre-emphasis, a norm of each clip
    over time, the logarithm of the filters' magnitudes less the clip's mean; the second block's input, pooled, is added
    to the third's, and all three are joined.

    Args:
        channels: width of the blocks; a quarter of it is the number of filters.
        embedding_size: of the result.
        joined_size: width of the dense layer that joins the blocks.
        scale: of the Res2 convolutions.
        attention_size: of the attentive pooling.
        stride: of the filters, in samples.
        sample_rate: of the waveforms, in Hz.

    Attributes:
        takes_waveforms: True: it needs no upstream.
        min_length: the shortest waveform that gives a frame, in samples.

    Raises:
        ConfigError: a size does not fit the others.
    """

    takes_waveforms = True

    def __init__(
        self,
        channels: int = 1024,
        embedding_size: int = 256,
        joined_size: int = 1536,
        scale: int = 8,
        attention_size: int = 128,
        stride: int = 10,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        if channels % 8:
            raise ConfigError(f"channels of a RawNet3Encoder must be a multiple of 8, got {channels}.")
        bands = channels // 4
        self.sample_rate = sample_rate
        # of the norm over a clip, one for the whole waveform
        self.gain, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.filters = AnalyticSincConv(bands, 251, stride, sample_rate)
        self.blocks = nn.ModuleList(
            (
                RawNetBlock(bands, channels, 2, scale, POOLS[0]),
                RawNetBlock(channels, channels, 3, scale, POOLS[1]),
                RawNetBlock(channels, channels, 4, scale),
            )
        )
        self.join = nn.Conv1d(3 * channels, joined_size, 1)
        self.pooling = AttentiveStatistics(joined_size, attention_size, tanh=False)
        self.pooled_norm = nn.BatchNorm1d(2 * joined_size)
        self.embedding = nn.Linear(2 * joined_size, embedding_size)
        self.embedding_norm = nn.BatchNorm1d(embedding_size)
        self.output_size = embedding_size
        self.min_length = self.filters.kernel + stride * (POOLS[0] * POOLS[1] - 1)

    def forward(self, waveforms: Padded) -> Tensor:
        """Waveforms (B, T) in [-1, 1] with lengths -> embeddings (B, embedding_size).

        Raises:
            InputError: the shape is another one, or a clip is too short.
        """
        if waveforms.data.dim() != 2 or waveforms.lengths.shape != waveforms.data.shape[:1]:
            raise InputError(f"RawNet3 takes waveforms (B, T), got {tuple(waveforms.data.shape)}.")
        if not torch.compiler.is_exporting() and (shortest := int(waveforms.lengths.min())) < self.min_length:
            raise InputError(
                f"RawNet3 takes waveforms of at least {self.min_length} samples, got one of {shortest}: leave the clip "
                "out or lengthen it."
            )
        with torch.autocast(waveforms.data.device.type, enabled=False):
            x, lengths = self._log_bands(zero_padding(waveforms.data, waveforms.lengths), waveforms.lengths)
        first, lengths = self.blocks[0](x, lengths)
        second, ends = self.blocks[1](first, lengths)
        carried, _ = pooled(first, lengths, POOLS[1])
        third, _ = self.blocks[2](carried + second, ends)
        joined = F.relu(self.join(torch.cat([carried, second, third], dim=1)))
        return self.embedding_norm(self.embedding(self.pooled_norm(self.pooling(joined, ends))))

    def _log_bands(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log magnitudes (B, bands, frames) of the filters less each clip's mean, and lengths in frames."""
        # the sample before the first is taken to equal the second
        x = x - 0.97 * torch.cat([x[:, 1:2], x[:, :-1]], dim=1)
        count = lengths[:, None]
        valid = valid_mask(lengths, x.shape[1])
        x = x.masked_fill(~valid, 0)
        x = (x - x.sum(1, keepdim=True) / count).masked_fill(~valid, 0)
        x = x * (x.square().sum(1, keepdim=True) / count + 1e-4).rsqrt()
        bands = (self.filters((x * self.gain + self.offset)[:, None]).abs() + LOG_FLOOR).log()
        frames = conv_length(lengths, self.filters.kernel, self.filters.stride)
        return bands - masked_mean(bands, frames)[..., None], frames


def masked_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid frames: (B, C, T) -> (B, C)."""
    return zero_steps(x, lengths).sum(-1) / lengths[:, None]


def pooled(x: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The highest of every `size` frames, whole windows only: (B, C, T) -> (B, C, T // size), and lengths."""
    return F.max_pool1d(x, size), lengths // size
