"""Folds: which clips train, choose and test. One function makes them all.

The rule that everything here serves: no group (by default: no speaker) is in two of train, dev and test. The
development split is taken from the training groups, so that choosing a model never sees the test groups.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmssl.data.files import natural_key, some
from mmssl.data.folds import (
    PARTS,
    Fold,
    check_disjoint,
    groups_of,
    read_folds,
    shared_groups,
    speaker_overlap,
    write_folds,
)
from mmssl.errors import DataError, did_you_mean
from mmssl.types import Clip

__all__ = ["SCHEMES", "Fold", "check_disjoint", "make_folds", "read_folds", "speaker_overlap", "write_folds"]

SCHEMES = ("leave_one_group_out", "group_kfold", "predefined", "groups_per_fold")


def make_folds(
    clips: Iterable[Clip],
    *,
    scheme: str,
    group: str | None = "speaker",
    label: str | None = None,
    k: int | None = None,
    dev_groups: int | float = 0.15,
    groups_per_fold: Mapping[Any, Iterable[Any]] | None = None,
    allow_absent: bool = False,
    seed: int = 0,
) -> list[Fold]:
    """Divide a corpus into folds. The result does not depend on the order of the clips.

    Args:
        clips: of the corpus; ids are unique.
        scheme: how test parts are made:
            "leave_one_group_out": each group is tested once;
            "group_kfold": `k` folds of whole groups, balanced by number of clips;
            "predefined": from `Clip.split`, which is "train", "dev" and "test" (one fold; dev is drawn where absent),
            or the names of folds, each of which is tested once. What the corpus prescribes is kept even if train and
            test share groups; the fold's notes then say so;
            "groups_per_fold": from `groups_per_fold`, which may also accompany "group_kfold" and "predefined".
        group: what must not be shared: "speaker", "split" or a label name; None takes every clip as its own group.
        label: target whose classes must all occur in train; None checks nothing. A label of floats (regression) must
            only be present.
        k: number of folds, for "group_kfold".
        dev_groups: development split of each fold, from its training groups: an int is their number, a float in
            (0, 1) their share, rounded, at least one group. Groups are drawn by seed, passing over those without
            which a class would be missing in train.
        groups_per_fold: fold name -> values of `group` that it tests, each value in one fold.
        allow_absent: let `groups_per_fold` name groups that no clip has, for a corpus of which only a part is there;
            folds without any clip are dropped and the notes of the others say so.
        seed: of the draw of the development groups, and of ties in "group_kfold".

    Returns:
        The folds, in natural order of group or fold name.

    Raises:
        DataError: a clip lacks its group, label or split, a part would be empty, a class is missing in train, or too
            few groups are there for the scheme. The message says which and what to do.
    """
    corpus = sorted(clips, key=lambda clip: natural_key(clip.id))
    _check_arguments(corpus, scheme, k, groups_per_fold)
    _check_dev_groups(dev_groups)
    classes = _classes(corpus, label)
    if scheme == "predefined" and groups_per_fold is None:
        splits = _splits(corpus)
        if set(splits.values()) <= set(PARTS):
            fold = _fold_of_parts(corpus, splits, group, dev_groups, classes, seed)
            return [_checked(fold, _groups_if_whole(corpus, group), classes)]
    groups = groups_of(corpus, group)
    notes: tuple[str, ...] = ()
    if groups_per_fold is not None:
        tests, notes = _tests_given(groups, groups_per_fold, allow_absent)
    elif scheme == "group_kfold":
        tests = _tests_balanced(groups, k, seed)
    else:
        tests = _tests_by_value(splits if scheme == "predefined" else groups)
    folds = []
    for name, test in zip(_folder_names(tests), tests.values(), strict=True):
        pool = [clip.id for clip in corpus if clip.id not in test]
        dev = _draw_dev(name, pool, test, groups, dev_groups, classes, seed)
        train = _in_order(corpus, set(pool) - dev)
        fold = Fold(name, train, _in_order(corpus, dev), _in_order(corpus, test), notes)
        folds.append(_checked(fold, groups, classes))
    return folds


def _check_arguments(
    corpus: Sequence[Clip], scheme: str, k: int | None, groups_per_fold: Mapping[Any, Iterable[Any]] | None
) -> None:
    if scheme not in SCHEMES:
        raise DataError(f"There is no scheme {scheme!r}.{did_you_mean(scheme, SCHEMES)} Allowed: {', '.join(SCHEMES)}.")
    if not corpus:
        raise DataError("There is no clip to divide into folds. Check the manifest and any filter on it.")
    twice = [i for i, count in Counter(clip.id for clip in corpus).items() if count > 1]
    if twice:
        raise DataError(f"Ids that more than one clip has: {some(twice)}. Give every clip an id of its own.")
    if scheme == "groups_per_fold" and groups_per_fold is None:
        raise DataError("The scheme 'groups_per_fold' needs groups_per_fold: fold name -> list of groups to test.")
    if scheme == "leave_one_group_out" and groups_per_fold is not None:
        raise DataError("groups_per_fold does not go with 'leave_one_group_out'. Use the scheme 'groups_per_fold'.")
    if scheme == "group_kfold" and groups_per_fold is None and (isinstance(k, bool) or not isinstance(k, int) or k < 2):
        raise DataError(f"The scheme 'group_kfold' needs k, a number of folds of at least 2, got {k!r}.")
    if k is not None and (scheme != "group_kfold" or groups_per_fold is not None):
        raise DataError(f"k={k!r} only goes with the scheme 'group_kfold' without groups_per_fold. Leave it out.")


def _check_dev_groups(dev_groups: int | float) -> None:
    whole = isinstance(dev_groups, int) and not isinstance(dev_groups, bool) and dev_groups >= 1
    if not whole and not (isinstance(dev_groups, float) and 0 < dev_groups < 1):
        raise DataError(
            f"dev_groups must be a number of groups (int, at least 1) or a share of the training groups "
            f"(float between 0 and 1), got {dev_groups!r}."
        )


def _classes(corpus: Sequence[Clip], label: str | None) -> dict[str, str]:
    """Clip id -> class; empty where there is no label to check or its values are floats."""
    if label is None:
        return {}
    values = {clip.id: clip.labels.get(label) for clip in corpus}
    missing = [i for i, value in values.items() if value is None or value == ""]
    if missing:
        names = sorted(set().union(*(clip.labels for clip in corpus)))
        raise DataError(
            f"{len(missing)} of {len(values)} clips have no label {label!r}: {some(missing)}. Label them or "
            f"leave them out of the manifest; labels there are: {', '.join(names) or 'none'}."
            f"{did_you_mean(label, set(names) - {label})}"
        )
    if any(isinstance(value, float) for value in values.values()):
        return {}
    return {i: str(value) for i, value in values.items()}


def _splits(corpus: Sequence[Clip]) -> dict[str, str]:
    """Clip id -> split, all of train / dev / test, or all of them names of folds."""
    missing = [clip.id for clip in corpus if not clip.split]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(corpus)} clips have no split, which the scheme 'predefined' needs: "
            f"{some(missing)}. Give them one, leave them out, or use another scheme: {', '.join(SCHEMES)}."
        )
    values = {clip.id: str(clip.split) for clip in corpus}
    names = set(values.values())
    if names & set(PARTS) and names - set(PARTS):
        other = sorted(names - set(PARTS), key=natural_key)
        hint = "".join(did_you_mean(name, PARTS) for name in other[:1])
        raise DataError(
            f"Splits are either train, dev and test, or names of folds, not both: found "
            f"{some(sorted(names & set(PARTS)))} beside {some(other, form=repr)}.{hint} Rename one kind."
        )
    if len(names) < 2:
        raise DataError(
            f"All clips have the split {next(iter(names))!r}, so that nothing is left to train on or to test. "
            f"Give at least 'train' and 'test', or two names of folds."
        )
    return values


def _fold_of_parts(
    corpus: Sequence[Clip],
    values: Mapping[str, str],
    group: str | None,
    dev_groups: int | float,
    classes: Mapping[str, str],
    seed: int,
) -> Fold:
    """The fold that splits named train, dev and test prescribe; dev is drawn where there is none."""
    name = "predefined"
    train, dev, test = ({i for i, v in values.items() if v == part} for part in PARTS)
    if not dev and train and test:
        dev = _draw_dev(name, sorted(train), test, groups_of(corpus, group), dev_groups, classes, seed)
        train -= dev
    return Fold(name, *(_in_order(corpus, part) for part in (train, dev, test)))


def _tests_by_value(values: Mapping[str, str]) -> dict[str, set[str]]:
    """Each value is tested once: value -> its ids, in natural order of the values."""
    tests: dict[str, set[str]] = {value: set() for value in sorted(set(values.values()), key=natural_key)}
    for i, value in values.items():
        tests[value].add(i)
    return tests


def _tests_balanced(groups: Mapping[str, str], k: int | None, seed: int) -> dict[str, set[str]]:
    """Largest group first, each into the fold that has the fewest clips so far."""
    members = _tests_by_value(groups)
    sizes = {group: len(ids) for group, ids in members.items()}
    if k is None or k > len(sizes):
        raise DataError(
            f"{k} folds need at least as many groups, but there are {len(sizes)}: "
            f"{some(sizes)}. Use a smaller k, or 'leave_one_group_out'."
        )
    counts = [0] * k
    tests: dict[str, set[str]] = {f"fold{n + 1}": set() for n in range(k)}
    for group in sorted(sizes, key=lambda g: (-sizes[g], _drawn(seed, "kfold", g))):
        fewest = counts.index(min(counts))
        counts[fewest] += sizes[group]
        tests[f"fold{fewest + 1}"] |= members[group]
    return tests


def _tests_given(
    groups: Mapping[str, str], given: Mapping[Any, Iterable[Any]], allow_absent: bool
) -> tuple[dict[str, set[str]], tuple[str, ...]]:
    owner: dict[str, str] = {}
    for name, values in given.items():
        for value in [values] if isinstance(values, str) else values:
            if str(value) in owner:
                raise DataError(f"groups_per_fold tests {value!r} in {owner[str(value)]!r} and in {name!r}. Keep one.")
            owner[str(value)] = str(name)
    present = set(groups.values())
    left_out = sorted(present - set(owner), key=natural_key)
    if left_out:
        raise DataError(
            f"groups_per_fold names no fold for these groups: {some(left_out)}. Put each into a fold, "
            f"or leave their clips out of the manifest. It names: {some(owner, 12)}."
        )
    absent = sorted(set(owner) - present, key=natural_key)
    if absent and not allow_absent:
        raise DataError(
            f"groups_per_fold names groups that no clip has: {some(absent)}. Correct the names (there are: "
            f"{some(sorted(present, key=natural_key))}), or set allow_absent=True for a corpus that is not whole."
        )
    tests = {str(name): {i for i, g in groups.items() if owner[g] == str(name)} for name in given}
    dropped = [name for name, test in tests.items() if not test]
    notes = [f"The corpus is not whole: no clip of {some(absent, 30)}."] if absent else []
    if dropped:
        notes.append(f"Folds without any clip are left out: {some(dropped, 30)}.")
    return {name: test for name, test in tests.items() if test}, tuple(notes)


def _draw_dev(
    fold: str,
    pool: Sequence[str],
    test: set[str],
    groups: Mapping[str, str],
    dev_groups: int | float,
    classes: Mapping[str, str],
    seed: int,
) -> set[str]:
    """Ids of the pool that make the development split: whole groups that the test part has nothing of."""
    every = {groups[i] for i in pool}
    if len(every) < 2:
        raise DataError(
            f"Fold {fold!r}: {len(every)} group is left to train on ({some(every) or 'none'}), so that no "
            f"development split can be made that shares no group with train and test. Add clips of more groups, test "
            f"fewer groups in this fold, or give train, dev and test in the manifest (scheme 'predefined')."
        )
    tested = {groups[i] for i in test}
    order = sorted(every - tested, key=lambda g: _drawn(seed, fold, g))
    wanted = dev_groups if isinstance(dev_groups, int) else max(1, round(dev_groups * len(every)))
    if wanted > min(len(order), len(every) - 1):
        raise DataError(
            f"Fold {fold!r}: dev_groups={dev_groups} asks for {wanted} of {len(every)} training groups, "
            f"of which {len(order)} are not in the test part, and train needs at least one. Use fewer, or give 'dev' "
            f"in the manifest's splits."
        )
    members: dict[str, Counter[str]] = {g: Counter() for g in every}
    for i in pool:
        members[groups[i]][classes.get(i, "")] += 1
    remaining = sum(members.values(), Counter())
    chosen: list[str] = []
    for candidate in order:
        if len(chosen) < wanted and all(remaining[c] > n for c, n in members[candidate].items()):
            chosen.append(candidate)
            remaining = remaining - members[candidate]
    # where no choice keeps every class in train, the plain draw goes on to the check that names the missing class
    taken = set(chosen if len(chosen) == wanted else order[:wanted])
    return {i for i in pool if groups[i] in taken}


def _drawn(seed: int, purpose: str, group: str) -> tuple[str, str]:
    """Sorting key that shuffles groups by seed, the same on every machine and Python version."""
    return hashlib.sha256(f"{seed}\n{purpose}\n{group}".encode("utf-8", "surrogatepass")).hexdigest(), group


def _in_order(corpus: Sequence[Clip], ids: set[str]) -> tuple[str, ...]:
    return tuple(clip.id for clip in corpus if clip.id in ids)


def _folder_names(names: Iterable[str]) -> list[str]:
    """Names made fit for folders, still unique."""
    used: list[str] = []
    for name in names:
        safe = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"
        number = 2
        while (unique := safe if number == 2 and safe not in used else f"{safe}-{number}") in used:
            number += 1
        used.append(unique)
    return used


def _groups_if_whole(corpus: Sequence[Clip], group: str | None) -> dict[str, str]:
    """Clip id -> group; empty where a clip has none, which a prescribed split does not need."""
    whole = group is None or all(clip.group(group) for clip in corpus)
    return groups_of(corpus, group) if whole else {}


def _checked(fold: Fold, groups: Mapping[str, str], classes: Mapping[str, str]) -> Fold:
    """Refuse an empty part or a class that train lacks; note what the other parts lack and what they share."""
    for part in PARTS:
        if not getattr(fold, part):
            raise DataError(
                f"Fold {fold.name!r}: the {part} part is empty. Give clips of that split in the manifest, "
                f"or use a scheme that draws it: {', '.join(SCHEMES)}."
            )
    notes = list(fold.notes)
    every = set(classes.values())
    for part in PARTS:
        lacking = sorted(every - {classes[i] for i in getattr(fold, part) if i in classes}, key=natural_key)
        if lacking and part == "train":
            raise DataError(
                f"Fold {fold.name!r}: train has no clip of class {some(lacking, form=repr)}, so it cannot be learned. "
                f"Use fewer development groups, another seed or scheme, or leave the class out of the manifest."
            )
        if lacking:
            notes.append(f"Fold {fold.name}: the {part} part has no clip of class {some(lacking, 30)}.")
    if groups:
        for shared, where in shared_groups(fold, groups):
            notes.append(f"Fold {fold.name}: {where} share {len(shared)} groups: {some(shared)}.")
    return replace(fold, notes=tuple(notes))
