from __future__ import annotations

import numpy as np
import pytest

from mmssl.downstream.scoring import (
    as_norm,
    cohort_means,
    cohort_statistics,
    cosine_scores,
    crop_means,
    pair_products,
    unit_length,
)
from mmssl.errors import InputError


def cosine(a, b) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


GENERATOR = np.random.default_rng(0)
CLIPS = GENERATOR.normal(size=(12, 6)) * GENERATOR.uniform(0.1, 50, size=(12, 1))
COHORT = GENERATOR.normal(size=(9, 6))
ENROL, TEST = GENERATOR.integers(0, 12, size=(2, 40))


def test_cosines_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [cosine(CLIPS[a], CLIPS[b]) for a, b in zip(ENROL, TEST, strict=True)]
    assert cosine_scores(CLIPS, ENROL, TEST) == pytest.approx(expected, abs=1e-14)
    # in parts of a few trials
    monkeypatch.setattr("mmssl.downstream.scoring.VALUES_AT_ONCE", 20)
    assert cosine_scores(CLIPS, ENROL, TEST) == pytest.approx(expected, abs=1e-14)


def test_crop_means_give_the_mean_over_all_pairs_of_crops() -> None:
    crops = [GENERATOR.normal(size=(number, 6)) for number in (3, 1, 5)]
    scores = pair_products(crop_means(crops), [0, 0, 1], [1, 2, 2])
    for score, (a, b) in zip(scores, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert score == pytest.approx(np.mean([cosine(x, y) for x in crops[a] for y in crops[b]]), abs=1e-14)


def test_the_cohort_is_one_unit_vector_per_speaker() -> None:
    got = cohort_means(CLIPS[:5], ["b", "a", "b", "b", "c"])
    mean_b = sum(CLIPS[i] / np.linalg.norm(CLIPS[i]) for i in (0, 2, 3))
    np.testing.assert_allclose(got, unit_length(np.stack([CLIPS[1], mean_b, CLIPS[4]])), atol=1e-14)


@pytest.mark.parametrize("top", [4, 300])
@pytest.mark.parametrize("at_once", [30, 10**6])
def test_as_norm_one_trial_at_a_time(top: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmssl.downstream.scoring.VALUES_AT_ONCE", at_once)
    raw = cosine_scores(CLIPS, ENROL, TEST)
    got = as_norm(raw, CLIPS, ENROL, TEST, COHORT, top)
    for score, a, b, normed in zip(raw, ENROL, TEST, got, strict=True):
        both = []
        for clip in (CLIPS[a], CLIPS[b]):
            highest = sorted((cosine(clip, c) for c in COHORT), reverse=True)[:top]
            both.append((score - np.mean(highest)) / np.std(highest))
        assert normed == pytest.approx(sum(both) / 2, abs=1e-10)


def test_normalised_scores_belong_to_their_trial() -> None:
    raw = cosine_scores(CLIPS, ENROL, TEST)
    got = as_norm(raw, CLIPS, ENROL, TEST, COHORT, 5)
    order = np.random.default_rng(1).permutation(40)
    again = as_norm(raw[order], CLIPS, ENROL[order], TEST[order], COHORT, 5)
    assert (again == got[order]).all()
    assert as_norm(raw, CLIPS, TEST, ENROL, COHORT, 5) == pytest.approx(got, abs=1e-14)


def test_as_norm_mends_clips_that_are_near_to_everybody() -> None:
    from mmssl.metrics.verification import eer

    generator = np.random.default_rng(2)
    voices = np.repeat(generator.normal(size=(30, 16)), 4, axis=0)
    # a channel of its own for every clip, shared by the cohort: near to all where it is strong
    strength = generator.uniform(0, 4, size=(120, 1))
    clips = voices + 0.7 * generator.normal(size=(120, 16)) + strength * np.eye(16)[0] * 2
    cohort = generator.normal(size=(200, 16)) + 3 * np.eye(16)[0]
    first, second = np.triu_indices(120, 1)
    labels = first // 4 == second // 4
    raw = cosine_scores(clips, first, second)
    assert eer(as_norm(raw, clips, first, second, cohort, 50), labels) < 0.8 * eer(raw, labels)


def test_mistakes_are_named() -> None:
    for wrong, message in [
        (np.zeros((3, 2)), "3 embeddings are zero"),
        (np.array([[1.0, np.nan], [1, 1]]), "1 embeddings are not finite, the first is row 0"),
        (np.ones(3), r"must be \(N, D\)"),
    ]:
        with pytest.raises(InputError, match=message):
            unit_length(wrong)
    with pytest.raises(InputError, match="whole numbers in 0 to 11"):
        cosine_scores(CLIPS, [12], [0])
    with pytest.raises(InputError, match="whole numbers in 0 to 11"):
        cosine_scores(CLIPS, [-1], [0])
    with pytest.raises(InputError, match="n >= 1"):
        cosine_scores(CLIPS, [], [])
    with pytest.raises(InputError, match="Clip 1 has no crop"):
        crop_means([CLIPS, CLIPS[:0]])
    with pytest.raises(InputError, match="no clip"):
        crop_means([])
    with pytest.raises(InputError, match="12 embeddings and 2 speakers"):
        cohort_means(CLIPS, ["a", "b"])
    with pytest.raises(InputError, match="C >= 2"):
        cohort_statistics(CLIPS, COHORT[:1])
    with pytest.raises(InputError, match="all alike"):
        cohort_statistics(CLIPS, np.ones((5, 6)))
    with pytest.raises(InputError, match="40 trials and scores of shape"):
        as_norm([1.0], CLIPS, ENROL, TEST, COHORT)
