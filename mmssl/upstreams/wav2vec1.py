"""wav2vec (the first): strided convolutions, then convolutions over the past.

Source: Schneider et al. 2019, "wav2vec: Unsupervised Pre-training for Speech Recognition", section 2; fairseq's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import CheckpointError, ConfigError, did_you_mean
from mmssl.lengths import conv_stack_length, hop_length, receptive_field
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.clipwise import ClipwiseUpstream
from mmssl.upstreams.renaming import load_renamed, options, weights
from mmssl.upstreams.speech_config import parse_conv_layers

# dropout stands between the convolution and the norm
_RULES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight)", r"front.\1.conv.\2"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(\w+)", r"front.\1.norm.\2"),
    (r"feature_aggregator\.conv_layers\.(\d+)\.1\.(\w+)", r"aggregator.\1.block.conv.\2"),
    (r"feature_aggregator\.conv_layers\.(\d+)\.3\.(\w+)", r"aggregator.\1.block.norm.\2"),
    (r"feature_aggregator\.residual_proj\.(\d+)\.(weight)", r"aggregator.\1.project.\2"),
)


@dataclass(frozen=True)
class _Sizes:
    convs: tuple[tuple[int, int, int], ...]
    aggregator: tuple[tuple[int, int, int], ...]
    skip: bool
    residual_scale: float = 0.5
    log_compression: bool = False
    zero_pad: bool = False
    aggregator_bias: bool = True
    affine: bool = True
    activation: str = "relu"


_STEM = ((512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2))
PRESETS = {
    "wav2vec_base": _Sizes(_STEM, ((512, 3, 1),) * 9, skip=False),
    "wav2vec_large": _Sizes(
        _STEM + ((512, 1, 1),) * 2,
        tuple((512, kernel, 1) for kernel in range(2, 14)),
        skip=True,
        log_compression=True,
    ),
}
"""Sizes by name: nine context convolutions of 3 frames; twelve of 2 to 13 frames with skip connections."""


class Wav2Vec1(ClipwiseUpstream):
    """wav2vec's encoder and context network; layers: the latents z, then each context convolution's output.

    The convolutions over frames look at the past only, but each has a norm over all channels and frames of the clip, so
    that the features are not causal. The norm covers the clip alone, never padding.

    Args:
        preset: "wav2vec_large" or "wav2vec_base".
        checkpoint: a file of fairseq (`wav2vec_large.pt`) or S3PRL's conversion of one; its sizes then hold where it
            states them, the preset's elsewhere. None draws weights.
        channels: of every convolution, instead of the preset's 512; not with a checkpoint.
        aggregator_kernels: frames that each context convolution sees, instead of the preset's; not with a checkpoint.

    Raises:
        ConfigError: an unknown preset, or sizes given beside a checkpoint.
        CheckpointError: the checkpoint cannot be read, does not fit, or is of a variant (vq-wav2vec, recurrent
            context).
    """

    def __init__(
        self,
        preset: str = "wav2vec_large",
        checkpoint: str | None = None,
        *,
        channels: int | None = None,
        aggregator_kernels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ConfigError(
                f"There is no preset {preset!r}.{did_you_mean(preset, PRESETS)} Known: {', '.join(PRESETS)}."
            )
        sizes, state = PRESETS[preset], {}
        if checkpoint is None:
            sizes = _resized(sizes, channels, aggregator_kernels)
        elif channels is not None or aggregator_kernels is not None:
            raise ConfigError("Leave out channels and aggregator_kernels: sizes come from the checkpoint.")
        else:
            content = read_checkpoint(checkpoint)
            sizes, state = _stated(options(content), sizes), weights(content, checkpoint, "model_weight", "model")
        self.log_compression = sizes.log_compression
        self.residual_scale = sizes.residual_scale**0.5 if sizes.skip else None
        width = sizes.convs[-1][0]
        inputs = (1, *(c for c, _, _ in sizes.convs))
        self.front = nn.ModuleList(
            _NormedConv(i, *layer, False, sizes.affine, sizes.activation)
            for i, layer in zip(inputs, sizes.convs, strict=False)
        )
        inputs = (width, *(c for c, _, _ in sizes.aggregator))
        self.aggregator = nn.ModuleList(
            _ContextConv(
                _NormedConv(i, *layer, sizes.aggregator_bias, sizes.affine, sizes.activation),
                sizes.zero_pad,
                sizes.skip and i != layer[0],
            )
            for i, layer in zip(inputs, sizes.aggregator, strict=False)
        )
        self._windows = [(kernel, stride) for _, kernel, stride in sizes.convs]
        self.declare(
            (width, *(c for c, _, _ in sizes.aggregator)), hop_length(self._windows), receptive_field(self._windows)
        )
        if checkpoint is not None:
            load_renamed(self, state, _RULES, source=checkpoint, ignore=r"(wav2vec_predictions|project_features)\..*")

    def output_lengths(self, lengths: Tensor, stream: str = "audio", layer: int = -1) -> Tensor:
        """Frames (B,) of clips of `lengths` (B,) samples; all layers have the same."""
        return conv_stack_length(lengths, self._windows)

    def encode(self, waveforms: Tensor) -> list[Tensor]:
        """(B, T) without padding -> latents, then contexts, (B, T', C)."""
        x = waveforms.to(self.dtype)[:, None]
        for block in self.front:
            x = block(x)
        if self.log_compression:
            x = (x.abs() + 1).log()
        layers = [x]
        for context in self.aggregator:
            layers.append(context(layers[-1], self.residual_scale))
        return [layer.transpose(1, 2) for layer in layers]


class _NormedConv(nn.Module):
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
        x, norm = self.conv(x), self.norm
        gain, bias = (None if p is None else p.float() for p in (norm.weight, norm.bias))
        # in float32, as the models were trained
        return self.activation(F.group_norm(x.float(), 1, gain, bias, norm.eps).to(x.dtype))


class _ContextConv(nn.Module):
    """A convolution over the present and the past, added to its input where there are skip connections."""

    def __init__(self, block: _NormedConv, zero_pad: bool, project: bool) -> None:
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


def _resized(sizes: _Sizes, channels: int | None, kernels: Sequence[int] | None) -> _Sizes:
    width = sizes.convs[-1][0] if channels is None else channels
    chosen = [kernel for _, kernel, _ in sizes.aggregator] if kernels is None else kernels
    if width < 1 or not chosen or min(chosen) < 1:
        raise ConfigError(f"channels and every aggregator kernel must be at least 1, got {channels} and {kernels}.")
    return replace(
        sizes,
        convs=tuple((width, kernel, stride) for _, kernel, stride in sizes.convs),
        aggregator=tuple((width, kernel, 1) for kernel in chosen),
    )


def _stated(content: dict[str, Any], fallback: _Sizes) -> _Sizes:
    """Sizes that a fairseq checkpoint states."""
    given = options(content.get("model_cfg") or content.get("cfg") or content.get("args"))
    model = options(given.get("model")) or given
    variants = {
        "vq_type": ("none", None),
        "aggregator": ("cnn", None),
        "skip_connections_feat": (False, None),
        "activation": ("relu", "gelu", None),
    }
    for name, allowed in variants.items():
        value = model.get(name)
        if (str(value) if isinstance(allowed[0], str) and value is not None else value) not in allowed:
            raise CheckpointError(f"This wav2vec has {name} = {value!r}; only {allowed[:-1]} can be loaded.")
    found: dict[str, Any] = {}
    for field, name in (("convs", "conv_feature_layers"), ("aggregator", "conv_aggregator_layers")):
        if model.get(name):
            found[field] = tuple(parse_conv_layers(str(model[name])))
    if any(stride != 1 for _, _, stride in found.get("aggregator", ())):
        raise CheckpointError("This wav2vec has strides in its context network; only strides of 1 can be loaded.")
    named = {
        "skip": "skip_connections_agg",
        "residual_scale": "residual_scale",
        "log_compression": "log_compression",
        "zero_pad": "agg_zero_pad",
    }
    found |= {field: model[name] for field, name in named.items() if model.get(name) is not None}
    if model.get("activation") is not None:
        found["activation"] = str(model["activation"])
    if model.get("no_conv_bias") is not None:
        found["aggregator_bias"] = not model["no_conv_bias"]
    if model.get("non_affine_group_norm") is not None:
        found["affine"] = not model["non_affine_group_norm"]
    return replace(fallback, **found)
