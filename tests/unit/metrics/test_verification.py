from __future__ import annotations

import numpy as np
import pytest

from mmssl.errors import ConfigError, InputError
from mmssl.metrics.verification import (
    bayes_threshold,
    det_points,
    eer,
    min_dcf,
    prior_name,
    prior_of,
    verification_metrics,
)


def test_values_that_one_can_see() -> None:
    # ranked non, target, non, target: one target of two lies below the higher non-target
    assert eer([0, 1, 2, 3], [0, 1, 0, 1]) == 0.5
    assert eer([0, 0, 1, 1], [0, 0, 1, 1]) == 0
    assert eer([1, 1, 0, 0], [0, 0, 1, 1]) == 1
    # all tied: one step from (0, 1) to (1, 0)
    assert eer([5.0] * 6, [0, 1, 0, 0, 0, 1]) == 0.5
    # a tie of one target and one non-target of three, the rest in order: 1/4 between (0, 1/3) and (1, 0)
    assert eer([0, 0, 1, 1], [0, 0, 1, 0]) == pytest.approx(0.25)


def test_a_list_that_accepts_nothing_or_all_costs_one() -> None:
    assert min_dcf([0, 0, 0], [1, 0, 0], 0.01) == 1
    assert min_dcf([1, 0, 0], [0, 1, 1], 0.9) == 1
    assert min_dcf([1, 0, 0], [1, 0, 0], 0.01) == 0


def test_costs_are_named_by_their_prior() -> None:
    scores, labels = [3, 2, 1.5, 1, 0], [1, 0, 1, 0, 0]
    found = verification_metrics(scores, labels, priors=(0.01, 0.05, 0.5))
    assert list(found) == ["eer", "min_dcf_p01", "min_dcf_p05", "min_dcf_p50"]
    assert found["min_dcf_p01"] == min_dcf(scores, labels, 0.01)
    assert found["min_dcf_p50"] != found["min_dcf_p01"]


@pytest.mark.parametrize(
    ("prior", "name"), [(0.01, "p01"), (0.05, "p05"), (0.5, "p50"), (0.1, "p10"), (0.001, "p001"), (1e-5, "p00001")]
)
def test_names_of_priors_go_both_ways(prior: float, name: str) -> None:
    assert prior_name(prior) == name
    assert prior_of(f"min_dcf_{name}") == prior


def test_det_corners_span_the_whole_curve() -> None:
    alarms, misses = det_points([0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 1, 1])
    assert list(zip(alarms.round(3), misses.round(3), strict=True)) == [
        (1, 0),
        (0.333, 0),
        (0.333, 0.333),
        (0, 0.333),
        (0, 1),
    ]
    x, y = det_points([0, 1, 2, 3], [0, 1, 0, 1], probit=True)
    assert x[0] == np.inf
    assert y[0] == -np.inf
    assert 0.0 in x  # a rate of one half
    # a tie of both classes is a slope: its two ends stay, and what lies between two slopes too
    assert len(det_points([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])[0]) == 4


def test_the_bayes_threshold_makes_costs_equal() -> None:
    assert bayes_threshold(0.5) == 0
    assert bayes_threshold(0.01) == pytest.approx(np.log(99))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 2], [1, 1], "got 2 and 0"),
        ([1, 2], [0, 0], "got 0 and 2"),
        ([], [], "got 0 and 0"),
        ([1, 2, 3], [0, 1], r"\(3,\) and \(2,\)"),
        ([[1, 2]], [[0, 1]], r"\(n,\)"),
        ([1, np.nan], [0, 1], "1 of 2 scores are NaN"),
        ([1, 2], [1, -1], "1 for target and 0"),
        ([1, 2], ["target", "nontarget"], "1 for target and 0"),
    ],
)
def test_lists_that_have_no_error_rate_are_refused(scores, labels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        eer(scores, labels)
    with pytest.raises(InputError, match=message):
        verification_metrics(scores, labels)


def test_priors_out_of_range_are_refused() -> None:
    for prior in (0, 1, 5):
        with pytest.raises(ConfigError, match=r"lie in \(0, 1\)"):
            min_dcf([0, 1], [0, 1], prior)
    with pytest.raises(ConfigError, match="does not end in a prior"):
        prior_of("min_dcf")
