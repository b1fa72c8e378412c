"""Stage 3 of the audio-visual recipes: every layer of every stream of every encoder, once per clip.

An encoder has up to three stores: of clips of which both sound and pictures were given, of sound alone, of pictures
alone. A clip that has both is in the first. Where an encoder makes more of one input than the stream of that name
(AV-HuBERT's fusion goes without either), such clips are in the other two as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mmssl.data.manifest import read_manifest
from mmssl.errors import DataError, InputError, MediaError
from mmssl.features.fingerprint import Fingerprint, make_fingerprint
from mmssl.features.forward import split_clips
from mmssl.features.store import FeatureStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO, given_by, has, load_inputs, longest
from mmssl.stages.av_pretrain import Encoder, encoders
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json
from mmssl.stages.utterance_prepare import MANIFEST
from mmssl.types import Clip, Inputs, Layers, Representation, StreamSpec
from mmssl.upstreams.base import Upstream, load_upstream

FEATURES = "av_features.json"
POOLED = ("mean", "std")


def extract(context: Context) -> str:
    """Fill feats/<encoder>-<fingerprint>-<inputs>/, and record in exp/NAME/av_features.json which store is whose.

    What a store holds already is kept. Frames are stored where the statistics are "frames".

    Raises:
        MediaError: a clip cannot be used and data.on_error is "raise".
        DataError: no clip is left.
    """
    clips = read_manifest(context.data / MANIFEST)
    records = {encoder.name: _extract_one(context, encoder, clips) for encoder in encoders(context)}
    write_json(context.exp_dir / FEATURES, records)
    skipped = sum(len(record["skipped"]) for record in records.values())
    left_out = f"; {skipped} clips skipped" if skipped else ""
    return f"{len(clips)} clips x {len(records)} encoders{left_out}"


def _extract_one(context: Context, encoder: Encoder, clips: Sequence[Clip]) -> dict[str, Any]:
    settings = context.config["features"]
    upstream = load_upstream(encoder.target, seed=settings["seed"], device=context.device(), **encoder.kwargs)
    takes = given_by(upstream.spec)
    statistics = statistics_of(context.config)
    groups = _groups(clips, takes)
    separate = takes == BOTH and bool(groups[BOTH]) and _makes_more(upstream, groups[BOTH][0], context)
    if separate:
        for view in (AUDIO, VIDEO):
            groups[view] = groups[view] + groups[BOTH]
    record: dict[str, Any] = {
        "title": encoder.title,
        "role": encoder.role,
        "target": encoder.target,
        "kwargs": dict(encoder.kwargs),
        "statistics": statistics,
        "takes": takes,
        "separate": separate,
        "sample_rate": upstream.spec.sample_rate,
        "video_fps": upstream.spec.video_fps,
        "stores": {},
        "skipped": [],
    }
    digests = []
    for view, members in groups.items():
        if members:
            store, skipped = _fill(context, encoder, upstream, view, members, statistics == "frames")
            record["stores"][view] = store.folder.relative_to(context.folder).as_posix()
            record["skipped"] += skipped
            digests.append(store.fingerprint.digest)
    if not record["stores"]:
        raise DataError(f"No clip has what {encoder.title} takes: {takes}.")
    record["fingerprint"] = "-".join(digest[:12] for digest in digests)
    return record


def statistics_of(config: Mapping[str, Any]) -> str:
    """ "frames", "mean" or "mean_std": what of a clip the features keep.

    "auto" is "mean_std" for fusions of means, and "frames" for those that look at frames.
    """
    wanted = config["features"]["statistics"]
    if wanted != "auto":
        return str(wanted)
    from mmssl.interfaces.fusion import build_fusion

    node = config["fusion"]
    own = {key: value for key, value in node.items() if not key.startswith("_")}
    names = (AUDIO, VIDEO, "fusion") if node["_target_"].endswith("HicmaeFusion") else (AUDIO, VIDEO)
    built = build_fusion(node["_target_"], {name: StreamSpec((8,), (1,)) for name in names}, **own)
    return "mean_std" if built.affine else "frames"


def _groups(clips: Sequence[Clip], takes: str) -> dict[str, list[Clip]]:
    groups: dict[str, list[Clip]] = {BOTH: [], AUDIO: [], VIDEO: []}
    for clip in clips:
        there = str(has(clip))
        if takes in (BOTH, there):
            groups[there].append(clip)
        elif there == BOTH:
            groups[takes].append(clip)
    return groups


def _makes_more(upstream: Upstream, clip: Clip, context: Context) -> bool:
    """Whether the upstream makes other streams of one input than that of its name."""
    for view in (AUDIO, VIDEO):
        with contextlib.suppress(InputError):
            if set(_represent(upstream, _only(clip, view), view, context)) - {view}:
                return True
    return False


def _only(clip: Clip, view: str) -> Clip:
    return clip if view == BOTH else replace(clip, video=None) if view == AUDIO else replace(clip, audio=None)


def _fill(
    context: Context, encoder: Encoder, upstream: Upstream, view: str, clips: Sequence[Clip], frames: bool
) -> tuple[FeatureStore, list[dict[str, Any]]]:
    """The store of clips of which `view` is given, and what had to be left out."""
    on_error = context.config["data"]["on_error"]
    options: dict[str, Any] = {"seconds": longest(upstream.spec, context.config["reader"]["seconds"]), "given": view}
    if context.config["reader"]["image_size"] is not None:
        options["image_size"] = context.config["reader"]["image_size"]
    whole = make_fingerprint(upstream, kwargs=dict(encoder.kwargs), frames=frames, pooled=list(POOLED), **options)
    store: FeatureStore | None = None
    skipped: list[dict[str, Any]] = []
    folder = context.feats / f"{encoder.name}-{whole.digest[:12]}-{view}"
    if folder.is_dir():
        store = FeatureStore(folder)
        clips = [clip for clip in clips if clip.id not in store]
    with contextlib.ExitStack() as stack:
        writer = None
        for clip in clips:
            try:
                found = _represent(upstream, _only(clip, view), view, context)
            except (MediaError, DataError, InputError) as error:
                if on_error == "raise":
                    raise MediaError(
                        f"{encoder.title} cannot take the clip {clip.id!r}: {error} To leave such clips out and list "
                        "them: data.on_error=skip."
                    ) from error
                skipped.append({"id": clip.id, "path": clip.video or clip.audio, "reason": str(error)})
                continue
            if writer is None:
                store = FeatureStore.create(folder, _of_streams(whole, found))
                writer = stack.enter_context(store.writer("main"))
            writer.add(clip.id, found)
    if store is None:
        raise DataError(f"{encoder.title} can use none of {len(clips)} clips. The first: {skipped[0]['reason']}")
    store.refresh()
    log.info("   %s, %s: %d clips computed", encoder.title, view, len(clips) - len(skipped))
    return store, skipped


def _of_streams(whole: Fingerprint, found: Representation) -> Fingerprint:
    """The fingerprint with the streams that were made."""
    streams = {name: kept for name, kept in whole.fields["streams"].items() if name in found}
    return Fingerprint({**whole.fields, "streams": streams})


def _represent(upstream: Upstream, clip: Clip, view: str, context: Context) -> Representation:
    """The representation of one clip without the batch axis."""
    reader = context.config["reader"]
    inputs = load_inputs([clip], upstream.spec, view, reader["seconds"], reader["image_size"])
    return split_clips(represent(upstream, inputs), 1)[0]


@torch.no_grad()
def represent(upstream: Upstream, inputs: Inputs) -> dict[str, Layers]:
    """All layers of a batch of sound, pictures or both, on the CPU."""
    device, sound, video = upstream.device, inputs.waveforms, inputs.video
    found = upstream(
        waveforms=None if sound is None else sound.data.to(device),
        lengths=None if sound is None else sound.lengths.to(device),
        video=None if video is None else video.data.to(device),
        video_lengths=None if video is None else video.lengths.to(device),
    )
    return {stream: layers.to("cpu") for stream, layers in found.items()}
