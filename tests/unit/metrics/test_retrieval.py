from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from mmssl.errors import InputError
from mmssl.metrics.classification import weighted_f1
from mmssl.metrics.localisation import box_masks, pointing_game
from mmssl.metrics.ranking import average_precision, choice_accuracy, roc_auc
from mmssl.metrics.retrieval import expected_ranks, recall_at, retrieval_metrics


def brute_force(row: np.ndarray, relevant: np.ndarray) -> list[int]:
    """Ranks of the first relevant item over all orders that sort the row."""
    ranks = []
    for order in itertools.permutations(range(len(row))):
        if all(row[a] >= row[b] for a, b in itertools.pairwise(order)):
            ranks.append(1 + next(place for place, item in enumerate(order) if relevant[item]))
    return ranks


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.data())
def test_ranks_are_expectations_over_all_orders_of_tied_items(row: list[int], data: st.DataObject) -> None:
    scores = np.array([row], dtype=float)
    relevant = np.array([data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))])
    relevant[0, data.draw(st.integers(0, len(row) - 1))] = True
    ranks = brute_force(scores[0], relevant[0])
    assert expected_ranks(scores, relevant)[0] == pytest.approx(np.mean(ranks))
    for k in range(1, len(row) + 2):
        assert recall_at(scores, relevant, k) == pytest.approx(np.mean([rank <= k for rank in ranks]))


def test_both_directions_of_a_table() -> None:
    table = np.array([[0.9, 0.1, 0.3], [0.95, 0.5, 0.2], [0.1, 0.6, 0.4]])
    found = retrieval_metrics(table, ks=(1, 2))
    assert found["audio_to_video_r1"] == pytest.approx(1 / 3)
    assert found["audio_to_video_r2"] == pytest.approx(1)
    assert found["video_to_audio_r1"] == pytest.approx(1 / 3)
    assert found["audio_to_video_median_rank"] == 2
    assert found["r1"] == pytest.approx(1 / 3)
    assert retrieval_metrics(np.zeros((8, 8)))["r1"] == pytest.approx(1 / 8)
    assert retrieval_metrics(np.zeros((9, 9)))["video_to_audio_median_rank"] == 5
    several = retrieval_metrics(table[:2], ids_first=[7, 8], ids_second=[8, 8, 7], ks=(1,))
    assert several["audio_to_video_r1"] == pytest.approx(1 / 2)


def test_a_permutation_of_the_items_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    table, ids = rng.integers(0, 4, (12, 12)).astype(float), rng.integers(0, 5, 12)
    order = rng.permutation(12)
    before, after = retrieval_metrics(table, ids), retrieval_metrics(table[order][:, order], ids[order])
    assert before == pytest.approx(after)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
def test_auc_and_average_precision_are_those_of_scikit_learn(trials: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in trials], float), np.array([y for _, y in trials])
    if labels.all() or not labels.any():
        with pytest.raises(InputError, match="need target"):
            roc_auc(scores, labels)
        return
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))


def test_choices_share_ties() -> None:
    assert choice_accuracy([[1, 0], [0, 1], [2, 2]], [0, 0, 1]) == pytest.approx(0.5)
    with pytest.raises(InputError, match="0 to 1"):
        choice_accuracy([[1, 0]], [2])


def test_weighted_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(1)
    for _ in range(5):
        truth, predicted = rng.integers(0, 4, 30), rng.integers(0, 5, 30)
        assert weighted_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="weighted"))


def test_the_pointing_game() -> None:
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 2] = 1
    masks = box_masks([[2, 1, 4, 3], [0, 0, 2, 2]], 4, 4)
    assert masks.sum() == 8
    assert masks[0, 1, 2]
    assert pointing_game(maps, masks) == pytest.approx((1 + 4 / 16) / 2)
    with pytest.raises(InputError, match="at least one point"):
        pointing_game(maps, np.zeros_like(masks))
    with pytest.raises(InputError, match="holds no point"):
        box_masks([[5, 5, 6, 6]], 4, 4)


@pytest.mark.parametrize(
    ("table", "relevant", "message"),
    [
        ([[np.nan]], [[True]], "NaN"),
        ([[1.0]], [[False]], "no relevant"),
        ([[1.0]], [[1]], "bool table"),
    ],
)
def test_wrong_tables_are_refused(table: list[list[float]], relevant: list[list[bool]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        expected_ranks(table, relevant)
