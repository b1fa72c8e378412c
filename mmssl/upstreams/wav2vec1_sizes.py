"""Sizes of wav2vec and vq-wav2vec: presets, and how fairseq's checkpoints state theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmssl.errors import CheckpointError, ConfigError, did_you_mean
from mmssl.upstreams.renaming import options
from mmssl.upstreams.speech_config import parse_conv_layers

Convs = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Codebooks:
    """The quantizer of vq-wav2vec.

    Attributes:
        kind: "gumbel" or "kmeans".
        num_groups: parts into which a frame is cut, each with a code of its own.
        num_entries: codes of each group.
        output_size: width of the quantized frames; None for that of the latents.
        depth: linear layers that give the logits ("gumbel" alone).
        shared: whether all groups have one codebook.
    """

    kind: str
    num_groups: int = 2
    num_entries: int = 320
    output_size: int | None = None
    depth: int = 1
    shared: bool = True


@dataclass(frozen=True)
class Sizes:
    """All that sets one wav2vec apart from another.

    Attributes:
        convs: (channels, kernel, stride) of the encoder's convolutions.
        aggregator: the same of the context network, with strides of 1.
        skip: whether the context network has skip connections.
        residual_scale: what their sums are scaled by, squared.
        log_compression: whether the latents are log(1 + |z|).
        zero_pad: whether the context before the clip is zeros instead of its first frame repeated.
        aggregator_bias: whether the context's convolutions have biases.
        affine: whether the norms have weights.
        activation: "relu" or "gelu".
        codebooks: of vq-wav2vec; None for wav2vec.
    """

    convs: Convs
    aggregator: Convs
    skip: bool
    residual_scale: float = 0.5
    log_compression: bool = False
    zero_pad: bool = False
    aggregator_bias: bool = True
    affine: bool = True
    activation: str = "relu"
    codebooks: Codebooks | None = None

    def resized(self, channels: int | None, kernels: Sequence[int] | None) -> Sizes:
        """With other channels everywhere, and other kernels in the context network.

        Raises:
            ConfigError: one of them is below 1.
        """
        width = self.convs[-1][0] if channels is None else channels
        chosen = [kernel for _, kernel, _ in self.aggregator] if kernels is None else kernels
        if width < 1 or not chosen or min(chosen) < 1:
            raise ConfigError(f"channels and every aggregator kernel must be at least 1, got {channels} and {kernels}.")
        return replace(
            self,
            convs=tuple((width, kernel, stride) for _, kernel, stride in self.convs),
            aggregator=tuple((width, kernel, 1) for kernel in chosen),
        )

    def with_entries(self, num_entries: int | None) -> Sizes:
        """With another number of codes in each group; None leaves it."""
        if num_entries is None or self.codebooks is None:
            return self
        return replace(self, codebooks=replace(self.codebooks, num_entries=num_entries))


_STEM: Convs = ((512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2))
_LONG_CONTEXT: Convs = tuple((512, kernel, 1) for kernel in range(2, 14))
_VQ = Sizes(_STEM + ((512, 1, 1),) * 3, _LONG_CONTEXT, skip=True, activation="gelu")
PRESETS: Mapping[str, Sizes] = {
    "wav2vec_base": Sizes(_STEM, ((512, 3, 1),) * 9, skip=False),
    "wav2vec_large": Sizes(_STEM + ((512, 1, 1),) * 2, _LONG_CONTEXT, skip=True, log_compression=True),
    "vq_wav2vec_kmeans": replace(_VQ, codebooks=Codebooks("kmeans")),
    "vq_wav2vec_gumbel": replace(_VQ, codebooks=Codebooks("gumbel", depth=2)),
}
"""Sizes by name: nine context convolutions of 3 frames; twelve of 2 to 13 frames with skip connections; the latter with
quantized inputs (Baevski et al. 2020, section 5.2: two groups of 320 codes, shared)."""


def preset_sizes(preset: str, quantized: bool) -> Sizes:
    """The sizes of a preset, or a ConfigError that lists those there are."""
    known = [name for name, sizes in PRESETS.items() if (sizes.codebooks is not None) == quantized]
    if preset not in known:
        raise ConfigError(f"There is no preset {preset!r}.{did_you_mean(preset, known)} Known: {', '.join(known)}.")
    return PRESETS[preset]


def stated_sizes(content: dict[str, Any], fallback: Sizes) -> Sizes:
    """Sizes that a fairseq checkpoint states; those of `fallback` where it does not.

    Raises:
        CheckpointError: it is a variant that is not computed here.
    """
    given = options(content.get("model_cfg") or content.get("cfg") or content.get("args"))
    model = options(given.get("model")) or given
    _refuse_variants(model, quantized=fallback.codebooks is not None)
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
    if fallback.codebooks is not None:
        found["codebooks"] = _stated_codebooks(model, fallback.codebooks)
    return replace(fallback, **found)


def _stated_codebooks(model: dict[str, Any], fallback: Codebooks) -> Codebooks:
    named = {
        "num_groups": "vq_groups",
        "num_entries": "vq_vars",
        "output_size": "vq_dim",
        "depth": "vq_depth",
        "shared": "combine_groups",
    }
    found: dict[str, Any] = {field: model[name] for field, name in named.items() if model.get(name) is not None}
    if not found.get("output_size"):  # fairseq's 0: that of the latents
        found["output_size"] = None
    if model.get("vq_type") is not None:
        found["kind"] = str(model["vq_type"])
    return replace(fallback, **found)


def _refuse_variants(model: dict[str, Any], quantized: bool) -> None:
    kind = None if model.get("vq_type") is None else str(model["vq_type"])
    if kind is not None and quantized != (kind != "none"):
        raise CheckpointError(
            f"This wav2vec has vq_type = {kind!r}: load it as "
            f"{'wav2vec1' if quantized else 'vq_wav2vec, or as the tokenizer of discrete_bert'}."
        )
    variants = {
        "vq_type": ("gumbel", "kmeans", "none", None),
        "aggregator": ("cnn", None),
        "skip_connections_feat": (False, None),
        "activation": ("relu", "gelu", None),
    }
    for name, allowed in variants.items():
        value = model.get(name)
        if (str(value) if isinstance(allowed[0], str) and value is not None else value) not in allowed:
            raise CheckpointError(f"This wav2vec has {name} = {value!r}; only {allowed[:-1]} can be loaded.")
