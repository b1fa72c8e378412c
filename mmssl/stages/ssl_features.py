"""Pooled features for the probe of recipes/ssl: of encoders, of whatever they take, and of plain pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import MediaError
from mmssl.features.extract import ExtractOptions, extract
from mmssl.features.fingerprint import make_fingerprint
from mmssl.features.store import FeatureStore
from mmssl.media.images import load_image
from mmssl.media.video import load_video
from mmssl.probing.data import ProbeData, targets_of
from mmssl.stages.context import Context
from mmssl.stages.ssl_setup import make_reader
from mmssl.training.batches import TensorBatches
from mmssl.types import Clip, Layers, Representation
from mmssl.upstreams.base import Upstream, load_upstream

POOLED = ("mean", "std")
_PIXELS = 8


def features_of(
    context: Context, name: str, target: str, arguments: Mapping[str, Any], clips: Sequence[Clip]
) -> FeatureStore:
    """A store with mean and standard deviation over time of all layers and streams of clips.

    Sound alone goes through the feature engine, whole clips. Of anything with pictures the stretch in the middle of
    the clip that the reader of the training takes is used.
    """
    upstream = load_upstream(target, seed=context.config["features"]["seed"], device=context.device(), **arguments)
    fingerprint = make_fingerprint(upstream, kwargs=dict(arguments), frames=False, pooled=list(POOLED))
    folder = context.feats / f"{name}-{fingerprint.digest[:12]}"
    if tuple(upstream.spec.inputs) == ("waveforms",):
        options: dict[str, Any] = {"frames": False, "pooled": POOLED, "on_error": "skip"}
        extract(upstream, clips, folder, options=ExtractOptions(progress=False), **options)
        return FeatureStore(folder)
    reader = make_reader(context.config, upstream)
    # what the middle is depends on the length of a stretch
    folder = folder.with_name(f"{folder.name}-{reader.most}")
    store = FeatureStore.create(folder, fingerprint)
    missing = [clip for clip in clips if clip.id not in store]
    if missing:
        with store.writer("main") as writer:
            for clip in missing:
                extent = reader.measure(clip)
                size = extent if reader.most is None else min(extent, reader.most)
                item = reader.load(clip, (extent - size) // 2, size)
                writer.add(clip.id, _encode(upstream, reader.collate([item])))
        store.refresh()
    return store


@torch.no_grad()
def _encode(upstream: Upstream, inputs: Any) -> Representation:
    """The representation of one clip without the batch axis."""
    device = upstream.device
    found = upstream(
        waveforms=None if inputs.waveforms is None else inputs.waveforms.data.to(device),
        lengths=None if inputs.waveforms is None else inputs.waveforms.lengths.to(device),
        video=None if inputs.video is None else inputs.video.data.to(device),
        video_lengths=None if inputs.video is None else inputs.video.lengths.to(device),
        images=None if inputs.images is None else inputs.images.to(device),
    )
    return {
        stream: Layers(
            tuple(h[0, : int(n)].float().cpu() for h, n in zip(layers.hidden_states, layers.lengths, strict=True)),
            tuple(n[0].cpu() for n in layers.lengths),
        )
        for stream, layers in found.items()
    }


def pixels_of(clips: Sequence[Clip], label: str, values: bool = False) -> ProbeData:
    """Pictures of 8 x 8 as features: of images, or the mean over the frames of videos.

    Raises:
        MediaError: a clip has no picture, or cannot be read.
    """
    rows = torch.stack([_pixels(clip) for clip in clips])
    targets, classes = targets_of(clips, label, values)
    ones = torch.ones(len(clips), dtype=torch.int64)
    batches = TensorBatches(Layers((rows[:, None],), (ones,)), targets)
    return ProbeData(tuple(clip.id for clip in clips), batches, classes, (0,))


def _pixels(clip: Clip) -> Tensor:
    if clip.image is not None:
        pictures = load_image(str(Path(clip.image)))[None]
    elif clip.video is not None:
        pictures, _ = load_video(clip.video, fps=5.0, start=clip.start, duration=clip.duration)
    else:
        raise MediaError(f"The clip {clip.id!r} has no picture.")
    return F.adaptive_avg_pool2d(pictures.float(), _PIXELS).mean(0).flatten()
