"""What a corpus holds, and what would make its scores mean less than they seem to."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mmssl.data.files import natural_key, some
from mmssl.data.folds import PARTS, Fold
from mmssl.errors import DataError, did_you_mean
from mmssl.files import is_url
from mmssl.types import Clip

# without a label to look at, string labels with at most this many values are taken for classes
_MOST_CLASSES = 50


@dataclass(frozen=True)
class DurationStatistics:
    """Durations of the clips for which one is known, in seconds."""

    min: float
    median: float
    mean: float
    max: float


@dataclass(frozen=True)
class LabelCounts:
    """How often each class of a label occurs.

    Attributes:
        name: of the label.
        total: class -> clips.
        missing: clips without the label.
        imbalance: clips of the largest class over clips of the smallest.
        per_part: part ("train", "fold1/test" ...) -> class -> clips, zero included.
        per_speaker: speaker -> class -> clips, zero included.
    """

    name: str
    total: dict[str, int]
    missing: int
    imbalance: float
    per_part: dict[str, dict[str, int]]
    per_speaker: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Overlap:
    """Speakers, or copies of the same audio, in two parts at once.

    Attributes:
        fold: name of the fold; "" for the splits of the manifest.
        parts: the two parts.
        speakers: in both.
        duplicates: clip ids of audio that is in both, one group a copy.
    """

    fold: str
    parts: tuple[str, str]
    speakers: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Audit:
    """Result of `audit`.

    Attributes:
        clips: number of clips.
        speakers: number of speakers.
        without_speaker: clips whose speaker is not known.
        hours: sum of the known durations.
        durations: None where none is known.
        without_duration: clips whose duration is not known.
        parts: part -> number of clips.
        labels: one for each label looked at.
        overlaps: of every two parts that share a speaker or the same audio.
        duplicates: groups of clip ids with the same bytes of audio and the same segment.
        unreadable: clips whose file could not be read for its checksum.
        checksum: whether duplicates were looked for.
    """

    clips: int
    speakers: int
    without_speaker: int
    hours: float
    durations: DurationStatistics | None
    without_duration: int
    parts: dict[str, int]
    labels: tuple[LabelCounts, ...]
    overlaps: tuple[Overlap, ...]
    duplicates: tuple[tuple[str, ...], ...]
    unreadable: tuple[str, ...]
    checksum: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def render(self) -> str:
        """All of it as text for a terminal."""
        lines = [
            f"clips     {self.clips}",
            f"speakers  {self.speakers}" + _besides(self.without_speaker, "without a speaker"),
            f"hours     {self.hours:.3f}" + _besides(self.without_duration, "without a known duration"),
        ]
        if self.durations is not None:
            d = self.durations
            lines.append(f"seconds   min {d.min:.2f}  median {d.median:.2f}  mean {d.mean:.2f}  max {d.max:.2f}")
        for label in self.labels:
            note = _besides(label.missing, "without it")
            lines += ["", f"label {label.name}: largest / smallest class = {label.imbalance:.2f}{note}"]
            rows = {"all": label.total} | label.per_part | {f"speaker {s}": c for s, c in label.per_speaker.items()}
            lines += _table(["", *label.total], [[name, *map(str, c.values())] for name, c in rows.items()])
        lines += ["", "overlap between parts"]
        for overlap in self.overlaps:
            where = f"  {overlap.fold + ': ' if overlap.fold else ''}{' and '.join(overlap.parts)} share "
            if overlap.speakers:
                lines.append(f"{where}{len(overlap.speakers)} speakers: {some(overlap.speakers, 20)}")
            if overlap.duplicates:
                listed = some(overlap.duplicates, 10, form=" = ".join)
                lines.append(f"{where}{len(overlap.duplicates)} pieces of the same audio: {listed}")
        if not self.overlaps:
            lines.append("  none" if self.parts else "  not known: the clips have no split, and no folds were given")
        lines += ["", "duplicate audio"]
        lines += [f"  {' = '.join(group)}" for group in self.duplicates]
        if not self.duplicates:
            lines.append("  none" if self.checksum else "  not looked for")
        if self.unreadable:
            lines.append(f"  {len(self.unreadable)} clips whose file cannot be read: {some(self.unreadable)}")
        return "\n".join(lines)


def audit(
    clips: Iterable[Clip],
    *,
    label: str | None = None,
    folds: Sequence[Fold] | None = None,
    durations: Mapping[str, float] | None = None,
    checksum: bool = True,
) -> Audit:
    """Count and compare what a corpus holds.

    Args:
        clips: of the corpus.
        label: to count classes of; None takes every label of strings with at most 50 values.
        folds: whose train, dev and test are compared; None compares the values of `Clip.split`.
        durations: clip id -> seconds; `Clip.duration` serves where a clip is not in it.
        checksum: read every file (audio, or else video or image) to find copies under other names.

    Raises:
        DataError: no clip has the label, or a fold names a clip that is not there.
    """
    corpus = list(clips)
    by_id = {clip.id: clip for clip in corpus}
    groups = _parts(by_id, folds)
    seconds = [s for clip in corpus if (s := (durations or {}).get(clip.id, clip.duration)) is not None]
    known = sorted({clip.speaker for clip in corpus if clip.speaker}, key=natural_key)
    duplicates, unreadable = _duplicates(corpus) if checksum else ((), ())
    return Audit(
        clips=len(corpus),
        speakers=len(known),
        without_speaker=sum(not clip.speaker for clip in corpus),
        hours=sum(seconds) / 3600,
        durations=_statistics(seconds),
        without_duration=len(corpus) - len(seconds),
        parts={_name(*key): len(ids) for key, ids in groups.items()},
        labels=tuple(_count(name, corpus, by_id, groups, known) for name in _label_names(corpus, label)),
        overlaps=_overlaps(by_id, groups, duplicates),
        duplicates=duplicates,
        unreadable=unreadable,
        checksum=checksum,
    )


def _parts(by_id: Mapping[str, Clip], folds: Sequence[Fold] | None) -> dict[tuple[str, str], list[str]]:
    """(fold, part) -> clip ids."""
    if folds is None:
        names = {clip.split for clip in by_id.values() if clip.split}
        order = [p for p in PARTS if p in names] + sorted(names - set(PARTS), key=natural_key)
        return {("", name): [i for i, clip in by_id.items() if clip.split == name] for name in order}
    for fold in folds:
        unknown = [i for part in PARTS for i in getattr(fold, part) if i not in by_id]
        if unknown:
            raise DataError(
                f"Fold {fold.name!r} names clips that are not in the manifest: {some(unknown)}. "
                f"Make the folds again from this manifest."
            )
    return {(fold.name, part): list(getattr(fold, part)) for fold in folds for part in PARTS}


def _name(fold: str, part: str) -> str:
    return f"{fold}/{part}" if fold else part


def _statistics(seconds: Sequence[float]) -> DurationStatistics | None:
    if not seconds:
        return None
    return DurationStatistics(min(seconds), statistics.median(seconds), statistics.fmean(seconds), max(seconds))


def _label_names(corpus: Sequence[Clip], label: str | None) -> list[str]:
    names = list(dict.fromkeys(name for clip in corpus for name in clip.labels))
    if label is not None:
        if label not in names:
            raise DataError(f"No clip has the label {label!r}.{did_you_mean(label, names)} Labels: {', '.join(names)}.")
        return [label]
    values = {name: [clip.labels[name] for clip in corpus if clip.labels.get(name) is not None] for name in names}
    return [n for n, v in values.items() if v and all(isinstance(x, str) for x in v) and len(set(v)) <= _MOST_CLASSES]


def _count(
    name: str,
    corpus: Sequence[Clip],
    by_id: Mapping[str, Clip],
    groups: Mapping[tuple[str, str], Sequence[str]],
    speakers: Sequence[str],
) -> LabelCounts:
    def count(some_clips: Iterable[Clip]) -> Counter[str]:
        return Counter(str(c.labels[name]) for c in some_clips if c.labels.get(name) is not None)

    total = count(corpus)
    classes = sorted(total, key=natural_key)
    per_speaker: dict[str, list[Clip]] = {speaker: [] for speaker in speakers}
    for clip in corpus:
        if clip.speaker:
            per_speaker[clip.speaker].append(clip)

    def row(counted: Counter[str]) -> dict[str, int]:
        return {c: counted[c] for c in classes}

    return LabelCounts(
        name=name,
        total=row(total),
        missing=len(corpus) - total.total(),
        imbalance=max(total.values()) / min(total.values()) if total else 1.0,
        per_part={_name(*key): row(count(by_id[i] for i in ids)) for key, ids in groups.items()},
        per_speaker={speaker: row(count(members)) for speaker, members in per_speaker.items()},
    )


def _overlaps(
    by_id: Mapping[str, Clip],
    groups: Mapping[tuple[str, str], Sequence[str]],
    duplicates: Sequence[tuple[str, ...]],
) -> tuple[Overlap, ...]:
    speakers = {key: {s for i in ids if (s := by_id[i].speaker)} for key, ids in groups.items()}
    members = {key: set(ids) for key, ids in groups.items()}
    found = []
    for first, second in combinations(groups, 2):
        if first[0] != second[0]:
            continue
        shared = tuple(sorted(speakers[first] & speakers[second], key=natural_key))
        copies = tuple(g for g in duplicates if members[first] & set(g) and members[second] & set(g))
        if shared or copies:
            found.append(Overlap(first[0], (first[1], second[1]), shared, copies))
    return tuple(found)


def _duplicates(corpus: Sequence[Clip]) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Groups of clips with the same bytes and segment, and the clips whose file cannot be read."""
    sums: dict[str, str] = {}
    groups: dict[tuple[str, float, float | None], list[str]] = {}
    unreadable = []
    for clip in corpus:
        path = clip.audio or clip.video or clip.image
        if path is None or is_url(path):
            continue
        try:
            if path not in sums:
                with Path(path).open("rb") as stream:
                    sums[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            unreadable.append(clip.id)
            continue
        groups.setdefault((sums[path], clip.start, clip.duration), []).append(clip.id)
    return tuple(tuple(ids) for ids in groups.values() if len(ids) > 1), tuple(unreadable)


def _besides(count: int, what: str) -> str:
    return f"  ({count} clips {what})" if count else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    return [
        "  " + "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
