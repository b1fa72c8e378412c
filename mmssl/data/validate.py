"""Every fault of a list of clips, with the way to mend each."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.files import some
from mmssl.data.manifest import MEDIA_FIELDS
from mmssl.errors import MmsslError, did_you_mean
from mmssl.files import is_url
from mmssl.types import Clip

# as mmssl.media.audio: a segment may pass the end of its file by this many seconds
END_TOLERANCE = 0.05


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        clip_id: of the clip at fault; None where the corpus as a whole is.
        field: of the clip: "audio", "start", "labels.emotion" ...
        problem: what is wrong and what was given.
        fix: what to do.
    """

    clip_id: str | None
    field: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.clip_id or 'all clips'}: {self.field}: {self.problem} {self.fix}"


def validate(
    clips: Iterable[Clip],
    *,
    probe: Callable[[str], Any] | None = None,
    required_labels: Sequence[str] = (),
    require_speaker: bool = False,
) -> list[Fault]:
    """Look for all faults, not only the first.

    Args:
        clips: as `read_manifest` gives them.
        probe: path of a sound file -> object with `.duration` in seconds, such as `mmssl.media.audio.audio_info`.
            With it, unreadable sound and segments past the end of the file are found; without, files need only exist.
            URLs are never looked at.
        required_labels: every clip must have them, and each must have at least two classes.
        require_speaker: every clip must have a speaker.

    Returns:
        The faults of each clip in the order of the clips, then those of the corpus. Empty where nothing is wrong.
    """
    corpus = list(clips)
    faults: list[Fault] = []
    totals = _Totals(probe)
    first: dict[tuple[Any, ...], str] = {}
    ids: Counter[str] = Counter()
    unlabelled = [name for name in required_labels if all(_absent(clip.labels.get(name)) for clip in corpus)]
    for clip in corpus:
        ids[clip.id] += 1
        if ids[clip.id] == 2:
            faults.append(Fault(clip.id, "id", "another clip has this id.", "Give every clip an id of its own."))
        faults += _media_faults(clip, totals)
        faults += _segment_faults(clip, totals)
        owner = first.setdefault(_content(clip, totals), clip.id)
        if owner != clip.id and any(getattr(clip, field) for field in MEDIA_FIELDS):
            problem = f"the same file and segment as clip {owner!r}."
            faults.append(Fault(clip.id, "id", problem, "Remove one of the two, or correct the path or segment."))
        for name in required_labels:
            if name not in unlabelled and _absent(clip.labels.get(name)):
                hint = did_you_mean(name, set(clip.labels) - {name})
                fix = f"Label the clip or leave it out.{hint}"
                faults.append(Fault(clip.id, f"labels.{name}", f"no label {name!r}.", fix))
        faults += _label_faults(clip)
        if require_speaker and not clip.speaker:
            fix = "Give the speaker, so that folds can keep speakers apart."
            faults.append(Fault(clip.id, "speaker", "no speaker.", fix))
    faults += [_no_such_label(name, corpus) for name in unlabelled if corpus]
    faults += _single_classes(corpus, [name for name in required_labels if name not in unlabelled])
    return faults + _look_alikes(corpus)


class _Totals:
    """Durations of sound files, each probed once."""

    def __init__(self, probe: Callable[[str], Any] | None):
        self._probe = probe
        self._known: dict[str, float | str] = {}

    def of(self, path: str | None) -> float | str | None:
        """Seconds; or, as a string, why the file cannot be read; or None where nothing is known."""
        if self._probe is None or path is None or is_url(path) or not Path(path).is_file():
            return None
        if path not in self._known:
            try:
                self._known[path] = float(self._probe(path).duration)
            except (MmsslError, OSError) as error:
                self._known[path] = str(error)
        return self._known[path]


def _absent(value: Any) -> bool:
    return value is None or value == ""


def _media_faults(clip: Clip, totals: _Totals) -> list[Fault]:
    paths = {field: getattr(clip, field) for field in MEDIA_FIELDS}
    if not any(paths.values()):
        return [Fault(clip.id, "audio", "no audio, video or image.", "Give at least one path, or leave the clip out.")]
    faults = []
    for field, path in paths.items():
        if not path or is_url(path):
            continue
        if not Path(path).exists():
            fix = "Correct the path (relative paths are seen from the manifest's folder), or leave the clip out."
            faults.append(Fault(clip.id, field, f"{path} does not exist.", fix))
        elif not Path(path).is_file():
            faults.append(Fault(clip.id, field, f"{path} is not a file.", "Give the path of a file."))
        elif Path(path).stat().st_size == 0:
            faults.append(Fault(clip.id, field, f"{path} is empty.", "Copy the file again, or leave the clip out."))
    total = totals.of(clip.audio)
    if isinstance(total, str) and not faults:
        faults.append(Fault(clip.id, "audio", f"cannot be read: {total}", "Replace the file, or leave the clip out."))
    return faults


def _segment_faults(clip: Clip, totals: _Totals) -> list[Fault]:
    start, duration = clip.start, clip.duration
    if not math.isfinite(start) or start < 0:
        return [Fault(clip.id, "start", f"starts at {start} s.", "Give a time from 0 on, in seconds.")]
    if duration is not None and not duration > 0:
        return [
            Fault(clip.id, "duration", f"lasts {duration} s.", "Give a duration above 0, or none for the whole file.")
        ]
    if duration is not None and not math.isfinite(duration):
        return [Fault(clip.id, "duration", f"lasts {duration} s.", "Give none for the whole file.")]
    total = totals.of(clip.audio)
    if not isinstance(total, float):
        return []
    if total <= 0:
        return [
            Fault(clip.id, "audio", f"{clip.audio} holds no sound (0 s).", "Replace the file, or leave the clip out.")
        ]
    if start >= total:
        problem = f"starts at {start:g} s, but {clip.audio} ends at {total:g} s."
        return [Fault(clip.id, "start", problem, "Correct the segment (seconds, not samples), or the file.")]
    if duration is not None and start + duration > total + END_TOLERANCE:
        problem = f"ends at {start + duration:g} s, but {clip.audio} ends at {total:g} s."
        return [Fault(clip.id, "duration", problem, "Correct the segment (seconds, not samples), or the file.")]
    return []


def _label_faults(clip: Clip) -> list[Fault]:
    bad = [n for n, v in clip.labels.items() if isinstance(v, float) and not math.isfinite(v)]
    return [Fault(clip.id, f"labels.{n}", f"is {clip.labels[n]}.", "Give a number, or remove the label.") for n in bad]


def _content(clip: Clip, totals: _Totals) -> tuple[Any, ...]:
    """What a clip is made of: its files, wherever links lead, and where it starts and ends."""
    files = [p if not p or is_url(p) else os.path.realpath(p) for p in (clip.audio, clip.video, clip.image)]
    end = None if clip.duration is None else clip.start + clip.duration
    total = totals.of(clip.audio)
    if isinstance(total, float) and end is not None and abs(end - total) <= END_TOLERANCE:
        end = None
    return (*files, round(clip.start, 6), None if end is None else round(end, 6))


def _no_such_label(name: str, corpus: Sequence[Clip]) -> Fault:
    names = sorted({n for clip in corpus for n in clip.labels} - {name})
    fix = f"Labels there are: {', '.join(names) or 'none'}.{did_you_mean(name, names)}"
    return Fault(None, f"labels.{name}", f"no clip has the label {name!r}.", fix)


def _single_classes(corpus: Sequence[Clip], names: Sequence[str]) -> list[Fault]:
    faults = []
    for name in names:
        values = {str(clip.labels[name]) for clip in corpus if not _absent(clip.labels.get(name))}
        if len(values) == 1:
            problem = f"all clips have the same value, {next(iter(values))!r}."
            fix = "There is nothing to tell apart: use another label, or more of the corpus."
            faults.append(Fault(None, f"labels.{name}", problem, fix))
    return faults


def _look_alikes(corpus: Sequence[Clip]) -> list[Fault]:
    """Values that differ only in case, white space or Unicode form: most often one class, or speaker, written twice."""
    counts: dict[str, Counter[str]] = {}
    for clip in corpus:
        fields = {"speaker": clip.speaker, "split": clip.split} | {f"labels.{n}": v for n, v in clip.labels.items()}
        for field, value in fields.items():
            if isinstance(value, str) and value:
                counts.setdefault(field, Counter())[value] += 1
    faults = []
    for field, values in counts.items():
        alike: dict[str, list[str]] = {}
        for value in values:
            plain = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
            alike.setdefault(plain, []).append(value)
        for group in alike.values():
            if len(group) > 1:
                listed = some(sorted(group), form=lambda v, n=values: f"{v!r} ({n[v]} clips)")  # type: ignore[misc]
                fix = "Write one value the same way everywhere."
                faults.append(Fault(None, field, f"values differ only in case or white space: {listed}.", fix))
    return faults
