"""Trial lists of verification: which clip is compared with which, and whether they are of one speaker."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mmssl.data.files import natural_key, read_text, some, write_text
from mmssl.errors import DataError

LABELS = {
    "voxceleb": {"1": True, "0": False},
    "kaldi": {"target": True, "nontarget": False},
}


@dataclass(frozen=True)
class Trials:
    """Trials as columns, so that a list of millions stays small.

    Attributes:
        enrol, test: ids of the two clips of each trial.
        is_target: whether both are of one speaker.
    """

    enrol: tuple[str, ...]
    test: tuple[str, ...]
    is_target: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.enrol)

    def rows(self, ids: Sequence[str]) -> tuple[list[int], list[int]]:
        """Place of each trial's clips in a list of ids, such as the rows of a matrix of embeddings.

        Raises:
            DataError: a trial names a clip that is not in the list, or an id is there twice.
        """
        place = {i: row for row, i in enumerate(ids)}
        if len(place) < len(ids):
            twice = [i for i, times in Counter(ids).items() if times > 1]
            raise DataError(f"{len(twice)} ids occur more than once in the list of embeddings: {some(twice)}.")
        _refuse_missing(self, place)
        return [place[i] for i in self.enrol], [place[i] for i in self.test]


def read_trials(path: str | os.PathLike[str], form: str = "auto") -> Trials:
    """Read a trial list: one trial a line, fields divided by white space; empty lines are skipped.

    Args:
        path: of the list.
        form: "voxceleb" for "1 enrol test" with 1 for target and 0 for non-target, "kaldi" for "enrol test target" or
            "enrol test nontarget"; "auto" takes the one that the first line fits.

    Raises:
        DataError: the file cannot be read, holds no trial, or a line does not fit; the message names the line.
    """
    if form not in ("auto", *LABELS):
        raise DataError(f"The form of a trial list is auto, {' or '.join(LABELS)}, got {form!r}.")
    lines = [(number, line.split()) for number, line in enumerate(read_text(path, "trial list").splitlines(), 1)]
    lines = [(number, fields) for number, fields in lines if fields]
    if not lines:
        raise DataError(f"{path} holds no trial.")
    first = lines[0][1]
    if form == "auto":
        form = "kaldi" if first[-1] in LABELS["kaldi"] else "voxceleb"
    column, known = (0, LABELS["voxceleb"]) if form == "voxceleb" else (2, LABELS["kaldi"])
    for number, fields in lines:
        if len(fields) != 3 or fields[column] not in known:
            wanted = "'1 enrol test' or '0 enrol test'" if form == "voxceleb" else "'enrol test target|nontarget'"
            raise DataError(f"{path}:{number}: {' '.join(fields)[:120]!r} is no trial. A line must be {wanted}.")
    first_id = 1 - column // 2
    return Trials(
        tuple(fields[first_id] for _, fields in lines),
        tuple(fields[first_id + 1] for _, fields in lines),
        tuple(known[fields[column]] for _, fields in lines),
    )


def write_trials(path: str | os.PathLike[str], trials: Trials, form: str = "voxceleb") -> None:
    """Write a trial list, atomically; `read_trials` gives equal trials back.

    Args:
        path: of the file.
        trials: to write.
        form: "voxceleb" or "kaldi", see `read_trials`.

    Raises:
        DataError: there is no such form, an id is empty or has white space in it, or the file cannot be written.
    """
    if form not in LABELS:
        raise DataError(f"The form of a trial list is {' or '.join(LABELS)}, got {form!r}.")
    bad = [i for i in {*trials.enrol, *trials.test} if len(i.split()) != 1 or i != i.strip()]
    if bad:
        raise DataError(f"Ids of a trial list must hold no white space: {some(sorted(bad), form=repr)}. Rename them.")
    names = {value: label for label, value in LABELS[form].items()}
    rows = zip(trials.enrol, trials.test, trials.is_target, strict=True)
    if form == "voxceleb":
        text = "".join(f"{names[t]} {a} {b}\n" for a, b, t in rows)
    else:
        text = "".join(f"{a} {b} {names[t]}\n" for a, b, t in rows)
    write_text(path, text)


def check_trials(
    trials: Trials, ids: Iterable[str] | None = None, speakers: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Find what makes a trial list wrong, and what a reader of its scores should know.

    Args:
        trials: to check.
        ids: clips that there are; None skips that check.
        speakers: clip id -> speaker, against which labels are checked; clips that it lacks are not checked.

    Returns:
        One sentence for each kind of oddity that leaves scores defined: pairs that occur twice (which count twice),
        pairs that occur in both orders (one trial for a symmetric score), clips compared with themselves.

    Raises:
        DataError: there is one class only; a clip is missing; a pair has both labels; a clip compared with itself is
            labelled non-target; or a label contradicts the speakers.
    """
    targets = sum(trials.is_target)
    if targets in (0, len(trials)):
        raise DataError(
            f"The list has {targets} target and {len(trials) - targets} non-target trials: error rates need both. "
            "Check the labels."
        )
    if ids is not None:
        _refuse_missing(trials, frozenset(ids))
    rows = list(zip(trials.enrol, trials.test, trials.is_target, strict=True))
    _refuse([f"{a} {b}" for a, b, t in rows if a == b and not t], "compare a clip with itself and say non-target")
    if speakers is not None:
        known = [(a, b, t) for a, b, t in rows if a in speakers and b in speakers]
        wrong = [f"{a} {b}" for a, b, t in known if (speakers[a] == speakers[b]) != t]
        _refuse(wrong, "have a label that the speakers of their clips contradict")
    pairs = [(a, b) if a <= b else (b, a) for a, b, _ in rows]
    labels: dict[tuple[str, str], bool] = {}
    both = [
        f"{a} {b}" for (a, b), t in zip(pairs, trials.is_target, strict=True) if labels.setdefault((a, b), t) is not t
    ]
    _refuse(both, "occur with both labels")
    repeats = len(rows) - len(set(rows))
    turned = len(set(rows)) - len(labels)
    itself = sum(a == b for a, b in labels)
    notes = [
        (repeats, f"{repeats} of {len(rows)} trials repeat another one and count again"),
        (turned, f"{turned} pairs of clips occur in both orders"),
        (itself, f"{itself} target trials compare a clip with itself and cannot fail"),
    ]
    return tuple(f"{text}." for number, text in notes if number)


def make_trials(speakers: Mapping[str, str], per_speaker: int = 50, seed: int = 0) -> Trials:
    """Draw a balanced trial list, such as a development list of held-out training speakers.

    Args:
        speakers: clip id -> speaker, of the clips to compare.
        per_speaker: target trials of a speaker at most (all pairs where there are fewer); as many non-target trials
            begin with a clip of the speaker, against clips of other speakers.
        seed: the list depends on it and the arguments alone, not on the order of the clips.

    Returns:
        Trials without repeats, clips against themselves, or a pair in both orders.

    Raises:
        DataError: there are not two speakers, or no speaker has two clips, or `per_speaker` is below 1.
    """
    if per_speaker < 1:
        raise DataError(f"per_speaker must be at least 1, got {per_speaker}.")
    clips: dict[str, list[str]] = defaultdict(list)
    for clip in sorted(speakers, key=natural_key):
        clips[speakers[clip]].append(clip)
    if len(clips) < 2 or max(map(len, clips.values())) < 2:
        raise DataError(
            f"Trials need two speakers and two clips of one of them, got {len(clips)} speakers and "
            f"{len(speakers)} clips."
        )
    generator = random.Random(seed)
    found: dict[tuple[str, str], bool] = {}
    for name in sorted(clips, key=natural_key):
        own = clips[name]
        pairs = list(combinations(own, 2))
        for pair in generator.sample(pairs, min(per_speaker, len(pairs))):
            found[pair] = True
        others = [clip for clip in speakers if speakers[clip] != name]
        others.sort(key=natural_key)
        wanted = min(per_speaker, max(1, len(pairs)))
        # few clips give few pairs: the tries end although some pairs were drawn before
        for _ in range(20 * wanted):
            pair = generator.choice(own), generator.choice(others)
            if pair not in found and pair[::-1] not in found:
                found[pair] = False
                wanted -= 1
            if not wanted:
                break
    return Trials(tuple(a for a, _ in found), tuple(b for _, b in found), tuple(found.values()))


def _refuse(wrong: Sequence[str], what: str) -> None:
    if wrong:
        raise DataError(f"{len(wrong)} trials {what}: {some(wrong)}. Correct the list.")


def _refuse_missing(trials: Trials, known: Mapping[str, int] | frozenset[str]) -> None:
    missing = [i for i in dict.fromkeys((*trials.enrol, *trials.test)) if i not in known]
    if missing:
        raise DataError(
            f"{len(missing)} clips of the trial list are not among the {len(known)} clips given: {some(missing)}. "
            "Check that ids are written in the same way (folders, endings), and that no clip was skipped."
        )
