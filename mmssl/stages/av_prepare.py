"""Stage 1 of the audio-visual recipes: corpus -> clips with sound and pictures, folds, and clips to pretrain on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmssl.data.folds import write_folds
from mmssl.data.manifest import read_manifest, write_manifest
from mmssl.errors import DataError, MediaError
from mmssl.stages.av_media import has, lacking, missing_text, seconds_of, with_sound
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED, check_labels, folds_of, run_local
from mmssl.types import Clip

PRETRAINING = "pretraining.jsonl"
PRETRAIN = "pretrain"
"""The split of clips that are for pretraining alone; they need no label."""


def prepare(context: Context) -> str:
    """Write data/manifest.jsonl, pretraining.jsonl, folds.json, skipped.json and corpus.json.

    Raises:
        DataError: the corpus is not where it should be, a clip has no label, lacks sound or pictures and
            data.missing is "raise", or a fold has an empty part.
        MediaError: a file is unreadable and data.on_error is "raise".
    """
    config = context.config
    label, kind = config["label"], config["task"]["kind"]
    found = _cropped(context, run_local(context))
    clips = [clip for clip in found if clip.split != PRETRAIN]
    extra = [clip for clip in found if clip.split == PRETRAIN]
    if not clips:
        raise DataError(f"All {len(found)} clips are of the split {PRETRAIN!r}: none is left for the task.")
    check_labels(clips, label, kind)
    for clip in clips:
        labels_of(clip, label, kind)
    usable, skipped, seconds = _usable(clips, config["data"])
    more, more_skipped, _ = _usable(extra, {**config["data"], "missing": "skip"}) if extra else ([], [], 0.0)
    _check_speakers(usable, more)
    if kind == "classification" and len({str(clip.labels[label]) for clip in usable}) < 2:
        raise DataError(f"Only one class of {label!r} is left among the {len(usable)} clips that can be used.")
    folds = folds_of(usable, config)
    context.data.mkdir(parents=True, exist_ok=True)
    write_manifest(context.data / MANIFEST, usable)
    # a manifest is never empty: without clips of their own, pretraining takes the training part of a single fold
    inside = {name for fold in folds[:1] for name in (*fold.train, *fold.dev)} if len(folds) == 1 else set()
    own = more or [clip for clip in usable if clip.id in inside and has(clip) == "both"]
    (context.data / PRETRAINING).unlink(missing_ok=True)
    if own:
        write_manifest(context.data / PRETRAINING, own)
    write_folds(context.data / FOLDS, folds)
    write_json(context.data / SKIPPED, [*skipped, *more_skipped])
    summary = _summary(usable, label, kind, seconds) | {"pretraining": len(own), "disjoint": bool(more)}
    write_json(context.data / CORPUS, summary)
    if summary["missing"]:
        log.info("   WARNING: %s; they are used with what they have", summary["missing"])
    for item in [*skipped, *more_skipped][:5]:
        log.info("   skipped %s: %s", item["id"], item["reason"])
    classes = f", {len(summary['per_class'])} classes" if summary["per_class"] else ""
    return (
        f"{summary['clips']} clips, {summary['hours']:.2f} h, {summary['speakers']} speakers{classes}, "
        f"{len(folds)} fold{'s' if len(folds) > 1 else ''}; {len(own)} clips to pretrain on; {len(skipped)} skipped"
    )


def _cropped(context: Context, clips: Sequence[Clip]) -> list[Clip]:
    """Clips with their faces cut out, where a detector is named."""
    faces = context.config["faces"]
    if faces["detector"] is None or not any(clip.video is not None for clip in clips):
        return list(clips)
    from mmssl.faces.prepare import prepare_faces

    options = {key: value for key, value in faces.items() if value is not None}
    seen = [clip for clip in clips if clip.video is not None]
    summary = prepare_faces(seen, context.data / "faces", **options)
    log.info("   faces: %s", summary)
    if summary.broken and context.config["data"]["on_error"] == "raise":
        name, reason = next(iter(summary.broken.items()))
        raise MediaError(
            f"{len(summary.broken)} clips have no face that could be cut out, among them {name!r}: {reason} "
            "To leave such clips out: data.on_error=skip."
        )
    cut = {clip.id: clip for clip in read_manifest(summary.manifest)}
    return [cut.get(clip.id, clip) for clip in clips if clip.video is None or clip.id in cut]


def _usable(clips: Sequence[Clip], settings: Mapping[str, Any]) -> tuple[list[Clip], list[dict[str, Any]], float]:
    """Clips that can be opened and have what they should, what was left out, and the seconds of the former."""
    usable, skipped, seconds = [], [], 0.0
    for clip in clips:
        try:
            whole = with_sound(clip)
            if has(whole) is None:
                raise DataError(f"The clip {clip.id!r} has neither audio nor video.")
            extent = seconds_of(whole)
        except (MediaError, DataError) as error:
            if settings["on_error"] == "raise":
                raise MediaError(f"{error} To leave such clips out and list them: data.on_error=skip.") from error
            skipped.append({"id": clip.id, "path": clip.video or clip.audio, "reason": str(error)})
            continue
        if has(whole) != "both" and settings["missing"] == "skip":
            reason = missing_text(lacking([whole]), 1)
            skipped.append({"id": clip.id, "path": clip.video or clip.audio, "reason": reason})
            continue
        usable.append(whole)
        seconds += extent
    if not usable:
        raise DataError(f"None of the {len(clips)} clips can be used. The first: {skipped[0]['reason']}")
    without = lacking(usable)
    if settings["missing"] == "raise" and any(without.values()):
        raise DataError(
            f"{missing_text(without, len(usable))}. Leave such clips out with data.missing=skip; recipes/av also uses "
            "them with what they have: data.missing=keep."
        )
    for name, ids in without.items():
        if len(ids) == len(usable):
            raise DataError(f"None of the {len(usable)} clips has {name}: this is a recipe for audio-visual corpora.")
    return usable, skipped, seconds


def labels_of(clip: Clip, label: str, kind: str) -> list[str]:
    """Names of a clip's class, or of all its labels where it may have several; none where labels are numbers.

    Raises:
        DataError: a task of several labels, and the clip does not have a list of names.
    """
    value = clip.labels[label]
    if kind == "classification":
        return [str(value)]
    if kind != "multilabel":
        return []
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) and v for v in value):
        raise DataError(
            f"task=multilabel needs a list of names, but {clip.id!r} has {label}={value!r}. Choose another label=NAME, "
            "or task=classification."
        )
    return list(value)


def _check_speakers(clips: Sequence[Clip], extra: Sequence[Clip]) -> None:
    shared = {clip.speaker for clip in clips if clip.speaker is not None} & {clip.speaker for clip in extra}
    if shared:
        raise DataError(
            f"{len(shared)} speakers are in the clips to pretrain on and in those of the task, among them "
            f"{sorted(map(str, shared))[0]!r}: mend local/prepare.py, so that test speakers are unseen."
        )


def _summary(clips: Sequence[Clip], label: str, kind: str, seconds: float) -> dict[str, Any]:
    classes = Counter(name for clip in clips for name in set(labels_of(clip, label, kind)))
    return {
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips if clip.speaker is not None}),
        "hours": seconds / 3600,
        "per_class": dict(sorted(classes.items())),
        "missing": missing_text(lacking(clips), len(clips)),
    }
