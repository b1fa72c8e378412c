"""Stage 1 of recipes/spk: corpus -> manifest, speakers of training, development and test, and trial lists."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.data.files import natural_key, some
from mmssl.data.folds import Fold, read_folds, write_folds
from mmssl.data.manifest import read_manifest, write_manifest
from mmssl.data.trials import Trials, check_trials, make_trials, read_trials, write_trials
from mmssl.errors import DataError
from mmssl.media.audio import audio_info
from mmssl.stages import utterance_prepare
from mmssl.stages.context import Context, log
from mmssl.stages.files import read_json, write_json
from mmssl.stages.spk_setup import PARTS, TRIALS, TRIALS_SUMMARY, by_value, parts_of, speaker_of
from mmssl.stages.spk_silence import trimmed
from mmssl.stages.utterance_prepare import CORPUS, FOLDS, MANIFEST, SKIPPED
from mmssl.types import Clip


def prepare(context: Context) -> str:
    """Write manifest, folds, and data/trials/NAME.txt, given by local/prepare.py or made of the test speakers.

    Raises:
        DataError: a speaker is in two parts, a clip is too short, or a trial list is wrong.
        MediaError: a file is unreadable and data.on_error is "raise".
    """
    folder = context.data / TRIALS
    # lists of a former run must not pass as given ones
    shutil.rmtree(folder, ignore_errors=True)
    said = utterance_prepare.prepare(context)
    folds = read_folds(context.data / FOLDS)
    if len(folds) != 1:
        raise DataError(
            f"recipes/spk trains one model, but the protocol makes {len(folds)} folds: choose protocol=predefined, "
            "and have local/prepare.py give every clip the split train or test."
        )
    trim_silence(context)
    leave_out_short(context)
    parts = parts_of(context)
    check_disjoint(parts)
    given = sorted(folder.glob("*.txt"), key=lambda path: natural_key(path.name))
    speakers = {clip.id: speaker_of(clip) for clips in parts.values() for clip in clips}
    if given:
        lists = {path.stem: read_trials(path) for path in given}
    else:
        lists = make_lists(parts["test"], context.config["trials"])
        folder.mkdir(parents=True, exist_ok=True)
        for name, trials in lists.items():
            write_trials(folder / f"{name}.txt", trials)
    summary = {name: check_list(name, trials, parts, speakers) for name, trials in lists.items()}
    write_json(context.data / TRIALS_SUMMARY, {"given": bool(given), "lists": summary})
    for name, row in summary.items():
        for note in row["notes"]:
            log.info("   note on the trials %s: %s", name, note)
    counts = ", ".join(f"{len({speaker_of(c) for c in parts[part]})} {part}" for part in PARTS)
    shown = "; ".join(f"{name}: {row['trials']} trials, {row['targets']} target" for name, row in summary.items())
    return f"{said}; speakers: {counts}; {shown}"


def trim_silence(context: Context) -> None:
    """Cut silence off the ends of the manifest's clips where `speaker.trim_silence` asks for it.

    Raises:
        MediaError: a clip cannot be read and data.on_error is "raise".
        DataError: a part is empty without such clips.
    """
    below = context.config["speaker"]["trim_silence"]
    if below is None:
        return
    clips = read_manifest(context.data / MANIFEST)
    found, unreadable = trimmed(clips, below, context.config["data"]["on_error"])
    before = sum(seconds_of(clip) for clip in clips if clip.id not in unreadable)
    leave_out(context, found, {clip.id: clip.audio for clip in clips}, unreadable)
    after = sum(seconds_of(clip) for clip in found)
    log.info("   silence at both ends of clips left out: %.2f of %.2f h stay", after / 3600, before / 3600)


def leave_out_short(context: Context) -> None:
    """Take clips that are too short out of manifest and folds and list them, or stop.

    Raises:
        DataError: there is one and data.on_error is "raise", or a part is empty without them.
    """
    least, clips = context.config["speaker"]["min_seconds"], read_manifest(context.data / MANIFEST)
    lengths = {clip.id: seconds_of(clip) for clip in clips}
    short = [clip for clip in clips if lengths[clip.id] < least]
    if not short:
        return
    first = short[0]
    if context.config["data"]["on_error"] == "raise":
        raise DataError(
            f"{len(short)} of {len(clips)} clips are shorter than speaker.min_seconds={least:g} s, among them "
            f"{first.id!r} of {lengths[first.id]:.3f} s. Lower it, or have such clips left out and listed: "
            "data.on_error=skip."
        )
    reasons = {c.id: f"It lasts {lengths[c.id]:.3f} s, shorter than {least:g} s." for c in short}
    left = [clip for clip in clips if clip.id not in reasons]
    leave_out(context, left, {clip.id: clip.audio for clip in clips}, reasons)
    log.info("   %d clips shorter than %g s left out, see data/skipped.json", len(short), least)


def leave_out(
    context: Context, left: Sequence[Clip], paths: Mapping[str, str | None], reasons: Mapping[str, str]
) -> None:
    """Write manifest, folds and summary of the clips that are left, and list the others.

    Args:
        context: of the stage.
        left: clips to keep.
        paths: id -> file, of all clips.
        reasons: id -> why, of clips that are left out.

    Raises:
        DataError: a part is empty without them.
    """
    (fold,) = read_folds(context.data / FOLDS)
    kept = {part: tuple(name for name in getattr(fold, part) if name not in reasons) for part in PARTS}
    for part, names in kept.items():
        if not names:
            why = next(iter(reasons.values()))
            raise DataError(f"All {part} clips had to be left out. One of the {len(reasons)} reasons: {why}")
    write_manifest(context.data / MANIFEST, left)
    write_folds(context.data / FOLDS, [Fold(fold.name, **kept, notes=fold.notes)])
    skipped = read_json(context.data / SKIPPED)
    skipped += [{"id": name, "path": paths[name], "reason": reason} for name, reason in reasons.items()]
    write_json(context.data / SKIPPED, skipped)
    corpus = read_json(context.data / CORPUS) | {
        "clips": len(left),
        "speakers": len({clip.speaker for clip in left}),
        "hours": sum(seconds_of(clip) for clip in left) / 3600,
    }
    write_json(context.data / CORPUS, corpus)


def seconds_of(clip: Clip) -> float:
    """Duration of a clip's sound."""
    if clip.duration is not None:
        return clip.duration
    return max(audio_info(str(clip.audio)).duration - clip.start, 0.0)


def check_disjoint(parts: Mapping[str, Sequence[Clip]]) -> None:
    """Make sure that no speaker is in two parts.

    Raises:
        DataError: one is.
    """
    speakers = {part: {speaker_of(clip) for clip in parts[part]} for part in PARTS}
    for first, second in (("train", "test"), ("train", "dev"), ("dev", "test")):
        shared = sorted(speakers[first] & speakers[second], key=natural_key)
        if shared:
            raise DataError(
                f"{len(shared)} speakers are both in {first} and in {second}: {some(shared)}. Error rates would be "
                "those of speakers that the model knows: give whole speakers one split in local/prepare.py."
            )


def make_lists(clips: Sequence[Clip], settings: Mapping[str, Any], seed: int | None = None) -> dict[str, Trials]:
    """Trial lists of clips, one for each value of the label `trials.within`.

    Args:
        clips: of speakers that are not trained on.
        settings: the section `trials`.
        seed: of the draw; None for that of the section.

    Raises:
        DataError: no value has two speakers and two clips of one of them.
    """
    drawn = settings["seed"] if seed is None else seed
    lists, refused = {}, []
    for name, group in by_value(clips, settings["within"]).items():
        try:
            trials = make_trials({c.id: speaker_of(c) for c in group}, settings["per_speaker"], drawn)
        except DataError as error:
            refused.append(f"{name}: {error}")
            continue
        lists[_safe(name)] = trials
    if not lists:
        raise DataError(f"No trials can be made. {' '.join(refused)} Set more speakers aside.")
    for reason in refused:
        log.info("   no trials of %s", reason)
    return lists


def check_list(
    name: str, trials: Trials, parts: Mapping[str, Sequence[Clip]], speakers: Mapping[str, str]
) -> dict[str, Any]:
    """Numbers and notes of a list of test trials.

    Raises:
        DataError: a clip is missing, one class only, labels that contradict the speakers, or speakers that are
            trained on.
    """
    where = Path(TRIALS) / f"{name}.txt"
    try:
        notes = check_trials(trials, speakers, speakers)
    except DataError as error:
        raise DataError(f"data/{where}: {error}") from error
    named = dict.fromkeys((*trials.enrol, *trials.test))
    seen = {speaker_of(clip) for part in ("train", "dev") for clip in parts[part]}
    shared = sorted({speakers[clip] for clip in named} & seen, key=natural_key)
    if shared:
        raise DataError(
            f"data/{where}: {len(shared)} speakers of the trials are in training or development: {some(shared)}. "
            "Take them out of the training clips, or their trials out of the list."
        )
    return {
        "trials": len(trials),
        "targets": sum(trials.is_target),
        "speakers": len({speakers[clip] for clip in named}),
        "clips": len(named),
        "notes": list(notes),
    }


def _safe(name: str) -> str:
    """A value of a label as a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "_"
