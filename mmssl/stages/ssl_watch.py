"""The online probe of recipes/ssl: how good the encoder's features are while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmssl.data.folds import read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError
from mmssl.stages.context import Context
from mmssl.stages.ssl_setup import FOLDS, PROBE_MANIFEST
from mmssl.training.readers import ClipReader
from mmssl.types import Clip
from mmssl.upstreams.base import Upstream


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
