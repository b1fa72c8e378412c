"""Stage 1 of recipes/ssl: corpus -> clips to train on, and labelled clips and a fold for the probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmssl.data.folds import Fold, write_folds
from mmssl.data.manifest import write_manifest
from mmssl.data.splits import make_folds
from mmssl.errors import ConfigError, DataError, MediaError, did_you_mean
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json
from mmssl.stages.ssl_setup import (
    CORPUS,
    FOLDS,
    MANIFEST,
    PROBE_MANIFEST,
    build_upstream,
    check_fit,
    check_media,
    iterations,
    make_reader,
)
from mmssl.stages.utterance_prepare import run_local
from mmssl.types import Clip

if TYPE_CHECKING:
    from mmssl.training.readers import ClipReader


def prepare(context: Context) -> str:
    """Write manifest.jsonl, probe.jsonl, folds.json and corpus.json into the experiment's folder.

    Raises:
        ConfigError: encoder, objective and settings do not fit each other.
        DataError: the corpus is not where it should be, or lacks what the encoder takes.
        MediaError: a file is unreadable and data.on_error is "raise".
    """
    config = context.config
    iterations(config)
    check_fit(context)
    upstream = build_upstream(context)
    clips = run_local(context)
    _check_ids(clips)
    check_media(clips, upstream, config["objective"]["_target_"].rpartition(".")[2])
    clips = [_with_sound(clip, upstream.spec.inputs) for clip in clips]
    usable, skipped, seconds = _measured(clips, make_reader(config, upstream), config["data"]["on_error"])
    fold = _fold(usable, context)
    trained = _training_clips(usable, fold, config["held_out"], config["protocol"]["group"])
    labelled = [] if fold is None else [clip for clip in usable if clip.id in {*fold.train, *fold.dev, *fold.test}]
    folder = context.exp_dir
    write_manifest(folder / MANIFEST, trained)
    # a manifest is never empty; without labels nothing reads this one
    write_manifest(folder / PROBE_MANIFEST, labelled or trained)
    write_folds(folder / FOLDS, [] if fold is None else [fold])
    summary = {
        "clips": len(trained),
        "labelled": len(labelled),
        "held_out": len(usable) - len(trained),
        "hours": None if seconds is None else seconds / 3600,
        "speakers": len({clip.speaker for clip in trained if clip.speaker is not None}),
        "skipped": skipped,
    }
    write_json(folder / CORPUS, summary)
    for item in skipped[:5]:
        log.info("   skipped %s: %s", item["id"], item["reason"])
    length = "" if seconds is None else f", {seconds / 3600:.2f} h in all"
    return (
        f"{len(trained)} clips to train on, {len(usable) - len(trained)} held out{length}; "
        f"{len(labelled)} labelled for the probe; {len(skipped)} skipped"
    )


def _check_ids(clips: Sequence[Clip]) -> None:
    repeated = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} clip ids are not unique, among them {repeated[0]!r}: mend local/prepare.py.")


def _with_sound(clip: Clip, inputs: Sequence[str]) -> Clip:
    """The clip whose sound is in its video file."""
    return replace(clip, audio=clip.video) if "waveforms" in inputs and clip.audio is None else clip


def _measured(
    clips: Sequence[Clip], reader: ClipReader, on_error: str
) -> tuple[list[Clip], list[dict[str, Any]], float | None]:
    """Clips that the reader can use, what was left out, and the seconds of the former where they have any."""
    usable, skipped, units = [], [], 0
    for clip in clips:
        try:
            extent = reader.measure(clip)
        except (MediaError, DataError) as error:
            if on_error == "raise":
                raise MediaError(f"{error} To leave such clips out and list them: data.on_error=skip.") from error
            skipped.append({"id": clip.id, "reason": str(error)})
            continue
        if extent < reader.least:
            skipped.append({"id": clip.id, "reason": f"too short: {extent} of {reader.least} samples or video frames"})
            continue
        usable.append(clip)
        units += extent
    if not usable:
        raise DataError(f"None of the {len(clips)} clips can be used. The first: {skipped[0]['reason']}")
    return usable, skipped, None if reader.rate is None else units / reader.rate


def _fold(clips: Sequence[Clip], context: Context) -> Fold | None:
    """The fold whose test part is held out of pretraining; None where the corpus is used without labels."""
    config = context.config
    label, protocol = config["label"], config["protocol"]
    if label is None:
        return None
    labelled = [clip for clip in clips if clip.labels.get(label) is not None]
    if not labelled:
        names = sorted({name for clip in clips for name in clip.labels})
        raise DataError(
            f"No clip has the label {label!r}.{did_you_mean(label, names)} Labels: {', '.join(names) or 'none'}; "
            "label=null goes without a probe."
        )
    given = protocol["groups_per_fold"]
    folds = make_folds(
        labelled,
        scheme=protocol["scheme"],
        group=protocol["group"],
        label=label,
        k=protocol["k"] if given is None and protocol["scheme"] == "group_kfold" else None,
        dev_groups=protocol["dev_groups"],
        groups_per_fold=given,
        seed=protocol["seed"],
    )
    wanted = config["probing"]["fold"]
    if wanted is None:
        return folds[0]
    for fold in folds:
        if fold.name == str(wanted):
            return fold
    raise ConfigError(f"probing.fold={wanted}: there is no such fold; there are {', '.join(f.name for f in folds)}.")


def _training_clips(clips: Sequence[Clip], fold: Fold | None, held_out: Sequence[str], group: str) -> list[Clip]:
    """Clips that are neither in a held-out part of the fold nor of a speaker (or other group) of one."""
    if fold is None:
        return list(clips)
    out = {name for part in held_out for name in getattr(fold, part)}
    groups = {value for clip in clips if clip.id in out and (value := clip.group(group)) is not None}
    kept = [clip for clip in clips if clip.id not in out and clip.group(group) not in groups]
    if not kept:
        raise DataError(
            f"Nothing is left to train on: the held-out parts ({', '.join(held_out)}) have every {group}. Choose "
            "another protocol, or held_out=[test]."
        )
    return kept
