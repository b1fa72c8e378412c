"""Stage 2 of recipes/ssl: label files from clustering, for objectives that read them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.features.cluster import fit_clusters, label_clips
from mmssl.features.cluster_quality import judge_units
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.store import FeatureStore
from mmssl.metrics.clusters import usage
from mmssl.objectives.targets.units import write_units
from mmssl.registry import UPSTREAMS
from mmssl.stages.context import Context, log
from mmssl.stages.files import digest, read_json, write_json
from mmssl.stages.ssl_setup import (
    AUDIO,
    CENTROIDS,
    INIT,
    LOADER,
    MANIFEST,
    PREVIOUS,
    TARGETS,
    UNITS,
    UPSTREAM,
    Iteration,
    clustered_stream,
    description,
    folder_of,
    iterations,
)
from mmssl.types import Clip


def targets(context: Context) -> str:
    """Make the label file of every iteration that does not build on a trained encoder; the others follow in stage 3."""
    plan = iterations(context.config)
    if plan[0].source is None:
        write_json(context.exp_dir / TARGETS, {"needed": False})
        return "none needed: the objective makes its own targets"
    done = [make_units(context, iteration) for iteration in plan if iteration.source != PREVIOUS]
    write_json(context.exp_dir / TARGETS, {"needed": True, "made": [record["iteration"] for record in done]})
    later = len(plan) - len(done)
    note = f"; {later} more from the encoder of the iteration before, during training" if later else ""
    return f"label files of {len(done)} iterations{note}"


def make_units(context: Context, iteration: Iteration) -> dict[str, Any]:
    """Cluster the features of an iteration's source and write units, centroids.safetensors and targets.json.

    What is there already for the same settings is kept.

    Returns:
        The content of targets.json: settings, rate in Hz, usage_entropy, used, and purities where there are alignments.
    """
    config, folder = context.config, folder_of(context, iteration.number)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in config["targets"].items() if key != "iterations"}
    clips = read_manifest(context.exp_dir / MANIFEST)
    iteration, store_folder, fingerprint = _features(context, clips, iteration)
    depends = digest([asdict(iteration), settings, fingerprint, sorted(clip.id for clip in clips)])
    if (folder / TARGETS).is_file() and (folder / UNITS).is_file():
        kept = read_json(folder / TARGETS)
        if kept["digest"] == depends:
            return {"stream": iteration.stream, **kept}
    store = FeatureStore(store_folder)
    ids = [clip.id for clip in clips if clip.id in store]
    alignments = settings.pop("alignments")
    layer, stream = iteration.layer, str(iteration.stream)
    clusters = fit_clusters(store, iteration.clusters, layer=layer, stream=stream, ids=ids, **settings)
    labelled = label_clips(store, clusters, ids)
    entropy, used = usage(labelled.counts)
    quality = None
    if alignments is not None and clusters.rate is not None:
        quality = judge_units(labelled.units, context.folder / alignments, clusters.rate, iteration.clusters)
    clusters.save(folder / CENTROIDS)
    write_units(folder / UNITS, {name: own.tolist() for name, own in labelled.units.items()})
    record = {
        "digest": depends,
        "iteration": iteration.number,
        "source": iteration.source,
        "stream": clusters.stream,
        "layer": clusters.layer,
        "clusters": iteration.clusters,
        "rate": clusters.rate,
        "frames": int(labelled.counts.sum()),
        "usage_entropy": entropy,
        "used": used,
        "quality": None if quality is None else asdict(quality),
    }
    write_json(folder / TARGETS, record)
    log.info("   %s", describe(record))
    return record


def describe(record: dict[str, Any]) -> str:
    """One line on a label file."""
    text = (
        f"iteration {record['iteration']}: {record['clusters']} clusters of {record['source']}, {record['stream']}, "
        f"layer {record['layer']}, over {record['frames']} frames; {record['used']} used, entropy of use "
        f"{record['usage_entropy']:.2f} of 1"
    )
    if record["quality"] is not None:
        found = record["quality"]
        text += f"; phone purity {found['phone_purity']:.3f}, cluster purity {found['cluster_purity']:.3f}, "
        text += f"PNMI {found['pnmi']:.3f}"
    return text


def _source(context: Context, iteration: Iteration) -> tuple[str, dict[str, Any]]:
    """What gives the features: the encoder of the iteration before, the checkpoint `init`, or an upstream."""
    if iteration.source == PREVIOUS:
        return LOADER, {"path": str(folder_of(context, iteration.number - 1) / UPSTREAM)}
    if iteration.source == INIT:
        if context.config["init"] is None:
            raise ConfigError("targets.iterations: source init needs a checkpoint to start from: init=PATH.")
        return description(context)
    return str(iteration.source), {"deltas": 2} if iteration.source == "mfcc" else {}


def _features(context: Context, clips: list[Clip], iteration: Iteration) -> tuple[Iteration, Path, str]:
    """A store with the frames of one layer of all clips.

    Returns:
        The iteration with the stream's name, the store's folder and its fingerprint.
    """
    from mmssl.upstreams.base import load_upstream

    target, arguments = _source(context, iteration)
    UPSTREAMS.resolve(target)
    built = load_upstream(target, device=context.device(), **arguments)
    stream = clustered_stream(iteration, built.spec)
    if "waveforms" in built.spec.inputs:
        clips = [replace(clip, audio=clip.audio or clip.video) for clip in clips]
        if any(clip.audio is None for clip in clips):
            raise ConfigError(
                f"targets.iterations, entry {iteration.number}: {iteration.source} takes sound, and clips without any "
                "are among those to train on."
            )
    depends = [target, arguments if target != LOADER else _content(arguments["path"]), iteration.layer]
    depends += [] if stream == AUDIO else [stream]
    folder = context.feats / f"targets-{digest(depends)[:12]}"
    summary = extract(
        built,
        clips,
        folder,
        frames=True,
        pooled=(),
        layers=[iteration.layer],
        streams=[stream],
        on_error=context.config["data"]["on_error"],
        options=ExtractOptions(progress=False),
    )
    return replace(iteration, stream=stream), folder, summary.fingerprint


def _content(folder: str) -> str:
    from mmssl.stages.files import input_digest

    return input_digest([path for path in Path(folder).iterdir() if path.is_file()])
