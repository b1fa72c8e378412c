"""Matching faces and voices: which of N faces belongs to a voice, and whether a face and a voice are one person's.

Source: Nagrani, Albanie and Zisserman 2018, "Seeing Voices and Hearing Faces", section 3: forced choice between two or
N candidates; and "Learnable PINs" (2018), section 4, verification of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mmssl.downstream.scoring import unit_length
from mmssl.errors import InputError
from mmssl.metrics.ranking import choice_accuracy
from mmssl.metrics.verification import verification_metrics

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MatchingTrials:
    """Forced choices. Everything is a row of a list of clips.

    Attributes:
        probes: (n,) the clips asked about.
        candidates: (n, N) the clips to choose from, of N persons.
        answers: (n,) which of the N is of the probe's person.
    """

    probes: Ints
    candidates: Ints
    answers: Ints


def matching_trials(
    persons: Sequence[str], ways: int, generator: torch.Generator, groups: Sequence[str] | None = None
) -> MatchingTrials:
    """One trial for each clip: another clip of its person, and clips of `ways` - 1 other persons.

    The right candidate is never the probe's own clip, so that nothing but the person is shared. Clips of persons with
    one clip only are candidates, and no probes.

    Args:
        persons: of each clip.
        ways: N, at least 2.
        generator: on the CPU, of all that is drawn.
        groups: of each clip, such as the gender: the others are then of the probe's group.

    Raises:
        InputError: too few persons, or none with two clips.
    """
    names = np.asarray(persons)
    within = np.zeros(len(names), dtype=np.int64) if groups is None else np.asarray(groups)
    if ways < 2 or names.ndim != 1 or within.shape != names.shape:
        raise InputError(f"Matching needs at least two ways and one group per clip, got {ways} and {within.shape}.")
    rows: list[tuple[int, list[int], int]] = []
    for probe, person in enumerate(names):
        own = np.flatnonzero((names == person) & (np.arange(len(names)) != probe))
        others = np.unique(names[(names != person) & (within == within[probe])])
        if not len(own):
            continue
        if len(others) < ways - 1:
            raise InputError(
                f"A choice between {ways} needs {ways - 1} other persons (of the same group); {person!r} has "
                f"{len(others)}."
            )
        chosen = others[torch.randperm(len(others), generator=generator)[: ways - 1].numpy()]
        pools = [np.flatnonzero((names == other) & (within == within[probe])) for other in chosen]
        answer = _draw(ways, generator)
        candidates = [int(pool[_draw(len(pool), generator)]) for pool in pools]
        candidates.insert(answer, int(own[_draw(len(own), generator)]))
        rows.append((probe, candidates, answer))
    if not rows:
        raise InputError("No person has two clips, so that there is nothing to match.")
    probes, tables, answers = zip(*rows, strict=True)
    return MatchingTrials(np.array(probes), np.array(tables), np.array(answers))


def matching_accuracy(probes: npt.ArrayLike, candidates: npt.ArrayLike, trials: MatchingTrials) -> float:
    """Share of trials in which the right candidate is nearest by cosine, in [0, 1]; chance is 1 / N.

    Args:
        probes: (clips, E) embeddings of the stream asked about, such as the voice.
        candidates: (clips, E) embeddings of the other stream, such as the face.
        trials: on these clips.

    Raises:
        InputError: embeddings that are not finite, or shapes that do not fit.
    """
    first, second = unit_length(np.asarray(probes)), unit_length(np.asarray(candidates))
    scores = (first[trials.probes][:, None] * second[trials.candidates]).sum(-1)
    return choice_accuracy(scores, trials.answers)


def matching_verification(probes: npt.ArrayLike, candidates: npt.ArrayLike, trials: MatchingTrials) -> dict[str, float]:
    """EER and minDCF of the pairs that the trials hold, every candidate on its own.

    Args and errors as `matching_accuracy`.
    """
    first, second = unit_length(np.asarray(probes)), unit_length(np.asarray(candidates))
    scores = (first[trials.probes][:, None] * second[trials.candidates]).sum(-1)
    right = np.arange(scores.shape[1])[None] == trials.answers[:, None]
    return verification_metrics(scores.ravel(), right.ravel())


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
