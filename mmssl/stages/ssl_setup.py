"""What the stages of recipes/ssl share: the plan of iterations, the encoder and the objective of each."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.random import isolated_rng
from mmssl.registry import OBJECTIVES, UPSTREAMS
from mmssl.stages.context import Context
from mmssl.types import Clip, UpstreamSpec

if TYPE_CHECKING:
    from mmssl.augment.base import Augmentation
    from mmssl.objectives.objective import Objective
    from mmssl.training.readers import ClipReader
    from mmssl.upstreams.base import Upstream

MANIFEST, PROBE_MANIFEST, FOLDS, CORPUS = "manifest.jsonl", "probe.jsonl", "folds.json", "corpus.json"
UNITS, CENTROIDS, TARGETS = "units", "centroids.safetensors", "targets.json"
RUN, SETTINGS, UPSTREAM, UNTRAINED = "run.json", "settings.json", "upstream", "untrained"
LOADER = "mmssl.upstreams.exported.load_exported"
PREVIOUS, INIT = "previous", "init"
AUDIO, FUSION = "audio", "fusion"
_KEYS = ("source", "layer", "stream", "clusters", "steps")


@dataclass(frozen=True)
class Iteration:
    """One training run of the plan.

    Attributes:
        number: from 1.
        steps: of training.
        source: name of the upstream whose features are clustered, "previous" for the encoder of the iteration before,
            "init" for the checkpoint that training starts from, or None for an objective that reads no label file.
        layer: of the source's stream.
        stream: of the source; None for the frames that fuse sound and pictures where it has them, else those of sound.
        clusters: how many.
    """

    number: int
    steps: int
    source: str | None = None
    layer: int = -1
    stream: str | None = "audio"
    clusters: int = 0


def reads_units(config: Mapping[str, Any]) -> bool:
    """Whether the objective reads a label file."""
    return "units" in inspect.signature(OBJECTIVES.resolve(config["objective"]["_target_"])).parameters


def iterations(config: Mapping[str, Any]) -> list[Iteration]:
    """The plan: one iteration, or those of `targets.iterations` for objectives that read label files.

    Raises:
        ConfigError: an iteration has an unknown key or a wrong value, or the first one builds on a previous one.
    """
    steps, given = config["pretrain"]["max_steps"], config["targets"]["iterations"]
    if not reads_units(config):
        if given:
            raise ConfigError(
                f"targets.iterations are for objectives that read label files; {config['objective']['_target_']} "
                "does not. Leave them out: targets.iterations=null."
            )
        return [Iteration(1, steps)]
    return [_iteration(k, entry, steps) for k, entry in enumerate(given or [{"source": "mfcc", "clusters": 100}], 1)]


def _iteration(number: int, entry: Any, steps: int) -> Iteration:
    where = f"targets.iterations, entry {number}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a mapping such as {{source: mfcc, clusters: 100}}, got {entry!r}.")
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f"{where}: no such key {key!r}.{did_you_mean(str(key), _KEYS)} Keys: {', '.join(_KEYS)}.")
    found = Iteration(number, **{"steps": steps, "source": "mfcc", "clusters": 100, "stream": None, **entry})
    for name, least in (("steps", 1), ("clusters", 2)):
        value = getattr(found, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{where}: {name} must be a whole number >= {least}, got {value!r}.")
    if isinstance(found.layer, bool) or not isinstance(found.layer, int):
        raise ConfigError(f"{where}: layer must be a whole number, negative ones from the end, got {found.layer!r}.")
    if number == 1 and found.source == PREVIOUS:
        raise ConfigError(f"{where}: there is no previous iteration; take features such as source: mfcc.")
    return found


def clustered_stream(iteration: Iteration, spec: UpstreamSpec) -> str:
    """Name of the stream whose layer is clustered for an iteration.

    Args:
        iteration: of the plan.
        spec: of the upstream that gives the features.

    Raises:
        ConfigError: the upstream has no such stream, the stream no such layer, or its tokens no time axis.
    """
    where = f"targets.iterations, entry {iteration.number}, source {iteration.source}"
    wanted = [FUSION, AUDIO] if iteration.stream is None else [iteration.stream]
    stream = next((name for name in wanted if name in spec.streams), None)
    streams = ", ".join(spec.streams)
    if stream is None:
        given = "none is given" if iteration.stream is None else f"got {iteration.stream!r}"
        raise ConfigError(f"{where}: stream must be one of {streams}, {given}.")
    found = spec.streams[stream]
    layers = found.num_layers
    if not -layers <= iteration.layer < layers:
        raise ConfigError(
            f"{where}: the stream {stream!r} has the layers 0 ... {layers - 1} (-1 for the last), got layer "
            f"{iteration.layer}. Streams: {streams}."
        )
    if not found.hop_lengths[iteration.layer] or found.tokens_per_frame > 1:
        raise ConfigError(
            f"{where}: the stream {stream!r} is a sequence of patches, not of one vector for each frame, and a label "
            f"file has one label for each frame. Streams: {streams}."
        )
    return stream


def folder_of(context: Context, number: int) -> Path:
    """Folder of an iteration."""
    return context.exp_dir / "iterations" / str(number)


def build_upstream(context: Context) -> Upstream:
    """The encoder before training: drawn from the seed, or the checkpoint `init`.

    Raises:
        ConfigError: the upstream takes no checkpoint.
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    system, init = context.systems[0], context.config["init"]
    with isolated_rng(context.config["pretrain"]["seed"]):
        if init is None:
            built = UPSTREAMS.build(system.target, **system.kwargs)
        else:
            target, arguments = description(context)
            built = UPSTREAMS.build(target, **arguments)
    return built.requires_grad_(True)


def description(context: Context) -> tuple[str, dict[str, Any]]:
    """What builds the encoder before training: a name or dotted path, and arguments."""
    from mmssl.upstreams.exported import is_exported

    system, init = context.systems[0], context.config["init"]
    if init is None:
        return system.target, dict(system.kwargs)
    if is_exported(init):
        return LOADER, {"path": str(init)}
    takes = inspect.signature(UPSTREAMS.resolve(system.target)).parameters
    argument = next((name for name in ("checkpoint", "path") if name in takes), None)
    if argument is None:
        raise ConfigError(
            f"init={init}: the upstream {system.name} loads no checkpoint. Give a folder that this recipe exported, or "
            "an upstream with a checkpoint argument, such as upstream=hubert."
        )
    return system.target, {**system.kwargs, argument: str(init)}


def exported_as(context: Context) -> tuple[str, dict[str, Any]]:
    """What an exported folder of the encoder says of itself: never the loader of another exported folder."""
    from mmssl.upstreams.checkpoints import read_json
    from mmssl.upstreams.exported import DESCRIPTION

    target, arguments = description(context)
    if target == LOADER:
        described = read_json(Path(arguments["path"]) / DESCRIPTION)
        return described["upstream"], dict(described["arguments"])
    return target, arguments


def build_objective(context: Context, upstream: Upstream, iteration: Iteration, rate: float | None) -> Objective:
    """The objective around an encoder.

    Args:
        context: the experiment.
        upstream: what is trained.
        iteration: its place in the plan.
        rate: of its label file, in Hz.

    Raises:
        ConfigError: the encoder does not fit the objective, or a setting is wrong.
        DataError: the label file is missing.
    """
    node = context.config["objective"]
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    if iteration.source is not None:
        options |= _unit_options(folder_of(context, iteration.number) / UNITS, iteration.clusters, rate)
    with isolated_rng(context.config["pretrain"]["seed"]):
        return OBJECTIVES.build(node["_target_"], upstream, **options)


def _unit_options(path: Path, clusters: int, rate: float | None) -> dict[str, Any]:
    return {"units": str(path), "num_units": clusters, "units_rate": rate}


def check_fit(context: Context) -> None:
    """Build encoder, objective and augmentation once, so that what does not fit stops the run before any work is done.

    Raises:
        ConfigError: they do not fit each other.
    """
    from mmssl.objectives.targets.units import write_units

    node, plan = context.config["objective"], iterations(context.config)
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    upstream = build_upstream(context)
    augment = augmentation(context.config)
    if augment is not None and "waveforms" not in upstream.spec.inputs:
        raise ConfigError(
            f"augment changes sound, and this encoder takes {' and '.join(upstream.spec.inputs)}: leave it out."
        )
    if augment is not None and not augment.keeps_length:
        raise ConfigError(
            "augment changes the length of clips, which labels and pictures of their frames would not follow: leave "
            "out changes of speed and crops (augment=voices and augment=speaker keep it; reader.max_seconds crops)."
        )
    for iteration in plan:
        if iteration.source in (PREVIOUS, INIT):
            clustered_stream(iteration, upstream.spec)
    with tempfile.TemporaryDirectory() as folder, isolated_rng(0):
        if plan[0].source is not None:
            write_units(Path(folder) / UNITS, {"none": [0]})
            options |= _unit_options(Path(folder) / UNITS, plan[0].clusters, None)
        OBJECTIVES.build(node["_target_"], upstream, **options)


def augmentation(config: Mapping[str, Any]) -> Augmentation | None:
    """What changes each crop of sound: the section `augment`; None for a chain without steps.

    Raises:
        ConfigError: an argument that does not fit.
    """
    from mmssl.augment.base import Chain
    from mmssl.augment.build import build_augmentation

    built = build_augmentation(config["augment"])
    return None if isinstance(built, Chain) and not built.steps else built


def make_reader(config: Mapping[str, Any], upstream: Upstream) -> ClipReader:
    """The reader of the section `reader`.

    Raises:
        ConfigError: an unknown key, or a value that is missing.
    """
    from mmssl.training.readers import reader_for

    allowed = list(inspect.signature(reader_for).parameters)[1:]
    for key in config["reader"]:
        if key not in allowed:
            raise ConfigError(f"reader.{key}: no such key.{did_you_mean(key, allowed)} Keys: {', '.join(allowed)}.")
    given: dict[str, Any] = {key: value for key, value in config["reader"].items() if value is not None}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return reader_for(upstream.spec, **given)


def check_media(clips: Sequence[Clip], upstream: Upstream, objective: str) -> None:
    """Make sure that the corpus has what the encoder takes.

    Raises:
        DataError: no clip has it.
    """
    has = {
        "waveforms": any(clip.audio is not None or clip.video is not None for clip in clips),
        "video": any(clip.video is not None for clip in clips),
        "images": any(clip.image is not None for clip in clips),
    }
    for kind in upstream.spec.inputs:
        if not has[kind]:
            present = ", ".join(name for name, there in has.items() if there) or "no media"
            raise DataError(
                f"The objective {objective} trains {type(upstream).__name__} on {' and '.join(upstream.spec.inputs)}, "
                f"and none of the {len(clips)} clips has {kind}; the corpus has {present}. Choose another objective= "
                "or upstream=, or a corpus with them."
            )
