"""Weights of audio-visual encoders: whose names mean what, and under which licences they came."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import CheckpointError, ConfigError
from mmssl.upstreams.checkpoints import read_checkpoint
from mmssl.upstreams.renaming import options, weights
from mmssl.upstreams.speech_config import SpeechConfig, from_fairseq
from mmssl.upstreams.speech_weights import rows

_LOG = logging.getLogger(__name__)

MODALITIES = ("audio", "video")
# what stands before the names of a tower: ours, AVID's, CrissCross's
_TOWER_PREFIXES = {m: (f"{m}.trunk.", f"{m}_model.", f"{m}_backbone.") for m in MODALITIES}
LICENCES = {
    "AVID": "The weights that the authors of AVID released are licensed CC BY-NC 4.0: no commercial use.",
    "CrissCross": "The weights that the authors of CrissCross released are licensed CC BY-NC 4.0: no commercial use.",
    "AV-HuBERT": (
        "The weights that the authors of AV-HuBERT released come under a licence of Meta for non-commercial research "
        "only; it forbids sublicensing and biometric processing, which speaker recognition may be. Read it first."
    ),
}


def print_licence(method: str, source: str) -> None:
    """Log, as a warning, the licence of a method's published weights."""
    _LOG.warning("%s: %s", source, LICENCES[method])


def read_towers(checkpoint: str | Sequence[str] | None) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Read the towers of one or more files.

    A file holds both towers, or one: then a convolution over space and time tells that it is the video's. Projections,
    predictors and whatever else lies outside of the towers is left out.

    Args:
        checkpoint: path, or a path per tower; None reads nothing.

    Returns:
        "audio" and / or "video" -> the file it came from, and its weights by the file's names without prefix.

    Raises:
        CheckpointError: a file cannot be read, holds no weights, or a tower comes twice.
    """
    found: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for path in [checkpoint] if isinstance(checkpoint, str) else list(checkpoint or ()):
        state = weights(read_checkpoint(path), path, "model", "state_dict")
        named = {name.removeprefix("module."): v for name, v in state.items() if isinstance(v, Tensor)}
        for modality, part in split_towers(named).items():
            if modality in found:
                raise CheckpointError(f"{path} and {found[modality][0]} both hold the {modality} tower: give one.")
            found[modality] = (path, part)
    return found


def split_towers(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights of each tower in a state dict, without the tower's prefix."""
    found: dict[str, dict[str, Tensor]] = {}
    for modality, prefixes in _TOWER_PREFIXES.items():
        for prefix in prefixes:
            part = {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
            if part:
                found[modality] = part
    if not found:
        found["video" if any(v.dim() == 5 for v in named.values()) else "audio"] = dict(named)
    return found


def settle_modalities(given: Sequence[str] | None, found: Mapping[str, Any], checkpoint: object) -> tuple[str, ...]:
    """Which towers to build: those asked for, else those of the checkpoint, else both.

    Raises:
        ConfigError: an unknown modality, or none.
        CheckpointError: one that the checkpoint does not have.
    """
    if given is None:
        return tuple(m for m in MODALITIES if m in found or not found)
    wanted = (given,) if isinstance(given, str) else tuple(given)
    if not wanted or set(wanted) - set(MODALITIES):
        raise ConfigError(f"modalities must be among {', '.join(MODALITIES)}, got {given!r}.")
    missing = [m for m in wanted if found and m not in found]
    if missing:
        raise CheckpointError(
            f"{checkpoint} holds no {missing[0]} tower, only {' and '.join(found)}: "
            f"leave modalities out, or give the file of the other tower too."
        )
    return tuple(m for m in MODALITIES if m in wanted)


def stage_rules(modality: str) -> list[tuple[str, str]]:
    """Rules from the names of AVID and CrissCross to those of our towers; for `load_renamed`."""
    if modality == "audio":
        return [(r"conv1\.(.*)", r"stem.\1"), (r"block(\d)\.(.*)", r"layer\1.\2")]
    parts = {
        "spt_conv1": "conv1.0.0",
        "spt_bn1": "conv1.0.1",
        "tmp_conv1": "conv1.0.3",
        "tmp_bn1": "conv1.1",
        "spt_conv2": "conv2.0.0",
        "spt_bn2": "conv2.0.1",
        "tmp_conv2": "conv2.0.3",
        "out_bn": "conv2.1",
        "res_conv": "downsample.0",
    }
    found = [(r"conv1\.(.*)", r"stem.\1")]
    for stage in range(2, 6):
        for theirs, ours in parts.items():
            found.append((rf"conv{stage}x\.(\d)\.{theirs}\.(.*)", rf"layer{stage - 1}.\1.{ours}.\2"))
    return found


def turned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchange the axes of all two-dimensional kernels: from (time, frequency) to (frequency, time)."""
    return {name: v.transpose(-1, -2).contiguous() if v.dim() == 4 else v for name, v in state.items()}


@dataclass(frozen=True)
class AvHubertConfig:
    """Sizes of an AV-HuBERT.

    Attributes:
        encoder: of the transformer; the front end of speech models that it describes is not there.
        audio_size: width of the stacked filterbank frames.
        video_width: channels of the first stage of the mouth network.
        activation: of the mouth network, "prelu" or "relu".
        crop_size: height and width of the mouth crop.
        image_mean, image_std: of grey values in [0, 1].
        normalize: layer norm of each stacked audio frame.
    """

    encoder: SpeechConfig
    audio_size: int = 104
    video_width: int = 64
    activation: str = "prelu"
    crop_size: int = 88
    image_mean: float = 0.421
    image_std: float = 0.165
    normalize: bool = True


_BASE = SpeechConfig(family="hubert", layer_norm_first=True)
AV_HUBERT_PRESETS = {
    "base": AvHubertConfig(_BASE),
    "large": AvHubertConfig(replace(_BASE, hidden_size=1024, num_layers=24, num_heads=16, feed_forward_size=4096)),
    "tiny": AvHubertConfig(
        replace(_BASE, hidden_size=32, num_layers=2, num_heads=4, feed_forward_size=48, position_kernel=8),
        video_width=4,
        crop_size=24,
    ),
}

# ours -> fairseq's, for what is not the transformer
_AV_MODULES = {
    "audio_projection": "feature_extractor_audio.proj",
    "video_projection": "feature_extractor_video.proj",
    "fusion_norm": "layer_norm",
    "fusion_projection": "post_extract_proj",
}
_MOUTH = {
    "mouth.stem.": "feature_extractor_video.resnet.frontend3D.",
    "mouth.trunk.": "feature_extractor_video.resnet.trunk.",
}
_AV_HEADS = ("mask_emb", "label_embs_concat", "final_proj.", "target_glu.", "decoder.")


def read_av_hubert(path: str) -> tuple[AvHubertConfig, dict[str, Tensor]]:
    """Read a file in the layout of AV-HuBERT's authors (fairseq), pretrained or fine-tuned.

    Returns:
        The sizes it states, and its weights by our names.

    Raises:
        CheckpointError: the file cannot be read, or holds another model or a variant that is not built here.
    """
    content = options(read_checkpoint(path))
    stated = options(content.get("cfg") or content.get("args"))
    if "model" not in content or not stated:
        raise CheckpointError(
            f"{path} is no AV-HuBERT of fairseq: expected the entries 'cfg' and 'model', "
            f"found {', '.join(map(str, list(content)[:10])) or 'none'}."
        )
    state = {
        name.removeprefix("encoder.w2v_model."): v
        for name, v in options(content["model"]).items()
        if isinstance(v, Tensor)
    }
    model, task = options(stated.get("model", stated)), options(stated.get("task"))
    if model.get("w2v_args"):  # fine-tuned: the pretrained model's options are inside
        inner = options(model["w2v_args"])
        model, task = options(inner.get("model", inner)), options(inner.get("task")) | task
    config = _av_config(model, task, state, path)
    return config, av_canonical(state, config, path)


def _av_config(
    model: Mapping[str, Any], task: Mapping[str, Any], state: Mapping[str, Tensor], source: str
) -> AvHubertConfig:
    if model.get("modality_fuse", "concat") != "concat" or model.get("sub_encoder_layers", 0):
        raise CheckpointError(
            f"{source} fuses by {model.get('modality_fuse')!r} with {model.get('sub_encoder_layers')} layers before "
            f"the fusion; built here is 'concat' with none, as in all published models."
        )
    try:
        audio_size = state["feature_extractor_audio.proj.weight"].shape[1]
        video_width = state["feature_extractor_video.resnet.trunk.layer1.0.conv1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{source} is no AV-HuBERT: the weight {error} is missing.") from None
    default = AvHubertConfig(_BASE)
    return replace(
        default,
        encoder=from_fairseq(model, None, "hubert"),
        audio_size=audio_size,
        video_width=video_width,
        activation=str(model.get("resnet_relu_type", default.activation)),
        crop_size=int(task.get("image_crop_size") or default.crop_size),
        image_mean=float(task.get("image_mean") or default.image_mean),
        image_std=float(task.get("image_std") or default.image_std),
        normalize=bool(task.get("normalize", default.normalize)),
    )


def av_canonical(state: Mapping[str, Tensor], config: AvHubertConfig, source: str) -> dict[str, Tensor]:
    """Rename the weights of a fairseq AV-HuBERT to ours.

    Raises:
        CheckpointError: a weight is missing or of no use; the message lists them.
    """
    found = {n: v for n, v in state.items() if not n.startswith(_AV_HEADS)}
    wanted: dict[str, tuple[str, ...]] = {
        f"{ours}.{part}": (f"{theirs}.{part}",) for ours, theirs in _AV_MODULES.items() for part in ("weight", "bias")
    }
    wanted |= {ours: theirs for ours, theirs in rows(config.encoder, "fairseq") if ours.startswith("encoder.")}
    for ours, theirs in _MOUTH.items():
        for name in found:
            if name.startswith(theirs):
                wanted[ours + name.removeprefix(theirs)] = (name,)
    missing = [name for names in wanted.values() for name in names if name not in found]
    unused = set(found) - {name for names in wanted.values() for name in names}
    if missing or unused:
        raise CheckpointError(
            f"{source} does not fit an AV-HuBERT of {config.encoder.num_layers} layers. "
            f"Missing ({len(missing)}): {', '.join(missing[:5]) or 'none'}. "
            f"Unused ({len(unused)}): {', '.join(sorted(unused)[:5]) or 'none'}."
        )
    renamed = {}
    for ours, names in wanted.items():
        tensors = [found[name] for name in names]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        renamed[ours] = tensor.float() if tensor.is_floating_point() else tensor
    return renamed
