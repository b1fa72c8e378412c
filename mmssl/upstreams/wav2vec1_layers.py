"""Networks that wav2vec and vq-wav2vec share: strided convolutions, then convolutions over the past.

Source: Schneider et al. 2019, "wav2vec: Unsupervised Pre-training for Speech Recognition", section 2; fairseq's code.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.upstreams.wav2vec1_sizes import Sizes

# dropout stands between the convolution and the norm
ENCODER_RULES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight)", r"\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(\w+)", r"\1.norm.\2"),
)
CONTEXT_RULES = (
    (r"feature_aggregator\.conv_layers\.(\d+)\.1\.(\w+)", r"\1.block.conv.\2"),
    (r"feature_aggregator\.conv_layers\.(\d+)\.3\.(\w+)", r"\1.block.norm.\2"),
    (r"feature_aggregator\.residual_proj\.(\d+)\.(weight)", r"\1.project.\2"),
)
# what only pretraining needs
HEADS = "wav2vec_predictions|project_features"


class NormedConv(nn.Module):
    """Convolution without padding, norm over all channels and frames of the clip, activation."""

    def __init__(
        self, inputs: int, channels: int, kernel: int, stride: int, bias: bool, affine: bool, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, kernel, stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm = nn.GroupNorm(1, channels, affine=affine)
        self.activation = F.relu if activation == "relu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) without padding -> (B, C', T')."""
        return self.activation(group_norm(self.conv(x), self.norm))


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm over channels and frames (B, C, T), in float32, as the models were trained."""
    gain, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
    return F.group_norm(x.float(), norm.num_groups, gain, bias, norm.eps).to(x.dtype)


class Encoder(nn.ModuleList):
    """wav2vec's encoder: waveforms (B, T) without padding -> latents z (B, C, T')."""

    def __init__(self, sizes: Sizes) -> None:
        inputs = (1, *(channels for channels, _, _ in sizes.convs))
        super().__init__(
            NormedConv(i, *layer, False, sizes.affine, sizes.activation)
            for i, layer in zip(inputs, sizes.convs, strict=False)
        )
        self.log_compression = sizes.log_compression

    def forward(self, waveforms: Tensor) -> Tensor:
        """All convolutions, and the logarithm where the model has it."""
        x = waveforms[:, None]
        for block in self:
            x = block(x)
        return (x.abs() + 1).log() if self.log_compression else x


class ContextNetwork(nn.ModuleList):
    """wav2vec's context network: latents (B, C, T') -> the output (B, C', T') of each of its convolutions."""

    def __init__(self, sizes: Sizes, input_size: int) -> None:
        inputs = (input_size, *(channels for channels, _, _ in sizes.aggregator))
        super().__init__(
            ContextConv(
                NormedConv(i, *layer, sizes.aggregator_bias, sizes.affine, sizes.activation),
                sizes.zero_pad,
                sizes.skip and i != layer[0],
            )
            for i, layer in zip(inputs, sizes.aggregator, strict=False)
        )
        self.residual_scale = sizes.residual_scale**0.5 if sizes.skip else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """The contexts, from the first convolution's to the last one's."""
        contexts = []
        for conv in self:
            x = conv(x, self.residual_scale)
            contexts.append(x)
        return contexts


class ContextConv(nn.Module):
    """A convolution over the present and the past, added to its input where there are skip connections."""

    def __init__(self, block: NormedConv, zero_pad: bool, project: bool) -> None:
        super().__init__()
        self.block = block
        self.reach = block.conv.kernel_size[0] - 1
        self.mode = "constant" if zero_pad else "replicate"
        self.project = nn.Conv1d(block.conv.in_channels, block.conv.out_channels, 1, bias=False) if project else None

    def forward(self, x: Tensor, scale: float | None) -> Tensor:
        """(B, C, T) -> (B, C', T); `scale` of the sum, None for no skip connection."""
        out = self.block(F.pad(x, (self.reach, 0), mode=self.mode))
        if scale is None:
            return out
        return (out + (x if self.project is None else self.project(x))) * scale
