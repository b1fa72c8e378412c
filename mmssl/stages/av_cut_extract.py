"""Stage 3 of recipes/av_sync, and of recipes/av_retrieval where it compares frames: cuts of clips, each encoded once.

Each encoder has a store of sound, with an entry for each clip and offset that some fold needs, and one of pictures,
with an entry for each clip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from mmssl.data.folds import Fold, read_folds
from mmssl.data.manifest import read_manifest
from mmssl.errors import ConfigError, DataError, InputError, MediaError
from mmssl.features.fingerprint import make_fingerprint
from mmssl.features.forward import split_clips
from mmssl.features.store import FeatureStore
from mmssl.stages.av_cuts import Cutter, fold_cuts, sound_key
from mmssl.stages.av_extract import FEATURES, POOLED, represent
from mmssl.stages.av_extract import extract as extract_whole
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO, given_by, has
from mmssl.stages.av_pretrain import Encoder, encoders
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json, write_json
from mmssl.stages.utterance_prepare import FOLDS, MANIFEST
from mmssl.types import Clip, Inputs, Padded, Representation
from mmssl.upstreams.base import load_upstream

_AT_ONCE = 8


def extract(context: Context) -> str:
    """Encode the cuts of all folds, and record in exp/NAME/av_features.json which store is whose.

    What a store holds already is kept. recipes/av_retrieval has the features of whole clips as well, and those alone
    where it compares clips.

    Raises:
        ConfigError: the main encoder takes one stream only, or a setting is wrong.
        MediaError: a clip cannot be used and data.on_error is "raise".
        DataError: no clip is left.
    """
    config = context.config
    records: dict[str, Any] = {}
    if "retrieval" in config:
        said = extract_whole(context)
        if config["retrieval"]["match"] != "frames":
            return said
        records = read_json(context.exp_dir / FEATURES)
    settings = config["retrieval"]["frames"] if "retrieval" in config else config["sync"]
    clips = [clip for clip in read_manifest(context.data / MANIFEST) if has(clip) == BOTH]
    folds = read_folds(context.data / FOLDS)
    for encoder in encoders(context):
        made = _of_encoder(context, encoder, clips, folds, settings)
        known = records.get(encoder.name, {"fingerprint": "", "skipped": []})
        skipped = {item["id"]: item for item in [*known["skipped"], *made["skipped"]]}
        # features of whole clips have a fingerprint of their own
        digests = [one["fingerprint"] for one in (known, made) if one["fingerprint"]]
        joined = {"skipped": list(skipped.values()), "fingerprint": "-".join(digests)}
        records[encoder.name] = {**made, **known, **joined}
    write_json(context.exp_dir / FEATURES, records)
    left_out = sum(len(record["skipped"]) for record in records.values())
    return f"{len(clips)} clips x {len(records)} encoders" + (f"; {left_out} clips skipped" if left_out else "")


def _of_encoder(
    context: Context, encoder: Encoder, clips: Sequence[Clip], folds: Sequence[Fold], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of an encoder, with its cuts where it takes both streams."""
    config = context.config
    upstream = load_upstream(encoder.target, seed=config["features"]["seed"], device=context.device(), **encoder.kwargs)
    spec, takes = upstream.spec, given_by(upstream.spec)
    record: dict[str, Any] = {
        "title": encoder.title,
        "role": encoder.role,
        "target": encoder.target,
        "kwargs": dict(encoder.kwargs),
        "statistics": "frames",
        "takes": takes,
        "sample_rate": spec.sample_rate,
        "video_fps": spec.video_fps,
        "fingerprint": "",
        "skipped": [],
    }
    if takes != BOTH:
        if encoder.role == "main":
            raise ConfigError(f"{encoder.title} takes {takes} only: choose an upstream of both.")
        return record
    reader = config["reader"]
    cutter = Cutter(upstream, settings["max_shift"], settings["least_frames"], reader["seconds"], reader["image_size"])
    stores = {name: _store(context, encoder, cutter, name) for name in (AUDIO, VIDEO)}
    filler = _Filler(cutter, stores, encoder.title, config["data"]["on_error"])
    usable, too_short = filler.long_enough(clips)
    if not usable and filler.skipped:
        raise DataError(f"{encoder.title} can use none of {len(clips)} clips. {filler.skipped[0]['reason']}")
    if not usable:
        raise DataError(
            f"{encoder.title}: all {len(clips)} clips are too short for {3 * cutter.max_shift + cutter.least_frames} "
            f"frames of {cutter.frame_shift:g} s, which is 3 max_shift + least_frames: lower them."
        )
    names = {clip.id for clip in usable}
    facts = {clip.id: (clip.speaker, str(clip.labels.get(config["label"]))) for clip in usable}
    wanted: dict[str, set[int]] = {clip.id: set() for clip in usable}
    for fold in folds:
        for _, sound, _, offset in (cut for cuts in fold_cuts(fold, names, facts, settings).values() for cut in cuts):
            wanted[sound].add(offset)
    filler.fill(usable, wanted)
    skipped = {item["id"] for item in filler.skipped}
    if not names - skipped:
        raise DataError(f"{encoder.title} can use none of {len(clips)} clips. {filler.skipped[0]['reason']}")
    log.info("   %s: %d cuts of %d clips computed", encoder.title, filler.done, len(usable) - len(skipped))
    record["skipped"] = filler.skipped
    record["fingerprint"] = "-".join(store.fingerprint.digest[:12] for store in stores.values())
    record["cuts"] = {
        "stores": {name: store.folder.relative_to(context.folder).as_posix() for name, store in stores.items()},
        "clips": sorted(names - skipped),
        "too_short": too_short,
        "frame_shift": cutter.frame_shift,
    }
    return record


def _store(context: Context, encoder: Encoder, cutter: Cutter, name: str) -> FeatureStore:
    """The store of the cuts' sound or pictures."""
    options: dict[str, Any] = {"given": f"cuts of {name}", "max_shift": cutter.max_shift, "seconds": cutter.longest}
    if context.config["reader"]["image_size"] is not None:
        options["image_size"] = context.config["reader"]["image_size"]
    fingerprint = make_fingerprint(
        cutter.upstream, kwargs=dict(encoder.kwargs), pooled=list(POOLED), streams=[name], **options
    )
    return FeatureStore.create(context.feats / f"{encoder.name}-{fingerprint.digest[:12]}-cuts-{name}", fingerprint)


class _Filler:
    """Encodes what is missing in the stores of an encoder.

    Args:
        cutter: of the encoder.
        stores: of sound and of pictures.
        title: of the encoder.
        on_error: "raise", or "skip" to list clips that cannot be used.
    """

    def __init__(self, cutter: Cutter, stores: Mapping[str, FeatureStore], title: str, on_error: str) -> None:
        self.cutter, self.stores, self.title, self.on_error = cutter, stores, title, on_error
        self.skipped: list[dict[str, Any]] = []
        self.done = 0

    def long_enough(self, clips: Sequence[Clip]) -> tuple[list[Clip], list[str]]:
        """Clips of which there are cuts, and the ids of those that are too short."""
        usable, short = [], []
        for clip in clips:
            with self._minding(clip):
                if self.cutter.size(clip):
                    usable.append(clip)
                else:
                    short.append(clip.id)
        return usable, short

    def fill(self, clips: Sequence[Clip], wanted: Mapping[str, set[int]]) -> None:
        """Add the pictures of every clip, and its sound at the wanted offsets."""
        with contextlib.ExitStack() as stack:
            writers = {name: stack.enter_context(store.writer("main")) for name, store in self.stores.items()}
            for clip in clips:
                late = [n for n in sorted(wanted[clip.id]) if sound_key(clip.id, n) not in self.stores[AUDIO]]
                seen = clip.id in self.stores[VIDEO]
                if seen and not late:
                    continue
                with self._minding(clip):
                    item = self.cutter.load(clip)
                    shown = [] if seen else self._encoded(VIDEO, [self.cutter.pictures(item)])
                    heard = self._encoded(AUDIO, [self.cutter.sound(item, offset) for offset in late])
                    for found in shown:
                        writers[VIDEO].add(clip.id, found)
                    for offset, found in zip(late, heard, strict=True):
                        writers[AUDIO].add(sound_key(clip.id, offset), found)
                    self.done += len(shown) + len(heard)
        for store in self.stores.values():
            store.refresh()

    def _encoded(self, name: str, cuts: Sequence[torch.Tensor]) -> list[Representation]:
        """The stream of that name of cuts of one length, given alone."""
        upstream = self.cutter.upstream
        found: list[Representation] = []
        for begin in range(0, len(cuts), _AT_ONCE):
            data = torch.stack(list(cuts[begin : begin + _AT_ONCE])).to(upstream.device)
            if name == VIDEO:
                data = data.float().div_(255)
            lengths = torch.full((len(data),), data.shape[1], device=data.device)
            given = Inputs(Padded(data, lengths)) if name == AUDIO else Inputs(video=Padded(data, lengths))
            layers = represent(upstream, given).get(name)
            if layers is None:
                raise ConfigError(
                    f"{self.title} gives no stream {name!r} of {name} alone: synchrony encodes sound and pictures "
                    "apart. Choose an upstream that takes either."
                )
            found += split_clips({name: layers}, len(data))
        return found

    @contextlib.contextmanager
    def _minding(self, clip: Clip) -> Iterator[None]:
        """List a clip that cannot be used, or stop at it."""
        try:
            yield
        except (MediaError, DataError, InputError) as error:
            if self.on_error == "raise":
                raise MediaError(
                    f"{self.title} cannot take the clip {clip.id!r}: {error} To leave such clips out and list them: "
                    "data.on_error=skip."
                ) from error
            self.skipped.append({"id": clip.id, "path": clip.video or clip.audio, "reason": str(error)})
