"""What the stages of recipes/spk share: file names, the parts of the corpus, and the model before training."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.registry import INTERFACES, UPSTREAMS, Registry
from mmssl.stages.context import Context
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.types import Clip

if TYPE_CHECKING:
    from torch import nn

    from mmssl.downstream.speaker_model import SpeakerModel

TRIALS, TRIALS_SUMMARY = "trials", "trials.json"
MODEL, TRAINING, TRAINING_SUMMARY = "model", "training", "training.json"
EMBEDDINGS, METRICS, RESULTS = "embeddings", "metrics.json", "error_rates.json"
PARTS = ("train", "dev", "test")
CONTRASTIVE = "supcon"


def parts_of(context: Context) -> dict[str, list[Clip]]:
    """Clips of the speakers to train on, to develop on and to test."""
    clips = {clip.id: clip for clip in read_manifest(context.data / MANIFEST)}
    (fold,) = read_folds(context.data / FOLDS)
    return {part: [clips[name] for name in getattr(fold, part)] for part in PARTS}


def speaker_of(clip: Clip) -> str:
    """The speaker of a clip.

    Raises:
        DataError: it has none.
    """
    if not clip.speaker:
        raise DataError(f"The clip {clip.id!r} has no speaker: local/prepare.py must name one for each.")
    return clip.speaker


def build_model(context: Context) -> SpeakerModel:
    """The model before training, all of whose weights follow from the configuration.

    Raises:
        ConfigError: an argument that there is not, or parts that do not fit each other.
    """
    from mmssl.training.speaker_files import ENCODERS, build_speaker_model

    config = context.config
    encoder = {key: value for key, value in config["encoder"].items() if value is not None}
    name = str(encoder.pop("name"))
    if name not in ENCODERS:
        raise ConfigError(f"encoder.name: there is no {name!r}.{did_you_mean(name, ENCODERS)} {', '.join(ENCODERS)}.")
    speaker = config["speaker"]
    common: dict[str, Any] = {"encoder": name, "encoder_kwargs": encoder, "seed": speaker["seed"]}
    common |= {"centre": speaker["centre"], "trim_silence": speaker["trim_silence"]}
    if takes_waveforms(name):
        return build_speaker_model(upstream=None, **common)
    system, stream = context.systems[0], config["features"]["stream"]
    target = registered(UPSTREAMS, system.target)
    interface: dict[str, Any] = {}
    if _num_layers(target, system.kwargs, stream) > 1:
        node = config["interface"]
        interface["interface"] = registered(INTERFACES, node["_target_"])
        interface["interface_kwargs"] = {key: value for key, value in node.items() if not key.startswith("_")}
    return build_speaker_model(
        target,
        **common,
        **interface,
        upstream_kwargs=dict(system.kwargs),
        stream=stream,
        train_upstream=speaker["train_upstream"],
    )


def takes_waveforms(encoder: str) -> bool:
    """Whether an encoder of `speaker_files.ENCODERS` stands on the waveform, without an upstream."""
    import importlib

    from mmssl.training.speaker_files import ENCODERS

    module, _, attribute = ENCODERS[encoder].rpartition(".")
    return bool(getattr(getattr(importlib.import_module(module), attribute), "takes_waveforms", False))


def _num_layers(target: str, arguments: Mapping[str, Any], stream: str) -> int:
    """Layers of an upstream's stream; one where it has no such stream, which building it explains."""
    from mmssl.upstreams.base import load_upstream

    streams = load_upstream(target, **arguments).spec.streams
    return streams[stream].num_layers if stream in streams else 1


def registered(registry: Registry, target: str) -> str:
    """The name of a built-in part for its dotted path, which a saved model can say without trust; others stay."""
    return next((name for name, path in registry.builtins.items() if path == target), target)


def described(context: Context) -> str:
    """The system in a few words: "ecapa_tdnn on fbank"."""
    name = str(context.config["encoder"]["name"])
    if takes_waveforms(name):
        return name
    upstream = registered(UPSTREAMS, context.systems[0].target)
    return f"{name} on {context.systems[0].name if '.' in upstream else upstream}"


def build_loss(config: Mapping[str, Any], embedding_size: int, num_classes: int) -> nn.Module:
    """The loss of the section `loss`, its weights drawn from `training.seed`.

    Raises:
        ConfigError: a value is out of range.
    """
    from mmssl.downstream.margin import MarginSoftmax, SupervisedContrastive
    from mmssl.random import isolated_rng

    node = dict(config["loss"])
    temperature = node.pop("temperature")
    if node["kind"] == CONTRASTIVE:
        return SupervisedContrastive(temperature)
    with isolated_rng(config["training"]["seed"]):
        return MarginSoftmax(embedding_size, num_classes, margin=0.0, **known("loss", node, MarginSoftmax))


def known(section: str, values: Mapping[str, Any], takes: Callable[..., Any]) -> dict[str, Any]:
    """Values of a section, lists as tuples, where every key is an argument of `takes`.

    Raises:
        ConfigError: one is not.
    """
    allowed = [field.name for field in dataclasses.fields(takes)] if dataclasses.is_dataclass(takes) else []
    allowed = allowed or list(inspect.signature(takes).parameters)
    for key in values:
        if key not in allowed:
            raise ConfigError(
                f"{section}.{key}: there is no such key.{did_you_mean(key, allowed)} Keys: {', '.join(allowed)}."
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def by_value(clips: Sequence[Clip], label: str | None) -> dict[str, list[Clip]]:
    """Clips by the value of a label; all of them under "test" where there is none.

    Raises:
        DataError: a clip lacks the label.
    """
    if label is None:
        return {"test": list(clips)}
    found: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.labels.get(label) is None:
            names = sorted({name for c in clips for name in c.labels})
            raise DataError(
                f"trials.within={label}: the clip {clip.id!r} has no such label.{did_you_mean(label, names)} Labels: "
                f"{', '.join(names)}."
            )
        found.setdefault(str(clip.labels[label]), []).append(clip)
    return dict(sorted(found.items()))
