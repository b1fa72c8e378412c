"""Confidence intervals of verification metrics, from speakers drawn anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mmssl.errors import ConfigError, InputError, did_you_mean
from mmssl.metrics.calibration import act_dcf_from, cllr_from
from mmssl.metrics.verification import (
    PRIORS,
    Floats,
    Ints,
    checked_trials,
    eer_from,
    group_starts,
    min_dcf_from,
    prior_name,
    prior_of,
)

VALUES_AT_ONCE = 2_000_000
DEFAULT_METRICS = ("eer", *map("min_dcf_{}".format, map(prior_name, PRIORS)))
KINDS = ("eer", "cllr", "min_dcf_p", "act_dcf_p")


def speaker_bootstrap(
    scores: npt.ArrayLike,
    is_target: npt.ArrayLike,
    enrol_speakers: Sequence[object] | npt.NDArray[np.generic],
    test_speakers: Sequence[object] | npt.NDArray[np.generic],
    metrics: Sequence[str] = DEFAULT_METRICS,
    num_samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals over speakers.

    Trials share speakers, so that intervals over trials are far too narrow. Here the speakers of the list are drawn
    with replacement: a target trial counts as often as its speaker is drawn, a non-target trial as often as its two
    speakers are drawn together, the product of their numbers (the vertex bootstrap of Snijders and Borgatti,
    "Non-parametric standard errors and tests for network statistics", Connections 1999). Samples without a trial of
    one class, which lists of few speakers give, are left out.

    Args:
        scores, is_target: (n,) as in `verification.eer`.
        enrol_speakers, test_speakers: (n,) speaker of each side, names or numbers.
        metrics: of "eer", "cllr", "min_dcf_pNN", "act_dcf_pNN".
        num_samples: bootstrap samples.
        level: of confidence, in (0, 1).
        seed: the intervals depend on it and the arguments alone, not on the order of the trials.

    Returns:
        metric -> (low, high).

    Raises:
        InputError: shapes, scores or labels are wrong; a target trial has two speakers or a non-target trial one;
            there are fewer than three speakers, or most samples lack a class.
        ConfigError: a metric is unknown, or `level` or `num_samples` is out of range.
    """
    if not 0 < level < 1 or num_samples < 1:
        raise ConfigError(f"level must lie in (0, 1) and num_samples be at least 1, got {level} and {num_samples}.")
    for metric in metrics:
        _check_metric(metric)
    values, target = checked_trials(scores, is_target)
    sides, num_speakers = _speaker_numbers(enrol_speakers, test_speakers, target)
    order = np.argsort(values)
    ranked, target, sides = values[order], target[order], sides[:, order]
    starts = group_starts(ranked)
    drawn: dict[str, list[Floats]] = {metric: [] for metric in metrics}
    for draws in _draws(num_speakers, num_samples, max(1, VALUES_AT_ONCE // len(values)), seed):
        times = draws[:, sides[0]]
        times = np.where(target, times, times * draws[:, sides[1]])
        hits = np.add.reduceat(times * target, starts, axis=-1)
        rest = np.add.reduceat(times, starts, axis=-1) - hits
        for metric, found in drawn.items():
            found.append(_from_counts(metric, ranked[starts], hits, rest))
    return {metric: _interval(np.concatenate(found), level) for metric, found in drawn.items()}


def _check_metric(metric: str) -> None:
    kind = next((k for k in KINDS if metric == k or (k.endswith("_p") and metric.startswith(k))), None)
    if kind is None:
        raise ConfigError(
            f"There is no verification metric {metric!r} with a bootstrap.{did_you_mean(metric, KINDS)} "
            "Known: eer, cllr, min_dcf_pNN and act_dcf_pNN, where NN are the decimals of the prior."
        )
    if kind.endswith("_p"):
        prior_of(metric)


def _from_counts(metric: str, scores: Floats, targets: Ints, nontargets: Ints) -> Floats:
    if metric == "eer":
        return eer_from(targets, nontargets)
    if metric == "cllr":
        return cllr_from(scores, targets, nontargets)
    if metric.startswith("min_dcf"):
        return min_dcf_from(targets, nontargets, prior_of(metric))
    return act_dcf_from(scores, targets, nontargets, prior_of(metric))


def _speaker_numbers(enrol: object, test: object, target: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], int]:
    """(2, n) indices of the speakers of both sides, and how many speakers there are."""
    first, second = np.asarray(enrol), np.asarray(test)
    if first.shape != target.shape or second.shape != target.shape:
        raise InputError(f"There must be two speakers per trial, got {first.shape} and {second.shape}, {target.shape}.")
    names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    sides = numbers.reshape(2, -1)
    wrong = (sides[0] == sides[1]) != target
    if wrong.any():
        raise InputError(
            f"{int(wrong.sum())} trials have a label that their speakers contradict; the first is trial "
            f"{int(wrong.argmax())}, {first[wrong][0]} and {second[wrong][0]}. Target trials have one speaker."
        )
    if len(names) < 3:
        raise InputError(f"A bootstrap over speakers needs at least three, the trials have {len(names)}.")
    return sides, len(names)


def _draws(num_speakers: int, num_samples: int, at_once: int, seed: int) -> Iterator[Ints]:
    """How often each speaker is drawn, (s, num_speakers), in parts of at most `at_once` samples."""
    generator = np.random.default_rng(seed)
    share = np.full(num_speakers, 1 / num_speakers)
    for start in range(0, num_samples, at_once):
        yield generator.multinomial(num_speakers, share, size=min(at_once, num_samples - start))


def _interval(values: Floats, level: float) -> tuple[float, float]:
    usable = values[~np.isnan(values)]
    if 2 * len(usable) < len(values) or not len(usable):
        raise InputError(
            f"{len(values) - len(usable)} of {len(values)} bootstrap samples have trials of one class only. "
            "The list has too few speakers for an interval."
        )
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
