"""Metrics of scores that claim to be log-likelihood ratios (natural logarithm)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmssl.metrics.verification import (
    PRIORS,
    Floats,
    Ints,
    ScoreCounts,
    bayes_threshold,
    count_scores,
    dcf_weights,
    prior_name,
)


def act_dcf_from(scores: Floats, targets: Ints, nontargets: Ints, prior: float) -> Floats:
    """Normalised cost (...) of counts (..., K) at the Bayes threshold; NaN where one class is empty."""
    miss_weight, alarm_weight = dcf_weights(prior)
    accepted = int(np.searchsorted(scores, bayes_threshold(prior)))
    with np.errstate(invalid="ignore"):
        miss = targets[..., :accepted].sum(-1) / targets.sum(-1)
        alarm = nontargets[..., accepted:].sum(-1) / nontargets.sum(-1)
    return miss_weight * miss + alarm_weight * alarm


def cllr_from(scores: Floats, targets: Ints, nontargets: Ints) -> Floats:
    """C_llr (...) of counts (..., K); NaN where one class is empty."""
    with np.errstate(invalid="ignore"):
        target_cost = _total(targets, np.logaddexp(0, -scores)) / targets.sum(-1)
        nontarget_cost = _total(nontargets, np.logaddexp(0, scores)) / nontargets.sum(-1)
    return (target_cost + nontarget_cost) / (2 * np.log(2))


def act_dcf(llrs: npt.ArrayLike, is_target: npt.ArrayLike, prior: float) -> float:
    """Normalised detection cost at the threshold that the scores themselves imply, log((1 - P) / P).

    It equals `min_dcf` for perfectly calibrated scores, exceeds it otherwise, and may exceed 1 (NIST 2012).

    Args:
        llrs: (n,) log-likelihood ratios; cosines are none: calibrate them first.
        is_target: (n,) bool, or 0 and 1.
        prior: P of a target trial; C_miss = C_fa = 1.

    Raises:
        InputError: shapes, scores or labels are wrong, or one class has no trial.
        ConfigError: `prior` does not lie in (0, 1).
    """
    counts = count_scores(llrs, is_target)
    return float(act_dcf_from(counts.scores, counts.targets, counts.nontargets, prior))


def cllr(llrs: npt.ArrayLike, is_target: npt.ArrayLike) -> float:
    """Cost of log-likelihood ratios in bits, >= 0; 1 for scores that are all 0.

    Bruemmer and du Preez, "Application-independent evaluation of speaker detection" (Computer Speech and Language
    2006): half the sum of the mean of log2(1 + e^-s) over targets and that of log2(1 + e^s) over non-targets. It is
    infinite where a target has -inf or a non-target inf.

    Args and errors as `act_dcf`.
    """
    counts = count_scores(llrs, is_target)
    return float(cllr_from(counts.scores, counts.targets, counts.nontargets))


def min_cllr(scores: npt.ArrayLike, is_target: npt.ArrayLike) -> float:
    """C_llr after the best monotone calibration, in [0, 1]: what is left is discrimination.

    Bruemmer and du Preez (2006), section 5: the posterior of each score by isotonic regression of the labels (pool
    adjacent violators), less the prior log-odds of the list. Tied scores get one value.

    Args and errors as `act_dcf`; any scores that grow with "the same speaker" are allowed.
    """
    return _min_cllr(count_scores(scores, is_target))


def calibration_metrics(
    llrs: npt.ArrayLike, is_target: npt.ArrayLike, priors: tuple[float, ...] = PRIORS
) -> dict[str, float]:
    """All of the above with one sort: {"cllr", "min_cllr", "act_dcf_p01", "act_dcf_p05"}.

    Args and errors as `act_dcf`.
    """
    counts = count_scores(llrs, is_target)
    parts = counts.scores, counts.targets, counts.nontargets
    found = {"cllr": float(cllr_from(*parts)), "min_cllr": _min_cllr(counts)}
    for prior in priors:
        found[f"act_dcf_{prior_name(prior)}"] = float(act_dcf_from(*parts, prior))
    return found


def _min_cllr(counts: ScoreCounts) -> float:
    from scipy.optimize import isotonic_regression

    sizes = counts.targets + counts.nontargets
    posterior = isotonic_regression(counts.targets / sizes, weights=sizes).x.clip(0, 1)
    # a posterior of exactly 0 or 1 holds one class alone, whose cost at -+inf is 0
    with np.errstate(divide="ignore"):
        odds = np.log(posterior) - np.log1p(-posterior)
    llrs = odds - np.log(counts.targets.sum() / counts.nontargets.sum())
    return float(cllr_from(llrs, counts.targets, counts.nontargets))


def _total(counts: Ints, costs: Floats) -> Floats:
    """Sum (...) of counts (..., K) times costs (K,), where an infinite cost that occurs 0 times adds nothing."""
    infinite = np.isinf(costs)
    total = counts @ np.where(infinite, 0.0, costs)
    return np.where(counts[..., infinite].any(-1), np.inf, total)
