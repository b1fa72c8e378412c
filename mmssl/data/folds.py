"""A fold: what it holds, its file, and what its parts share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from mmssl.data.files import natural_key, read_text, some, write_text
from mmssl.errors import DataError, did_you_mean
from mmssl.types import Clip

PARTS = ("train", "dev", "test")


@dataclass(frozen=True)
class Fold:
    """One division of a corpus, by clip ids.

    Attributes:
        name: unique among the folds; fit for a folder's name.
        train, dev, test: ids, none in two of them, in natural order (s2 before s10).
        notes: what a reader of scores should know, such as a class that the test part lacks.
    """

    name: str
    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write_folds(path: str | os.PathLike[str], folds: Sequence[Fold]) -> None:
    """Write folds as JSON, atomically; `read_folds` gives equal folds back."""
    value = {"schema": 1, "folds": [asdict(fold) for fold in folds]}
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_folds(path: str | os.PathLike[str]) -> list[Fold]:
    """Read what `write_folds` wrote.

    Raises:
        DataError: the file is missing or is no such JSON, or two folds have one name.
    """
    text = read_text(path, "file of folds")
    try:
        entries = json.loads(text)["folds"]
        folds = []
        for entry in entries:
            train, dev, test, notes = (tuple(map(str, v)) for v in (*(entry[p] for p in PARTS), entry.get("notes", ())))
            folds.append(Fold(str(entry["name"]), train, dev, test, notes))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a file of folds ({type(error).__name__}: {error}). "
            f"Remove it and run the stage that writes it."
        ) from error
    if len({fold.name for fold in folds}) < len(folds):
        raise DataError(f"{path} has two folds of one name. Rename one.")
    return folds


def check_disjoint(clips: Iterable[Clip], folds: Iterable[Fold], group: str | None = "speaker") -> None:
    """Make sure that no clip and no group is in two of train, dev and test of a fold.

    Raises:
        DataError: one is; or a fold names a clip that is not there, or a clip has no group. The message names fold,
            parts and groups.
    """
    groups = groups_of(list(clips), group)
    for fold in folds:
        unknown = [i for part in PARTS for i in getattr(fold, part) if i not in groups]
        if unknown:
            raise DataError(
                f"Fold {fold.name!r} names clips that are not in the manifest: {some(unknown)}. "
                f"Make the folds again from this manifest."
            )
        for shared, where in shared_groups(fold, groups):
            raise DataError(
                f"Fold {fold.name!r}: {where} share {len(shared)} values of {group or 'id'}: {some(shared)}. "
                f"Move all clips of a group into one part, or state the overlap beside every score."
            )


def speaker_overlap(fold: Fold, clips: Iterable[Clip]) -> bool:
    """Whether a speaker of the test part is also in train or dev.

    Clips without a speaker count as one unknown speaker: where test and train both have such clips the answer is True,
    because an overlap cannot be ruled out.
    """
    speakers = {clip.id: clip.speaker for clip in clips}
    seen = {speakers.get(i) for i in (*fold.train, *fold.dev)}
    return any(speakers.get(i) in seen for i in fold.test)


def groups_of(corpus: Sequence[Clip], group: str | None) -> dict[str, str]:
    """Clip id -> group: the speaker, split or label of that name; None takes every clip as its own group.

    Raises:
        DataError: clips have no such value; the message lists up to five of them.
    """
    if group is None:
        return {clip.id: clip.id for clip in corpus}
    groups = {clip.id: clip.group(group) for clip in corpus}
    missing = [i for i, value in groups.items() if value is None or value == ""]
    if missing:
        names = sorted({"speaker", "split"}.union(*(clip.labels for clip in corpus)))
        raise DataError(
            f"{len(missing)} of {len(groups)} clips have no {group!r} to group them by: {some(missing)}. Give it in "
            f"the manifest, or group by something else ({', '.join(names)}).{did_you_mean(group, set(names) - {group})}"
        )
    return {i: value for i, value in groups.items() if value is not None}


def shared_groups(fold: Fold, groups: Mapping[str, str]) -> list[tuple[list[str], str]]:
    """Groups that two parts of a fold share -> [(groups, "train and test")]."""
    values = {part: {groups[i] for i in getattr(fold, part)} for part in PARTS}
    pairs = [("train", "test"), ("dev", "test"), ("train", "dev")]
    found = [(sorted(values[a] & values[b], key=natural_key), f"{a} and {b}") for a, b in pairs]
    return [(shared, where) for shared, where in found if shared]
