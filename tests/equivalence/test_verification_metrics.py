"""Verification metrics against definitions written out in exact fractions, and against scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from mmssl.metrics.calibration import act_dcf, calibration_metrics, cllr, min_cllr
from mmssl.metrics.speaker_bootstrap import speaker_bootstrap
from mmssl.metrics.verification import det_points, eer, min_dcf, verification_metrics


def rates(scores, labels) -> list[tuple[Fraction, Fraction]]:
    """(miss, fa) at every distinct threshold and above all, by counting."""
    targets = [s for s, t in zip(scores, labels, strict=True) if t]
    others = [s for s, t in zip(scores, labels, strict=True) if not t]
    points = []
    for threshold in [*sorted(set(scores)), math.inf]:
        miss = Fraction(sum(s < threshold for s in targets), len(targets))
        alarm = Fraction(sum(s >= threshold for s in others), len(others))
        points.append((miss, alarm))
    return points


def brute_eer(scores, labels) -> Fraction:
    points = rates(scores, labels)
    for (miss_a, fa_a), (miss_b, fa_b) in pairwise(points):
        low, high = miss_a - fa_a, miss_b - fa_b
        if low < 0 <= high:
            return miss_a + (miss_b - miss_a) * -low / (high - low)
    raise AssertionError("no crossing")


def brute_dcf(scores, labels, prior: Fraction) -> Fraction:
    return min(prior * m + (1 - prior) * f for m, f in rates(scores, labels)) / min(prior, 1 - prior)


def lists() -> list[tuple[list[float], list[int]]]:
    generator = np.random.default_rng(0)
    found = []
    for trial in range(60):
        size = int(generator.integers(2, 60))
        labels = generator.random(size) < generator.choice([0.05, 0.3, 0.5, 0.9])
        labels[:2] = [True, False]
        scores = generator.normal(size=size) + labels * generator.choice([-2.0, 0.0, 1.0, 6.0])
        if trial % 3:  # heavy ties
            scores = np.round(scores * generator.choice([0.5, 1, 2]))
        found.append((scores.tolist(), labels.astype(int).tolist()))
    degenerate = [
        ([0.5, 0.5], [1, 0]),
        ([1.0, 0.0], [1, 0]),
        ([0.0, 1.0], [1, 0]),
        ([0.0] * 9, [1, 0, 0, 1, 0, 0, 0, 0, 1]),
        ([1.0, 1.0, 0.0], [1, 0, 0]),
        ([math.inf, 0.0, -math.inf, 0.0], [1, 1, 0, 0]),
    ]
    return [*found, *degenerate]


@pytest.mark.parametrize("scores_and_labels", lists())
def test_eer_and_min_dcf_equal_the_definition(scores_and_labels) -> None:
    scores, labels = scores_and_labels
    assert eer(scores, labels) == pytest.approx(float(brute_eer(scores, labels)), abs=1e-15)
    for prior in (Fraction(1, 100), Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)):
        exact = float(brute_dcf(scores, labels, prior))
        assert min_dcf(scores, labels, float(prior)) == pytest.approx(exact, abs=1e-14)


def test_the_order_of_the_trials_changes_no_bit() -> None:
    generator = np.random.default_rng(1)
    labels = generator.random(500) < 0.2
    scores = np.round(generator.normal(size=500) + labels, 1)
    speakers = generator.integers(0, 12, size=500)
    others = np.where(labels, speakers, (speakers + generator.integers(1, 12, size=500)) % 12)
    every = [*verification_metrics(scores, labels).values(), *calibration_metrics(scores, labels).values()]
    intervals = speaker_bootstrap(scores, labels, speakers, others, ["eer", "cllr", "act_dcf_p05"], 50)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(500)
        again = scores[order], labels[order]
        assert [*verification_metrics(*again).values(), *calibration_metrics(*again).values()] == every
        sides = speakers[order], others[order]
        assert speaker_bootstrap(*again, *sides, ["eer", "cllr", "act_dcf_p05"], 50) == intervals


def test_operating_points_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import det_curve, roc_auc_score

    generator = np.random.default_rng(2)
    labels = generator.random(400) < 0.3
    scores = np.round(generator.normal(size=400) + labels, 2)
    alarms, misses = det_points(scores, labels)
    # all of their points lie on the line between the corners, and the area below it is theirs
    theirs = det_curve(labels, scores)
    ours = set(zip(alarms, misses, strict=True))
    steep = [(f, m) for f, m in zip(*theirs[:2], strict=True)]
    assert len(ours & set(steep)) >= len(ours) - 2
    area = (-np.diff(alarms) * (misses[1:] + misses[:-1]) / 2).sum()
    assert 1 - area == pytest.approx(roc_auc_score(labels, scores))


def test_costs_of_log_likelihood_ratios_equal_their_sums() -> None:
    generator = np.random.default_rng(3)
    labels = generator.random(300) < 0.4
    llrs = np.round(generator.normal(size=300) * 2 + labels * 3 - 1, 1)
    target_cost = sum(math.log2(1 + math.exp(-s)) for s in llrs[labels]) / labels.sum()
    other_cost = sum(math.log2(1 + math.exp(s)) for s in llrs[~labels]) / (~labels).sum()
    assert cllr(llrs, labels) == pytest.approx((target_cost + other_cost) / 2, rel=1e-13)
    for prior in (0.01, 0.3):
        accept = llrs >= math.log((1 - prior) / prior)
        cost = prior * (~accept[labels]).mean() + (1 - prior) * accept[~labels].mean()
        assert act_dcf(llrs, labels, prior) == pytest.approx(cost / min(prior, 1 - prior))


@pytest.mark.parametrize("step", [0.01, 0.5])
def test_min_cllr_is_that_of_scikit_learns_isotonic_regression(step: float) -> None:
    from sklearn.isotonic import IsotonicRegression

    generator = np.random.default_rng(4)
    labels = generator.random(300) < 0.4
    scores = np.round((generator.normal(size=300) + labels) / step) * step
    # every trial counts the same: ties are pooled by scikit-learn's weighted average of equal inputs
    posterior = IsotonicRegression(y_min=0, y_max=1).fit(scores, labels).predict(scores)
    with np.errstate(divide="ignore"):
        llrs = np.log(posterior) - np.log(1 - posterior) - math.log(labels.sum() / (~labels).sum())
    assert min_cllr(scores, labels) == pytest.approx(cllr(llrs, labels), rel=1e-9)
    # no other monotone map does better
    for power in (0.5, 1, 2):
        assert cllr(power * (scores - 0.5), labels) >= min_cllr(scores, labels)


def test_bootstrap_equals_a_loop_over_repeated_trials() -> None:
    generator = np.random.default_rng(5)
    names = np.array([f"s{i}" for i in generator.integers(0, 8, size=(2, 200)).ravel()]).reshape(2, 200)
    labels = names[0] == names[1]
    scores = np.round(generator.normal(size=200) + 2 * labels, 1)
    got = speaker_bootstrap(
        scores, labels, names[0], names[1], ["eer", "min_dcf_p05", "cllr", "act_dcf_p05"], 40, seed=7
    )
    draws = np.random.default_rng(7).multinomial(8, np.full(8, 1 / 8), size=40)
    order = {name: i for i, name in enumerate(sorted(set(names.ravel())))}
    values: dict[str, list[float]] = {name: [] for name in got}
    for draw in draws:
        pairs = zip(names[0], names[1], strict=True)
        times = [draw[order[a]] if a == b else draw[order[a]] * draw[order[b]] for a, b in pairs]
        s, t = np.repeat(scores, times), np.repeat(labels, times)
        if t.all() or not t.any():
            continue
        both = {**verification_metrics(s, t), **calibration_metrics(s, t)}
        for name, found in values.items():
            found.append(both[name])
    for name, found in values.items():
        assert got[name] == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), abs=1e-12)
