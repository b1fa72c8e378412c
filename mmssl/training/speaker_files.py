"""Speaker models by name, and folders of trained ones that stand alone: `speaker.json` and `model.safetensors`.

Where transformers has the upstream's model and it has weights, they are in `upstream/` in its layout.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mmssl.downstream.speaker_model import SpeakerModel
from mmssl.errors import CheckpointError, ConfigError, MmsslError, did_you_mean
from mmssl.files import replace_file
from mmssl.interfaces.base import build_interface
from mmssl.random import isolated_rng
from mmssl.registry import INTERFACES, UPSTREAMS, Registry
from mmssl.upstreams.base import Upstream, load_upstream
from mmssl.upstreams.exported import export_upstream, is_exported, load_exported
from mmssl.upstreams.speech_transformer import SpeechTransformer

DESCRIPTION, WEIGHTS, UPSTREAM = "speaker.json", "model.safetensors", "upstream"
KIND, SCHEMA = "mmssl speaker model", 1
ENCODERS = {
    "ecapa_tdnn": "mmssl.nn.tdnn.EcapaEncoder",
    "xvector": "mmssl.nn.tdnn.XVectorEncoder",
    "resnet": "mmssl.nn.resnet_speaker.ResNetEncoder",
    "rawnet3": "mmssl.nn.rawnet3.RawNet3Encoder",
    "ska_tdnn": "mmssl.nn.ska_tdnn.SkaTdnnEncoder",
}
# arguments that name files of weights, which the folder replaces
_SOURCES = ("checkpoint", "path")
_FIELDS = {
    "upstream": (str, type(None)),
    "encoder": (str,),
    "interface": (str, type(None)),
    "upstream_kwargs": (dict,),
    "encoder_kwargs": (dict,),
    "interface_kwargs": (dict,),
    "stream": (str,),
    "centre": (bool, str),
    "train_upstream": (bool,),
    "trim_silence": (int, float, type(None)),
    "seed": (int,),
}


def build_speaker_model(
    upstream: str | None = "fbank",
    encoder: str = "ecapa_tdnn",
    interface: str | None = None,
    *,
    upstream_kwargs: Mapping[str, Any] | None = None,
    encoder_kwargs: Mapping[str, Any] | None = None,
    interface_kwargs: Mapping[str, Any] | None = None,
    stream: str = "audio",
    centre: bool | str = True,
    train_upstream: bool = False,
    trim_silence: float | None = None,
    seed: int = 0,
) -> SpeakerModel:
    """Build a speaker model from names; the global generators stay as they were.

    Args:
        upstream: as `load_upstream` takes it; None for an encoder that takes waveforms (rawnet3).
        encoder: one of `ENCODERS`; its `input_size` follows from the interface.
        interface: as `build_interface` takes it; None for "last_layer" where the stream has one layer and
            "weighted_sum" where it has several.
        upstream_kwargs, encoder_kwargs, interface_kwargs: arguments of the parts, such as {"depth": 152} of "resnet".
        stream, centre, train_upstream, trim_silence: see `SpeakerModel`.
        seed: of all weights that are drawn.

    Raises:
        ConfigError: an encoder or argument that there is not, or parts that do not fit.
        RegistryError: there is no such upstream or interface.
    """
    built: Upstream | None = None
    if upstream is not None:
        built = load_upstream(upstream, seed=seed, **(upstream_kwargs or {}))
        if is_exported(upstream):
            # the folder's own description, so that a saved model does not need the folder
            exported = _read_json(Path(upstream) / "upstream.json")
            upstream, upstream_kwargs = str(exported["upstream"]), dict(exported["arguments"])
        if interface is None and stream in built.spec.streams:
            interface = "last_layer" if built.spec.streams[stream].num_layers == 1 else "weighted_sum"
    elif interface is not None or upstream_kwargs or interface_kwargs:
        raise ConfigError("An interface and arguments of an upstream need an upstream; there is none.")
    description = {
        "upstream": upstream,
        "encoder": encoder,
        "interface": interface,
        "upstream_kwargs": dict(upstream_kwargs or {}),
        "encoder_kwargs": dict(encoder_kwargs or {}),
        "interface_kwargs": dict(interface_kwargs or {}),
        "stream": stream,
        "centre": centre,
        "train_upstream": train_upstream,
        "trim_silence": trim_silence,
        "seed": seed,
    }
    return _assemble(built, description)


def _assemble(upstream: Upstream | None, description: Mapping[str, Any]) -> SpeakerModel:
    """A model of a description around an upstream that has been built."""
    stream, arguments = description["stream"], dict(description["encoder_kwargs"])
    interface = None
    with isolated_rng(description["seed"]):
        if upstream is not None:
            if stream not in upstream.spec.streams:
                raise ConfigError(f"The upstream has no stream {stream!r}; it has {', '.join(upstream.spec.streams)}.")
            interface = build_interface(
                description["interface"], upstream.spec.streams[stream], **description["interface_kwargs"]
            )
            arguments["input_size"] = interface.output_size
        encoder = _build_encoder(description["encoder"], arguments)
    return SpeakerModel(
        upstream,
        interface,
        encoder,
        centre=description["centre"],
        train_upstream=description["train_upstream"],
        trim_silence=description["trim_silence"],
        stream=stream,
        description=description,
    )


def _build_encoder(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    if name not in ENCODERS:
        raise ConfigError(
            f"There is no speaker encoder {name!r}; there are {', '.join(ENCODERS)}.{did_you_mean(name, ENCODERS)}"
        )
    module, _, attribute = ENCODERS[name].rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    if getattr(kind, "takes_waveforms", False) and "input_size" in arguments:
        raise ConfigError(f"The encoder {name!r} takes waveforms: give upstream=None (null) with it.")
    if not getattr(kind, "takes_waveforms", False) and "input_size" not in arguments:
        raise ConfigError(f"The encoder {name!r} takes frames: give an upstream, such as fbank.")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"The encoder {name!r} does not take these arguments: {error}.") from error


def is_speaker_model(folder: str | Path) -> bool:
    """Whether a folder was written by `save_speaker_model`."""
    return (Path(folder) / DESCRIPTION).is_file()


def save_speaker_model(folder: str | Path, model: SpeakerModel) -> None:
    """Write a model so that `load_speaker_model` gives equal embeddings, from this folder alone.

    Args:
        folder: made where it does not exist; each file is written whole or not at all, the description last.
        model: from `build_speaker_model` or `load_speaker_model`.

    Raises:
        CheckpointError: the model has no description, its description holds values that JSON cannot, or its upstream
            cannot be built without the file that its weights came from.
    """
    if model.description is None:
        raise CheckpointError("This model was put together by hand; build it by build_speaker_model to save it.")
    folder = Path(folder)
    description = dict(model.description)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    upstream, layout = model.upstream, "native"
    if isinstance(upstream, SpeechTransformer) and upstream.heads is None:
        layout = "transformers"
        state = {name: tensor for name, tensor in state.items() if not name.startswith("upstream.")}
    elif upstream is not None and set(_SOURCES) & description["upstream_kwargs"].keys():
        description["upstream_kwargs"] = _without_source(upstream, description)
    elif upstream is not None and str(description["upstream"]) not in UPSTREAMS.names():
        raise CheckpointError(
            f"The upstream {description['upstream']!r} is no registered name, so that the saved model could not be "
            "built elsewhere. Register it (register_upstream, or an entry point), or use a built-in name."
        )
    data = save(state, {"format": "pt"})
    fields = {"kind": KIND, "schema": SCHEMA, **description, "layout": layout, "sha256": _sha256(data)}
    try:
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The model's arguments cannot be written as JSON: {error}.") from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    if layout == "transformers":
        assert upstream is not None
        export_upstream(upstream, folder / UPSTREAM, str(description["upstream"]), description["upstream_kwargs"])
    for name, content in ((WEIGHTS, data), (DESCRIPTION, text.encode())):
        with replace_file(folder / name) as file:
            file.write(content)


def load_speaker_model(folder: str | Path, *, device: str | torch.device = "cpu", trust: bool = False) -> SpeakerModel:
    """Read a model that `save_speaker_model` wrote, in eval mode; the global generators stay as they were.

    Args:
        folder: of the model.
        device: where it goes.
        trust: also build parts that are neither mmssl's nor an installed plug-in's, which runs their code.

    Raises:
        CheckpointError: the folder is none, or incomplete, damaged, mixed from two models, or names foreign parts.
    """
    folder = Path(folder)
    description = _read_description(folder / DESCRIPTION)
    if not trust:
        _check_parts(description)
    state = _read_weights(folder, str(description["sha256"]))
    kept = {name: description[name] for name in _FIELDS}
    try:
        upstream = None
        if kept["upstream"] is not None and description["layout"] == "transformers":
            if not trust:
                _check_known(str(_read_json(folder / UPSTREAM / "upstream.json").get("upstream")), UPSTREAMS)
            upstream = load_exported(str(folder / UPSTREAM)).eval().requires_grad_(False)
        elif kept["upstream"] is not None:
            upstream = load_upstream(kept["upstream"], seed=kept["seed"], **kept["upstream_kwargs"])
        model = _assemble(upstream, kept)
    except CheckpointError:
        raise
    except MmsslError as error:
        raise CheckpointError(f"{folder} describes a model that cannot be built: {error}") from error
    expected = model.state_dict()
    if description["layout"] == "transformers":
        state |= {name: tensor for name, tensor in expected.items() if name.startswith("upstream.")}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its description: {error}") from error
    return model.eval().to(device)


def _without_source(upstream: Upstream, description: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build an upstream of these shapes without the file its weights came from.

    Raises:
        CheckpointError: there are none: its sizes come from the file.
    """
    given = {k: v for k, v in description["upstream_kwargs"].items() if k not in _SOURCES}
    try:
        bare = load_upstream(description["upstream"], **given)
        shapes = {name: tensor.shape for name, tensor in bare.state_dict().items()}
        fits = shapes == {name: tensor.shape for name, tensor in upstream.state_dict().items()}
    except MmsslError:
        fits = False
    if not fits:
        raise CheckpointError(
            f"The upstream {description['upstream']!r} takes its sizes from its checkpoint, so that a folder could not "
            "stand alone. Give its sizes as arguments as well (upstream_kwargs), then build and save the model again."
        )
    return given


def _read_description(path: Path) -> dict[str, Any]:
    fields = _read_json(path)
    if fields.get("kind") != KIND:
        raise CheckpointError(f"{path} does not describe a speaker model of mmssl. Give a folder that training wrote.")
    if fields.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {fields.get('schema')!r}, this version of mmssl reads {SCHEMA}: use the version that "
            "wrote it, or train again."
        )
    # folders written before there was such a setting
    fields.setdefault("trim_silence", None)
    wrong = [name for name, kinds in _FIELDS.items() if name not in fields or not isinstance(fields[name], kinds)]
    if wrong or fields.get("layout") not in ("native", "transformers") or not isinstance(fields.get("sha256"), str):
        raise CheckpointError(f"{path} is damaged: wrong or missing are {', '.join(wrong) or 'layout or sha256'}.")
    return fields


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: this is no (complete) folder of a speaker model.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return fields


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"The weights {path} are missing: copy the whole folder.")
    data = path.read_bytes()
    if _sha256(data) != sha256:
        raise CheckpointError(
            f"{path} is not the file that {DESCRIPTION} was written with (sha256 differs): it is damaged, or the two "
            "come from different models. Copy the folder again."
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error


def _check_parts(description: Mapping[str, Any]) -> None:
    for name, registry in (("upstream", UPSTREAMS), ("interface", INTERFACES)):
        if description[name] is not None:
            _check_known(description[name], registry)
    nested = [value for part in ("upstream", "encoder", "interface") for value in _texts(description[f"{part}_kwargs"])]
    foreign = [value for key, value in nested if key in ("interface", "upstream", "_target_")]
    for value in foreign:
        _check_known(value, INTERFACES if value in INTERFACES.names() else UPSTREAMS)
    files = [key for key, _ in nested if key in _SOURCES]
    if files:
        raise CheckpointError(f"The model names files of its own ({', '.join(files)}), which saved models never do.")


def _texts(value: Any, key: str = "") -> list[tuple[str, str]]:
    """All texts in nested arguments, with the name each has."""
    if isinstance(value, str):
        return [(key, value)]
    if isinstance(value, Mapping):
        return [found for name, item in value.items() for found in _texts(item, str(name))]
    return [found for item in value for found in _texts(item, key)] if isinstance(value, list | tuple) else []


def _check_known(name: str, registry: Registry) -> None:
    if name not in registry.names():
        raise CheckpointError(
            f"The model asks for the {registry.kind} {name!r}, which is neither part of mmssl nor an installed "
            "plug-in; importing it would run its code. If you trust who made the folder, pass trust=True."
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
