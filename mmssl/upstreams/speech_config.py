"""Sizes of speech transformers: presets, and how published checkpoints state theirs."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmssl.errors import CheckpointError, ConfigError, did_you_mean


@dataclass(frozen=True)
class SpeechConfig:
    """All that sets one speech transformer apart from another.

    Attributes:
        family: "wav2vec2", "hubert", "wavlm", "data2vec_audio", "unispeech_sat" or "distilhubert".
        hidden_size, num_layers, num_heads, feed_forward_size: of the transformer.
        layer_norm_first: pre-norm blocks (large models).
        conv_channels, conv_kernels, conv_strides, conv_bias, conv_norm: of the front end, see `ConvFrontEnd`.
        mel_bins: filters of log-mel frames in the place of the convolutions, see `MelFrontEnd`; 0 for convolutions.
        feature_norm: layer norm between front end and projection (DistilHuBERT has none).
        position_kernel, position_groups, position_depth: convolutions that give positions; with more than one, each
            has a layer norm and none a weight norm.
        relative_buckets, relative_distance: WavLM's relative positions; 0 buckets for none.
        normalize: whether a clip is brought to zero mean and unit variance first.
        normalize_eps: added to its variance; 1e-5 in fairseq, 1e-7 in transformers.
        dropout, attention_dropout, activation_dropout, feature_dropout, layer_drop: in training.
    """

    family: str = "wav2vec2"
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feed_forward_size: int = 3072
    layer_norm_first: bool = False
    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    mel_bins: int = 0
    feature_norm: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    position_depth: int = 1
    relative_buckets: int = 0
    relative_distance: int = 800
    normalize: bool = False
    normalize_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feature_dropout: float = 0.0
    layer_drop: float = 0.05


_BASE = SpeechConfig()
_LARGE_SIZE: dict[str, Any] = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "feed_forward_size": 4096}
_LARGE: dict[str, Any] = {**_LARGE_SIZE, "layer_norm_first": True, "conv_norm": "layer", "normalize": True}
_DATA2VEC: dict[str, Any] = {"conv_norm": "layer", "position_kernel": 19, "position_depth": 5, "normalize": True}
_WAVLM: dict[str, Any] = {"relative_buckets": 320}
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_size": 48,
    "conv_channels": (16, 16, 24),
    "conv_kernels": (10, 3, 2),
    "conv_strides": (5, 4, 2),
    "position_kernel": 16,
    "position_groups": 4,
}
_NANO: dict[str, Any] = {
    "hidden_size": 256,
    "num_layers": 6,
    "num_heads": 4,
    "feed_forward_size": 1024,
    "layer_norm_first": True,
    "position_kernel": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "layer_drop": 0.0,
}
# the first convolutions run at thousands of frames a second: narrow ones make training on few cores bearable
_NANO_CONVOLUTIONS: dict[str, Any] = {"conv_channels": (32, 64, 128, 128, 128, 128, 128), "normalize": True}
_MEL: dict[str, Any] = {"mel_bins": 40, "feature_norm": False}
# what an hour and a half on two cores trains to convergence on a few hours of speech
_SMALLER: dict[str, Any] = {"hidden_size": 192, "num_layers": 4, "feed_forward_size": 768}
_TINY_LARGE: dict[str, Any] = {**_LARGE, **_TINY, "conv_bias": True}


def _preset(family: str, **sizes: Any) -> SpeechConfig:
    return dataclasses.replace(_BASE, family=family, **sizes)


PRESETS: dict[str, SpeechConfig] = {
    "wav2vec2_tiny": _preset("wav2vec2", **_TINY),
    "wav2vec2_lv60_tiny": _preset("wav2vec2", **_TINY_LARGE),
    "wav2vec2_base": _preset("wav2vec2"),
    "wav2vec2_large": _preset("wav2vec2", **_LARGE_SIZE),
    "wav2vec2_lv60": _preset("wav2vec2", **_LARGE, conv_bias=True),
    "hubert_tiny": _preset("hubert", **_TINY),
    "hubert_large_tiny": _preset("hubert", **_TINY_LARGE),
    "hubert_nano": _preset("hubert", **_NANO, **_NANO_CONVOLUTIONS),
    "hubert_base": _preset("hubert"),
    "hubert_large": _preset("hubert", **_LARGE),
    "mel_hubert_tiny": _preset("hubert", **_TINY | _MEL | {"mel_bins": 8}),
    "mel_hubert_nano": _preset("hubert", **_NANO | _MEL | _SMALLER),
    "mel_hubert_base": _preset("hubert", **_MEL),
    "hubert_xlarge": _preset(
        "hubert", **_LARGE | {"hidden_size": 1280, "num_layers": 48, "num_heads": 16, "feed_forward_size": 5120}
    ),
    "wavlm_tiny": _preset("wavlm", **_TINY, relative_buckets=16, relative_distance=20),
    "wavlm_large_tiny": _preset("wavlm", **_TINY_LARGE, relative_buckets=16, relative_distance=20),
    "wavlm_base": _preset("wavlm", **_WAVLM),
    "wavlm_base_plus": _preset("wavlm", **_WAVLM),
    "wavlm_large": _preset("wavlm", **_LARGE, **_WAVLM),
    "data2vec_audio_tiny": _preset("data2vec_audio", **_TINY | _DATA2VEC | {"position_kernel": 5, "position_depth": 3}),
    "data2vec_audio_base": _preset("data2vec_audio", **_DATA2VEC),
    "data2vec_audio_large": _preset("data2vec_audio", **_LARGE_SIZE, **_DATA2VEC),
    "unispeech_sat_tiny": _preset("unispeech_sat", **_TINY),
    "unispeech_sat_large_tiny": _preset("unispeech_sat", **_TINY_LARGE),
    "unispeech_sat_base": _preset("unispeech_sat"),
    "unispeech_sat_large": _preset("unispeech_sat", **_LARGE),
    "distilhubert_tiny": _preset("distilhubert", **_TINY | {"num_layers": 2, "feature_norm": False}),
    "distilhubert": _preset("distilhubert", num_layers=2, feature_norm=False, layer_drop=0.0),
}


def preset_config(name: str) -> SpeechConfig:
    """Sizes of a published model by name.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"There is no speech transformer preset {name!r}.{did_you_mean(name, PRESETS)} "
            f"Presets: {', '.join(PRESETS)}."
        )
    return PRESETS[name]


MODEL_TYPES = {
    "wav2vec2": "wav2vec2",
    "hubert": "hubert",
    "wavlm": "wavlm",
    "data2vec-audio": "data2vec_audio",
    "unispeech-sat": "unispeech_sat",
}
# our field -> transformers' key, where the meaning is the same
_TRANSFORMERS_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
    "layer_norm_first": "do_stable_layer_norm",
    "conv_channels": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "position_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "feature_dropout": "feat_proj_dropout",
    "layer_drop": "layerdrop",
}
# keys that change what the model computes, and the only value for which it is what this model computes
_TRANSFORMERS_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}


def from_transformers(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> SpeechConfig:
    """Sizes stated by a transformers config.json and, where there is one, preprocessor_config.json.

    Raises:
        CheckpointError: the model type is not one of these, or a setting is one that this model cannot compute.
    """
    family = MODEL_TYPES.get(str(values.get("model_type")))
    if family is None:
        raise CheckpointError(
            f"config.json states model_type {values.get('model_type')!r}; this upstream takes "
            f"{', '.join(MODEL_TYPES)}. Use the 'hf' upstream for other transformers models."
        )
    for key, only in _TRANSFORMERS_FIXED.items():
        if values.get(key, only) != only:
            raise CheckpointError(
                f"config.json sets {key} = {values[key]!r}; the native speech transformer computes {only!r} only. "
                f"Use the 'hf' upstream."
            )
    found: dict[str, Any] = {"activation_dropout": 0.1, "layer_drop": 0.1}
    for field, key in _TRANSFORMERS_KEYS.items():
        if key in values:
            found[field] = tuple(values[key]) if isinstance(values[key], list) else values[key]
    if family == "data2vec_audio":
        found |= {"conv_norm": "layer", "layer_norm_first": False}
        found["position_kernel"] = values.get("conv_pos_kernel_size", 19)
        found["position_depth"] = values.get("num_conv_pos_embeddings", 5)
    else:
        found["position_kernel"] = values.get("num_conv_pos_embeddings", 128)
    if family == "wavlm":
        found["relative_buckets"] = values.get("num_buckets", 320)
        found["relative_distance"] = values.get("max_bucket_distance", 800)
    if family == "hubert" and not values.get("feat_proj_layer_norm", True):
        found["feature_norm"] = False
        family = "distilhubert"
    normalize = (preprocessor or {}).get("do_normalize", found.get("conv_norm") == "layer")
    found["normalize_eps"] = (preprocessor or {}).get("normalize_eps", 1e-7)
    return SpeechConfig(family=family, normalize=bool(normalize), **found)


def to_transformers(config: SpeechConfig) -> dict[str, Any]:
    """The config.json with which transformers builds the same model; its own time masking is off.

    Raises:
        ConfigError: the front end is one of log-mel frames, which transformers' models do not have.
    """
    if config.mel_bins:
        raise ConfigError("transformers has no speech model of this kind with log-mel frames: export it natively.")
    model_type = {v: k for k, v in MODEL_TYPES.items()}.get(config.family, "hubert")
    values: dict[str, Any] = {
        key: list(value) if isinstance(value := getattr(config, field), tuple) else value
        for field, key in _TRANSFORMERS_KEYS.items()
    }
    class_name = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "data2vec-audio": "Data2VecAudio"}
    values |= {
        "model_type": model_type,
        "architectures": [class_name.get(model_type, "UniSpeechSat") + "Model"],
        "num_feat_extract_layers": len(config.conv_channels),
        "num_conv_pos_embeddings": config.position_kernel,
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
        "apply_spec_augment": False,
    }
    if config.family == "data2vec_audio":
        values |= {"conv_pos_kernel_size": config.position_kernel, "num_conv_pos_embeddings": config.position_depth}
    if model_type == "hubert":
        values["feat_proj_layer_norm"] = config.feature_norm
    if config.relative_buckets:
        values |= {"num_buckets": config.relative_buckets, "max_bucket_distance": config.relative_distance}
    return values


_FAIRSEQ_KEYS = {
    "hidden_size": "encoder_embed_dim",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "feed_forward_size": "encoder_ffn_embed_dim",
    "layer_norm_first": "layer_norm_first",
    "conv_bias": "conv_bias",
    "position_kernel": "conv_pos",
    "position_groups": "conv_pos_groups",
    "position_depth": "pos_conv_depth",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "feature_dropout": "dropout_input",
    "layer_drop": "encoder_layerdrop",
}


def from_fairseq(model: Mapping[str, Any], normalize: bool | None, family: str) -> SpeechConfig:
    """Sizes stated by the model part of a fairseq, WavLM or DistilHuBERT checkpoint.

    Args:
        model: option name -> value.
        normalize: the task's option; None where the file does not state it (then the model's own, else True for
            models whose front end has layer norms).
        family: what the weights look like.
    """
    if str(model.get("activation_fn", "gelu")) != "gelu":
        raise CheckpointError(f"The checkpoint uses the activation {model['activation_fn']!r}; only gelu is supported.")
    found: dict[str, Any] = {field: model[key] for field, key in _FAIRSEQ_KEYS.items() if model.get(key) is not None}
    found["conv_norm"] = "layer" if model.get("extractor_mode") == "layer_norm" else "group"
    layers = model.get("conv_feature_layers") or model.get("extractor_conv_feature_layers")
    if layers:
        channels, kernels, strides = zip(*parse_conv_layers(str(layers)), strict=True)
        found |= {"conv_channels": channels, "conv_kernels": kernels, "conv_strides": strides}
    if found.get("position_depth", 1) > 1:
        # fairseq states the reach of all convolutions together
        found["position_kernel"] = max(3, found["position_kernel"] // found["position_depth"])
    if model.get("relative_position_embedding"):
        found["relative_buckets"] = model.get("num_buckets", 320)
        found["relative_distance"] = model.get("max_distance", 1280)
    if normalize is None:
        normalize = bool(model.get("normalize", found["conv_norm"] == "layer"))
    return SpeechConfig(family=family, normalize=normalize, feature_norm=family != "distilhubert", **found)


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Read "[(512,10,5)] + [(512,3,2)] * 4" into (channels, kernel, stride) per layer, evaluating no code.

    Raises:
        CheckpointError: the text is not a sum of lists of three whole numbers, each times a whole number.
    """
    layers: list[tuple[int, int, int]] = []
    for term in re.split(r"\+", text):
        match = re.fullmatch(r"\s*(\[[\d\s(),]*\])\s*(?:\*\s*(\d+)\s*)?", term)
        try:
            listed = ast.literal_eval(match[1]) if match else None
        except SyntaxError:
            listed = None
        if not match or not isinstance(listed, list) or not all(isinstance(e, tuple) and len(e) == 3 for e in listed):
            raise CheckpointError(
                f"Cannot read the conv layers {text!r}: expected [(channels, kernel, stride)] * n + ..."
            )
        layers += listed * int(match[2] or 1)
    return layers
