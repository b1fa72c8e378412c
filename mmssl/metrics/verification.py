"""Error rates of verification: trials of two classes, a score each, accepted where it reaches a threshold.

Everything is computed from integer counts of targets and non-targets per distinct score, so that the result does not
depend on the order of the trials, also where scores are tied. The functions named `..._from` take counts (..., K) and
return (...): the bootstrap computes many samples at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmssl.errors import ConfigError, InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PRIORS = (0.01, 0.05)


@dataclass(frozen=True)
class ScoreCounts:
    """How often each distinct score occurs.

    Attributes:
        scores: (K,) distinct scores, ascending.
        targets: (..., K) target trials of each score.
        nontargets: (..., K) non-target trials of each score.
    """

    scores: Floats
    targets: Ints
    nontargets: Ints


def count_scores(scores: npt.ArrayLike, is_target: npt.ArrayLike) -> ScoreCounts:
    """Count trials per distinct score.

    Args:
        scores: (n,) higher for "the same speaker"; infinities are allowed.
        is_target: (n,) bool, or 0 and 1.

    Raises:
        InputError: shapes differ, a score is NaN, a label is neither 0 nor 1, or one class has no trial.
    """
    values, target = checked_trials(scores, is_target)
    order = np.argsort(values)
    ranked = values[order]
    starts = group_starts(ranked)
    hits = np.add.reduceat(target[order], starts, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(ranked)))
    return ScoreCounts(ranked[starts], hits, sizes - hits)


def checked_trials(scores: npt.ArrayLike, is_target: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Scores and labels as (n,) float64 and bool; raises InputError as `count_scores` says."""
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(is_target)
    if values.ndim != 1 or values.shape != labels.shape:
        raise InputError(f"Scores and labels must both be (n,), got {values.shape} and {labels.shape}.")
    if np.isnan(values).any():
        raise InputError(
            f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN. Find the embeddings at fault."
        )
    if labels.dtype != bool:
        if labels.dtype.kind not in "iuf" or not np.isin(labels, (0, 1)).all():
            raise InputError("Labels must be bool, or 1 for target and 0 for non-target trials.")
        labels = labels.astype(bool)
    targets = int(labels.sum())
    if targets in (0, len(labels)):
        raise InputError(
            f"Error rates need target and non-target trials, got {targets} and {len(labels) - targets}. "
            "Check the labels of the trial list."
        )
    return values, labels


def group_starts(ranked: Floats) -> npt.NDArray[np.intp]:
    """Where each group of equal values starts in an ascending array that is not empty."""
    return np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))


def errors_from(targets: Ints, nontargets: Ints) -> tuple[Ints, Ints]:
    """Misses and false alarms (..., K + 1) at each distinct score as the threshold, and above the highest."""
    zero = np.zeros((*targets.shape[:-1], 1), dtype=targets.dtype)
    misses = np.concatenate([zero, targets.cumsum(-1)], axis=-1)
    accepted = np.concatenate([zero, nontargets.cumsum(-1)], axis=-1)
    return misses, accepted[..., -1:] - accepted


def eer_from(targets: Ints, nontargets: Ints) -> Floats:
    """Equal error rate (...) of counts (..., K); NaN where one class is empty."""
    misses, alarms = errors_from(targets, nontargets)
    num_targets, num_nontargets = misses[..., -1:], alarms[..., :1]
    # miss - fa times both totals: integers, so that its sign is exact
    gap = misses * num_nontargets - alarms * num_targets
    after = np.maximum((gap < 0).sum(-1, keepdims=True), 1)
    after = np.minimum(after, gap.shape[-1] - 1)
    low, high = (np.take_along_axis(gap, after - k, -1) for k in (1, 0))
    first, last = (np.take_along_axis(misses, after - k, -1) for k in (1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((first + (last - first) * (-low / (high - low))) / num_targets)[..., 0]


def min_dcf_from(targets: Ints, nontargets: Ints, prior: float) -> Floats:
    """Least normalised detection cost (...) of counts (..., K) at a prior; NaN where one class is empty."""
    misses, alarms = errors_from(targets, nontargets)
    miss_weight, alarm_weight = dcf_weights(prior)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (misses * (miss_weight / misses[..., -1:]) + alarms * (alarm_weight / alarms[..., :1])).min(-1)


def dcf_weights(prior: float) -> tuple[float, float]:
    """Weights of the miss and the false-alarm rate in the normalised cost with C_miss = C_fa = 1.

    Raises:
        ConfigError: `prior` does not lie in (0, 1).
    """
    if not 0 < prior < 1:
        raise ConfigError(f"The prior of a target trial must lie in (0, 1), got {prior}.")
    return prior / min(prior, 1 - prior), (1 - prior) / min(prior, 1 - prior)


def eer(scores: npt.ArrayLike, is_target: npt.ArrayLike) -> float:
    """Equal error rate in [0, 1].

    For every distinct score t, and one above all, miss(t) is the share of targets below t and fa(t) the share of
    non-targets at or above t. The rate is that at which miss - fa changes sign, by linear interpolation between the
    two neighbouring thresholds. Trials of one score are accepted together, never in the order of the list.

    Args:
        scores: (n,) higher for "the same speaker".
        is_target: (n,) bool, or 0 and 1.

    Raises:
        InputError: shapes, scores or labels are wrong, or one class has no trial.
    """
    counts = count_scores(scores, is_target)
    return float(eer_from(counts.targets, counts.nontargets))


def min_dcf(scores: npt.ArrayLike, is_target: npt.ArrayLike, prior: float) -> float:
    """Least normalised detection cost over all thresholds, in [0, 1], with C_miss = C_fa = 1.

    min over t of (P miss(t) + (1 - P) fa(t)) / min(P, 1 - P) (NIST speaker recognition evaluations, since 2008 in
    this normalised form), thresholds as in `eer`. Costs of the same scores at two priors differ: name the prior.

    Args:
        scores, is_target: as in `eer`.
        prior: P of a target trial.

    Raises:
        InputError: as in `eer`.
        ConfigError: `prior` does not lie in (0, 1).
    """
    counts = count_scores(scores, is_target)
    return float(min_dcf_from(counts.targets, counts.nontargets, prior))


def verification_metrics(
    scores: npt.ArrayLike, is_target: npt.ArrayLike, priors: tuple[float, ...] = PRIORS
) -> dict[str, float]:
    """EER and minDCF with one sort: {"eer", "min_dcf_p01", "min_dcf_p05"}.

    Args:
        scores, is_target: as in `eer`.
        priors: of the costs; each gives one name, see `prior_name`.

    Raises:
        InputError, ConfigError: as in `min_dcf`.
    """
    counts = count_scores(scores, is_target)
    found = {"eer": float(eer_from(counts.targets, counts.nontargets))}
    for prior in priors:
        found[f"min_dcf_{prior_name(prior)}"] = float(min_dcf_from(counts.targets, counts.nontargets, prior))
    return found


def prior_name(prior: float) -> str:
    """The decimals of a prior: 0.01 -> "p01", 0.5 -> "p50", 0.001 -> "p001".

    Raises:
        ConfigError: `prior` does not lie in (0, 1).
    """
    dcf_weights(prior)
    return "p" + np.format_float_positional(prior, trim="-").removeprefix("0.").ljust(2, "0")


def prior_of(name: str) -> float:
    """The inverse of `prior_name`, for the last part of a metric's name: "min_dcf_p01" -> 0.01.

    Raises:
        ConfigError: the name does not end in a prior.
    """
    digits = name.rpartition("_p")[2]
    if not (digits.isascii() and digits.isdigit()) or int(digits) == 0:
        raise ConfigError(f"{name!r} does not end in a prior such as _p01 (0.01) or _p05 (0.05).")
    return float(f"0.{digits}")


def det_points(scores: npt.ArrayLike, is_target: npt.ArrayLike, probit: bool = False) -> tuple[Floats, Floats]:
    """Corners of the detection error trade-off curve (Martin et al., Eurospeech 1997).

    Points inside a stretch where only one rate changes are left out: straight lines between the corners give the
    whole curve (on linear axes; on probit axes too, because those stretches run along an axis).

    Args:
        scores, is_target: as in `eer`.
        probit: give the normal deviates of the rates, the axes of a DET plot; rates of 0 and 1 are -+inf there.

    Returns:
        False-alarm rates and miss rates, (m,) each, from threshold -inf to inf.

    Raises:
        InputError: as in `eer`.
    """
    counts = count_scores(scores, is_target)
    misses, alarms = errors_from(counts.targets, counts.nontargets)
    # 1 where a step changes the misses alone, 2 the false alarms alone, 3 both
    kind = (counts.targets > 0) + 2 * (counts.nontargets > 0)
    keep = np.concatenate([[True], (kind[1:] != kind[:-1]) | (kind[1:] == 3), [True]])
    rates = alarms[keep] / alarms[0], misses[keep] / misses[-1]
    if not probit:
        return rates
    from scipy.special import ndtri

    return ndtri(rates[0]), ndtri(rates[1])


def bayes_threshold(prior: float) -> float:
    """Log-likelihood ratio at which accepting and rejecting cost the same: log((1 - P) / P)."""
    dcf_weights(prior)
    return math.log1p(-prior) - math.log(prior)
