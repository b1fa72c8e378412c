"""What stages that score a trial list compute alike, whatever the scores come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.data.folds import Fold
from mmssl.data.trials import Trials
from mmssl.errors import ConfigError, DataError, InputError, did_you_mean
from mmssl.metrics.speaker_bootstrap import DEFAULT_METRICS, speaker_bootstrap
from mmssl.metrics.verification import det_points, verification_metrics
from mmssl.types import Clip

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Sides = tuple[Sequence[str], Sequence[str]]
"""Speakers of the first and of the second clip of each trial."""
TRIALS = "trials.txt"
COLUMNS = (("eer", "EER %", 100.0), ("min_dcf_p01", "minDCF (P .01)", 1.0), ("min_dcf_p05", "minDCF (P .05)", 1.0))
# the smallest step between two points of a DET curve that are kept, in normal deviates
STEP = 0.02


def check_methods(key: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Make sure that there are these methods.

    Raises:
        ConfigError: one is unknown; `key` is where it stands.
    """
    for name in given:
        if name not in known:
            raise ConfigError(f"{key}: there is no {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")


def speakers_of(clips: Iterable[Clip]) -> dict[str, str]:
    """Clip id -> speaker.

    Raises:
        DataError: a clip has none.
    """
    found = {clip.id: clip.speaker for clip in clips}
    without = [name for name, speaker in found.items() if speaker is None]
    if without:
        raise DataError(
            f"{len(without)} clips have no speaker, among them {without[0]!r}: local/prepare.py must name one for each."
        )
    return {name: str(speaker) for name, speaker in found.items()}


def speaker_numbers(speakers: Mapping[str, str], train: Iterable[str]) -> tuple[dict[str, int], int]:
    """Speaker -> number, and how many have training clips: they come first, since the loss counts them from 0."""
    trained = sorted({speakers[clip] for clip in train})
    order = dict.fromkeys([*trained, *sorted(set(speakers.values()))])
    return {name: k for k, name in enumerate(order)}, len(trained)


def trained_speakers(trials: Trials, speakers: Mapping[str, str], fold: Fold) -> list[str]:
    """A sentence on the speakers of the trials that are in the fold's training or development part, or none."""
    known = {speakers[clip] for clip in (*fold.train, *fold.dev)}
    shared = sorted({speakers[clip] for clip in (*trials.enrol, *trials.test)} & known)
    return [f"{len(shared)} speakers of the trials were trained on, among them {shared[0]}."] if shared else []


def judged(scores: Floats, trials: Trials, speakers: Mapping[str, str], samples: int) -> dict[str, Any]:
    """EER and minDCF of the scores of trials: "metrics", and "intervals" from so many draws of speakers."""
    target = np.array(trials.is_target)
    sides = [speakers[clip] for clip in trials.enrol], [speakers[clip] for clip in trials.test]
    metrics = verification_metrics(scores, target)
    return {"metrics": metrics, "intervals": intervals([(scores, DEFAULT_METRICS)], target, sides, samples)}


def intervals(
    asked: Sequence[tuple[Floats, Sequence[str]]], target: Bools, sides: Sides, samples: int
) -> dict[str, tuple[float, float]]:
    """Intervals from speakers drawn anew.

    Args:
        asked: scores, whose metrics have been computed, and the metrics to have of them.
        target: whether each trial has one speaker.
        sides: speakers.
        samples: of the bootstrap.

    Returns:
        metric -> (low, high); none for 0 samples and where there are too few speakers to draw from.
    """
    found: dict[str, tuple[float, float]] = {}
    try:
        for scores, metrics in asked if samples else ():
            found |= speaker_bootstrap(scores, target, *sides, metrics, num_samples=samples)
    except InputError:
        return {}
    return found


def det_curve(scores: Floats, target: Bools) -> list[list[float]]:
    """[false-alarm rates, miss rates] of a DET curve without points that a picture could not tell apart."""
    from scipy.special import ndtri

    alarms, misses = det_points(scores, target)
    places = ndtri(np.clip(np.stack([alarms, misses]), 1e-6, 1 - 1e-6))
    kept = [0]
    for k in range(1, len(alarms)):
        if k == len(alarms) - 1 or np.abs(places[:, k] - places[:, kept[-1]]).max() >= STEP:
            kept.append(k)
    return [np.round(rates[kept], 7).tolist() for rates in (alarms, misses)]
