"""Looks at the training of recipes/ssl: a probe while it runs, the own task on unseen speakers after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.stages.context import Context, log
from mmssl.stages.ssl_setup import FOLDS, PROBE_MANIFEST, Iteration
from mmssl.training.readers import ClipReader
from mmssl.types import Clip
from mmssl.upstreams.base import Upstream

if TYPE_CHECKING:
    from mmssl.objectives.objective import Objective


def online_probe(context: Context, upstream: Upstream, reader: ClipReader) -> list[Any]:
    """The probe that `probing.online_every` asks for: it learns from training clips and is scored on development clips.

    Clips of the test part are never looked at during training. Of either part at most `probing.online_clips` clips are
    taken, evenly from its list, and of those the ones that the reader can use.

    Returns:
        A callback for `pretrain`, or nothing where none is asked for or the corpus has no labels.

    Raises:
        ConfigError: labels that are numbers, or a setting below 1.
        DataError: a part without labelled clips.
    """
    settings = context.config["probing"]
    every, most = settings["online_every"], settings["online_clips"]
    folds = read_folds(context.exp_dir / FOLDS)
    if every is None or not folds:
        return []
    if context.config["task"]["kind"] != "classification":
        raise ConfigError("probing.online_every is for labels that are classes: set it to null for numbers.")
    if every < 1 or most < 1:
        raise ConfigError(f"probing.online_every and online_clips must be at least 1, got {every} and {most}.")
    from mmssl.training.pretrain_health import OnlineProbe

    by_id = {clip.id: clip for clip in read_manifest(context.exp_dir / PROBE_MANIFEST)}
    known = [[by_id[name] for name in part if name in by_id] for part in (folds[0].train, folds[0].dev)]
    train, dev = ([clip for clip in _some(part, most) if reader.measure(clip) >= reader.least] for part in known)
    streams = settings["streams"] or [context.config["features"]["stream"]]
    stream = next((name for name in streams if name in upstream.spec.streams), next(iter(upstream.spec.streams)))
    return [OnlineProbe(train, dev, context.config["label"], every, stream=stream, reader=reader)]


def _some(clips: Sequence[Clip], most: int) -> list[Clip]:
    count = min(len(clips), most)
    return [clips[len(clips) * k // count] for k in range(count)]


def score_held_out(
    context: Context, iteration: Iteration, objective: Objective, reader: ClipReader
) -> dict[str, dict[str, float]] | None:
    """Loss and accuracy of the trained objective on the test part of the fold, see `score_objective`.

    Returns:
        None without a held-out part, for objectives that read label files, which only clips to train on have, and where
        several processes train.
    """
    from mmssl.training.pretrain_score import score_objective

    config = context.config
    folds = read_folds(context.exp_dir / FOLDS)
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if not folds or "test" not in config["held_out"] or iteration.source is not None or not alone:
        return None
    by_id = {clip.id: clip for clip in read_manifest(context.exp_dir / PROBE_MANIFEST)}
    clips = [by_id[name] for name in folds[0].test if name in by_id]
    settings = config["pretrain"]
    found = score_objective(
        objective.cpu(),
        [clip for clip in clips if reader.measure(clip) >= reader.least],
        reader,
        step=iteration.steps,
        batch_seconds=settings["batch_seconds"],
        batch_size=settings["batch_size"],
        group_by=settings["group_by"],
        group_size=settings["group_size"],
        labels=settings["labels"],
        on_error=config["data"]["on_error"],
        seed=settings["seed"],
    )
    for name, score in found.items():
        log.info("   held out: %s %.3f (%.3f to %.3f)", name, score["mean"], score["low"], score["high"])
    return found
