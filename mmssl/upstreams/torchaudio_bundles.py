"""The speech encoders of torchaudio's bundles by name, from local weights and exact in any batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from mmssl.errors import CheckpointError, ConfigError, did_you_mean
from mmssl.upstreams.base import Upstream
from mmssl.upstreams.speech_config import SpeechConfig
from mmssl.upstreams.speech_transformer import SpeechTransformer
from mmssl.upstreams.speech_weights import read_speech_checkpoint

_NORMS = {"group_norm": "group", "layer_norm": "layer"}
# our field -> the bundle's parameter, where the meaning is the same
_FIELDS = {
    "hidden_size": "encoder_embed_dim",
    "num_layers": "encoder_num_layers",
    "num_heads": "encoder_num_heads",
    "feed_forward_size": "encoder_ff_interm_features",
    "layer_norm_first": "encoder_layer_norm_first",
    "conv_bias": "extractor_conv_bias",
    "position_kernel": "encoder_pos_conv_kernel",
    "position_groups": "encoder_pos_conv_groups",
    "dropout": "encoder_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "feature_dropout": "encoder_projection_dropout",
    "layer_drop": "encoder_layer_drop",
}
# what a file states by the shapes of its weights, and so must have in common with its bundle
_SHAPES = (
    "hidden_size",
    "num_heads",
    "feed_forward_size",
    "conv_channels",
    "conv_kernels",
    "conv_bias",
    "conv_norm",
    "feature_norm",
    "position_kernel",
    "position_groups",
    "position_depth",
    "relative_buckets",
)


class TorchaudioBundle(SpeechTransformer):
    """The encoder of a bundle of `torchaudio.pipelines`: wav2vec 2.0, XLS-R, HuBERT, WavLM, fine-tuned or not.

    Sizes, and whether a clip is brought to zero mean and unit variance first, are those of the bundle. The network is
    `SpeechTransformer`, so a clip's features do not depend on its batch; torchaudio normalises a batch as a whole,
    padding included, and equals this for one clip at a time.

    Layer 0 is the input of the first block and layer k the output of block k. torchaudio's `extract_features` starts
    after the first block: its item k is layer k + 1 here. The letters' layer of a bundle tuned for recognition is left
    out. Nothing is downloaded.

    Args:
        bundle: its name in `torchaudio.pipelines`: WAV2VEC2_BASE, HUBERT_LARGE, WAVLM_BASE_PLUS, ... (`bundle_names`).
        checkpoint: the bundle's state dict, a local file.
        randomize: draw weights instead of reading any.
        num_layers: keep the first blocks only; None for all.
        hidden_size, num_heads, feed_forward_size: of the transformer, instead of the bundle's. A checkpoint must have
            been trained with them.
        conv_channels: channels of every convolution of the front end, instead of the bundle's; likewise.
        position_kernel: taps of the convolution that gives positions, instead of the bundle's; likewise.

    Raises:
        ConfigError: no such bundle, sizes that do not go together, or not exactly one of `checkpoint` and `randomize`.
        CheckpointError: the checkpoint cannot be read or is not one of this bundle.
    """

    def __init__(
        self,
        bundle: str,
        checkpoint: str | None = None,
        *,
        randomize: bool = False,
        num_layers: int | None = None,
        hidden_size: int | None = None,
        num_heads: int | None = None,
        feed_forward_size: int | None = None,
        conv_channels: int | None = None,
        position_kernel: int | None = None,
    ) -> None:
        Upstream.__init__(self)  # the parent's own builds one of its presets
        config = bundle_config(bundle)
        given = {
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "feed_forward_size": feed_forward_size,
            "conv_channels": None if conv_channels is None else (conv_channels,) * len(config.conv_channels),
            "position_kernel": position_kernel,
        }
        overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.config = dataclasses.replace(config, **overrides)
        if checkpoint is not None and randomize:
            raise ConfigError(f"{bundle}: a checkpoint and randomize=True contradict each other. Give one of them.")
        if checkpoint is not None:
            self._read(bundle, checkpoint)
        elif randomize:
            self._build(self.config)
        else:
            raise ConfigError(_no_checkpoint(bundle))

    def _read(self, bundle: str, checkpoint: str) -> None:
        read = read_speech_checkpoint(checkpoint, self.config, self.config.num_layers)
        differing = [name for name in _SHAPES if getattr(read.config, name) != getattr(self.config, name)]
        if differing:
            found = ", ".join(f"{n} = {getattr(read.config, n)} (not {getattr(self.config, n)})" for n in differing)
            raise CheckpointError(f"{checkpoint} holds no weights of {bundle}: it has {found}.")
        with torch.device("meta"):
            self._build(self.config)
        try:
            self.load_state_dict(read.state, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint} does not fit {bundle}: {error}") from error


def bundle_names() -> list[str]:
    """Names of the bundles that the installed torchaudio has and this upstream computes, sorted."""
    return sorted(_bundles())


def bundle_config(name: str) -> SpeechConfig:
    """Sizes and normalisation that a bundle states.

    Raises:
        ConfigError: torchaudio has no such bundle.
    """
    bundle = _bundle(name)
    values = bundle._params
    channels, kernels, strides = zip(*values["extractor_conv_layer_config"], strict=True)
    fields: dict[str, Any] = {ours: values[theirs] for ours, theirs in _FIELDS.items()}
    family = "hubert" if name.startswith("HUBERT") else "wav2vec2"
    if bundle._model_type == "WavLM":
        family = "wavlm"
        fields |= {
            "relative_buckets": values["encoder_num_buckets"],
            "relative_distance": values["encoder_max_distance"],
        }
    return SpeechConfig(
        family=family,
        conv_channels=channels,
        conv_kernels=kernels,
        conv_strides=strides,
        conv_norm=_NORMS[values["extractor_mode"]],  # type: ignore[arg-type]
        normalize=bundle._normalize_waveform,
        **fields,
    )


def _bundles() -> dict[str, Any]:
    from torchaudio import pipelines
    from torchaudio.pipelines import Wav2Vec2Bundle

    return {name: value for name, value in vars(pipelines).items() if isinstance(value, Wav2Vec2Bundle)}


def _bundle(name: str) -> Any:
    found = _bundles()
    if name not in found:
        raise ConfigError(
            f"torchaudio has no speech bundle {name!r}.{did_you_mean(str(name).upper(), found)} "
            f"Bundles: {', '.join(sorted(found))}."
        )
    return found[name]


def _no_checkpoint(name: str) -> str:
    path = _bundle(name)._path
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(path).path).name
    return (
        f"{name} needs a checkpoint: nothing is downloaded here. torchaudio fetches the file {path}; "
        f"torchaudio.pipelines.{name}.get_model(), run once where there is a network, keeps it as {kept}. "
        "Copy that file to any local folder and give its path as checkpoint, or give randomize=True for random weights."
    )
