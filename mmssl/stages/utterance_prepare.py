"""Stage 1 of a recipe on utterances: corpus -> manifest, folds and what had to be left out."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmssl.data.manifest import write_manifest
from mmssl.data.splits import Fold, make_folds, write_folds
from mmssl.errors import ConfigError, DataError, MediaError, StageError, did_you_mean
from mmssl.media.audio import audio_info
from mmssl.stages.context import Context, log
from mmssl.stages.files import write_json
from mmssl.types import Clip

MANIFEST, FOLDS, SKIPPED, CORPUS = "manifest.jsonl", "folds.json", "skipped.json", "corpus.json"


def prepare(context: Context) -> str:
    """Write data/manifest.jsonl, folds.json, skipped.json and corpus.json.

    Raises:
        DataError: the corpus is not where it should be, a clip has no label, or a fold has an empty part.
        MediaError: a file is unreadable and data.on_error is "raise".
    """
    config = context.config
    clips = run_local(context)
    check_labels(clips, config["label"], config["task"]["kind"])
    usable, skipped, seconds = _readable(clips, config["data"]["on_error"])
    folds = folds_of(usable, config)
    context.data.mkdir(parents=True, exist_ok=True)
    write_manifest(context.data / MANIFEST, usable)
    write_folds(context.data / FOLDS, folds)
    write_json(context.data / SKIPPED, skipped)
    summary = _summary(usable, config, seconds)
    write_json(context.data / CORPUS, summary)
    for item in skipped:
        log.info("   skipped %s: %s", item["id"], item["reason"])
    classes = f", {len(summary['per_class'])} classes" if summary["per_class"] else ""
    left_out = f"; {len(skipped)} unreadable files skipped" if skipped else ""
    return (
        f"{summary['clips']} clips, {summary['hours']:.2f} h, {summary['speakers']} speakers{classes}, "
        f"{len(folds)} folds{left_out}"
    )


def run_local(context: Context) -> list[Clip]:
    """The clips that the corpus's local/prepare.py finds."""
    path = context.folder / "local" / "prepare.py"
    if not path.is_file():
        raise StageError(f"{path} is missing: it holds prepare(root, folder, **options) -> list of clips.")
    spec = importlib.util.spec_from_file_location(f"prepare_{context.folder.parent.name}", path)
    if spec is None or spec.loader is None:
        raise StageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up there
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Callable[..., list[Clip]] = module.prepare
    options = dict(context.config["data"]["options"])
    allowed = list(inspect.signature(function).parameters)[2:]
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"data.options.{name}: the corpus has no such option.{did_you_mean(name, allowed)} "
                f"It takes: {', '.join(allowed) or 'none'}."
            )
    clips = function(context.data_root, context.data, **options)
    if not clips:
        raise DataError(f"{path} found no clip in {context.data_root}.")
    return clips


def check_labels(clips: Sequence[Clip], label: str, kind: str) -> None:
    """Make sure that ids are unique and that every clip has a label of the kind that the task needs.

    Raises:
        DataError: they are not, or it has not, or all clips are of one class.
    """
    repeated = [name for name, count in Counter(clip.id for clip in clips).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} clip ids are not unique, among them {repeated[0]!r}: mend local/prepare.py.")
    names = sorted({name for clip in clips for name in clip.labels})
    if label not in names:
        raise DataError(f"No clip has the label {label!r}.{did_you_mean(label, names)} Labels: {', '.join(names)}.")
    without = [clip.id for clip in clips if clip.labels.get(label) is None]
    if without:
        raise DataError(
            f"{len(without)} of {len(clips)} clips have no label {label!r}, among them {without[0]!r}. "
            f"Choose another label=NAME, or have local/prepare.py leave them out."
        )
    if kind == "regression":
        wrong = [c for c in clips if isinstance(c.labels[label], bool) or not isinstance(c.labels[label], int | float)]
        if wrong:
            raise DataError(
                f"task=regression needs numbers, but {wrong[0].id!r} has {label}={wrong[0].labels[label]!r}. "
                f"Choose another label=NAME, or task=classification."
            )
    elif len({str(clip.labels[label]) for clip in clips}) < 2:
        raise DataError(
            f"The label {label!r} has the same class {clips[0].labels[label]!r} for all {len(clips)} clips."
        )


def _readable(clips: Sequence[Clip], on_error: str) -> tuple[list[Clip], list[dict[str, Any]], float]:
    """The clips whose audio can be opened, what was left out, and the seconds of the former."""
    usable, skipped, seconds = [], [], 0.0
    for clip in clips:
        try:
            if clip.audio is None:
                raise DataError(f"The clip {clip.id!r} has no audio.")
            info = audio_info(clip.audio)
        except (MediaError, DataError) as error:
            if on_error == "raise":
                raise MediaError(f"{error} To leave such files out and list them: data.on_error=skip.") from error
            skipped.append({"id": clip.id, "path": clip.audio, "reason": str(error)})
            continue
        usable.append(clip)
        seconds += clip.duration if clip.duration is not None else max(info.duration - clip.start, 0.0)
    if not usable:
        raise MediaError(f"None of the {len(clips)} files can be read. The first: {skipped[0]['reason']}")
    return usable, skipped, seconds


def folds_of(clips: Sequence[Clip], config: Mapping[str, Any]) -> list[Fold]:
    """The folds of the section `protocol`, with fewer where fewer groups are there.

    Raises:
        DataError: no clip has the group, or a fold has an empty part.
    """
    protocol, k = config["protocol"], config["protocol"]["k"]
    group = protocol["group"]
    present = {clip.group(group) for clip in clips}
    if present == {None}:
        names = sorted({"speaker", "split", *(name for clip in clips for name in clip.labels)})
        raise DataError(
            f"protocol.group={group}: no clip has it.{did_you_mean(group, names)} Groups: {', '.join(names)}."
        )
    given = protocol["groups_per_fold"]
    if given is not None and protocol["scheme"] == "group_kfold":
        absent = {str(value) for values in given.values() for value in values} - present
        if absent:
            log.info("   protocol.groups_per_fold is not used: %s %s not there", group, ", ".join(sorted(absent)))
            given = None
    if protocol["scheme"] == "group_kfold" and given is None and k is not None and len(present) < k:
        log.info("   %d folds instead of %d: no more values of %s are there", len(present), k, group)
        k = len(present)
    return make_folds(
        clips,
        scheme=protocol["scheme"],
        group=group,
        label=config["label"] if config["task"]["kind"] == "classification" else None,
        k=k if given is None else None,
        dev_groups=protocol["dev_groups"],
        groups_per_fold=given,
        seed=protocol["seed"],
    )


def _summary(clips: Sequence[Clip], config: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    per_class: dict[str, int] = {}
    if config["task"]["kind"] == "classification":
        per_class = dict(sorted(Counter(str(clip.labels[config["label"]]) for clip in clips).items()))
    return {
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips if clip.speaker is not None}),
        "hours": seconds / 3600,
        "per_class": per_class,
    }
