"""Formulas against scikit-learn's and against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from mmssl.errors import DataError
from mmssl.metrics.clusters import contingency, quality, usage

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=60)


@given(PAIRS)
def test_equal_to_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, clusters = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    table = contingency(labels, clusters, 5, 7)
    theirs = contingency_matrix(labels, clusters)
    assert np.array_equal(table[np.unique(labels)][:, np.unique(clusters)], theirs)
    found = quality(table)
    entropy = mutual_info_score(labels, labels)
    wanted = mutual_info_score(labels, clusters) / entropy if entropy > 1e-12 else 0.0
    assert found.pnmi == pytest.approx(wanted, abs=1e-9)
    # purities by a loop
    best = sum(max(np.sum((labels == x) & (clusters == c)) for x in range(5)) for c in range(7))
    assert found.phone_purity == pytest.approx(best / len(pairs))
    best = sum(max(np.sum((labels == x) & (clusters == c)) for c in range(7)) for x in range(5))
    assert found.cluster_purity == pytest.approx(best / len(pairs))
    assert found.frames == len(pairs)


def test_perfect_and_useless_clusters() -> None:
    perfect = quality(contingency(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), 2, 2))
    assert (perfect.phone_purity, perfect.cluster_purity, perfect.pnmi) == (1.0, 1.0, pytest.approx(1.0))
    useless = quality(contingency(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), 2, 2))
    assert useless.pnmi == pytest.approx(0.0)
    assert useless.phone_purity == 0.5


def test_frames_without_a_label_are_left_out() -> None:
    table = contingency(np.array([-1, 0, 1]), np.array([2, 0, 1]), 2, 3)
    assert table.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_usage_is_one_where_even_and_zero_for_one_cluster() -> None:
    assert usage(np.array([5, 5, 5, 5])) == (pytest.approx(1.0), 4)
    assert usage(np.array([9, 0, 0])) == (pytest.approx(0.0), 1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(3)
    assert usage(np.array([3, 1, 0])) == (pytest.approx(entropy), 2)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="outside"):
        contingency(np.array([0, 5]), np.array([0, 0]), 2, 2)
    with pytest.raises(DataError, match="two \\(N,\\)"):
        contingency(np.zeros((2, 2)), np.zeros(4), 2, 2)
    with pytest.raises(DataError, match="No frame"):
        quality(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(DataError, match="No frame"):
        usage(np.zeros(3))
