"""The draws of audio-visual pretexts: balance, derangement, distribution, and that a seed decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.av_samplers import (
    check_control,
    kept_modalities,
    other_spans,
    partners,
    partners_within,
    shifted_places,
    true_and_false,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=24), st.integers(0, 2**31))
def test_partners_are_of_another_group_and_each_clip_is_one_once(groups: list[int], seed: int) -> None:
    largest = max(Counter(groups).values())
    if 2 * largest > len(groups):
        with pytest.raises(InputError, match="of one group"):
            partners(groups, seeded(seed))
        return
    chosen = partners(groups, seeded(seed)).tolist()
    assert sorted(chosen) == list(range(len(groups)))
    assert all(groups[clip] != groups[other] for clip, other in enumerate(chosen))


def test_every_other_clip_is_as_likely_a_partner() -> None:
    generator, draws = seeded(), 6000
    counts = torch.zeros(5, 5)
    for _ in range(draws):
        counts[torch.arange(5), partners(range(5), generator)] += 1
    assert counts.diagonal().sum() == 0
    expected = draws / 4
    # five deviations of a binomial count
    assert (counts[~torch.eye(5, dtype=torch.bool)] - expected).abs().max() < 5 * (draws * 0.25 * 0.75) ** 0.5


def test_every_clip_of_another_group_can_be_a_partner() -> None:
    groups = ["a", "a", "b", "b", "b", "c", "c", "d"]
    seen: set[tuple[int, int]] = set()
    generator = seeded(1)
    for _ in range(1500):
        seen |= set(enumerate(partners(groups, generator).tolist()))
    assert seen == {(i, j) for i in range(8) for j in range(8) if groups[i] != groups[j]}


def test_each_side_is_in_one_true_and_one_false_pair() -> None:
    audio, video, match = true_and_false(range(9), seeded())
    for side in (audio, video):
        for label in (0, 1):
            assert sorted(side[match == label].tolist()) == list(range(9))
    assert torch.equal(audio[match == 1], video[match == 1])
    assert (audio[match == 0] != video[match == 0]).all()


@given(st.lists(st.integers(0, 4), min_size=2, max_size=16), st.integers(0, 2**31))
def test_partners_within_a_group_are_others_of_it(groups: list[int], seed: int) -> None:
    chosen = partners_within(groups, seeded(seed)).tolist()
    assert sorted(chosen) == list(range(len(groups)))
    for clip, other in enumerate(chosen):
        assert groups[clip] == groups[other]
        assert (clip == other) == (groups.count(groups[clip]) == 1)
    alone = [clip for clip, other in enumerate(chosen) if clip == other]
    if len(alone) == len(groups):
        with pytest.raises(InputError, match="group_by"):
            true_and_false(groups, seeded(seed), within=True)
        return
    audio, video, match = true_and_false(groups, seeded(seed), within=True)
    rest = sorted(set(range(len(groups))) - set(alone))
    for side in (audio, video):
        for label in (0, 1):
            assert sorted(side[match == label].tolist()) == rest


def test_every_other_clip_of_a_group_is_as_likely_a_partner() -> None:
    generator, draws = seeded(), 6000
    counts = torch.zeros(5, 5)
    for _ in range(draws):
        counts[torch.arange(5), partners_within([0, 1, 0, 0, 0], generator)] += 1
    assert counts[1, 1] == draws
    group = counts[[0, 2, 3, 4]][:, [0, 2, 3, 4]]
    assert group.diagonal().sum() == 0
    assert (group[~torch.eye(4, dtype=torch.bool)] - draws / 3).abs().max() < 5 * (draws * 2 / 9) ** 0.5


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**31))
def test_shifts_stay_in_range_and_in_the_segment(places: int, low: int, more: int, seed: int) -> None:
    if places <= low:
        with pytest.raises(InputError, match="longer segments"):
            shifted_places(places, low, low + more, seeded(seed))
        return
    first, second = shifted_places(places, low, low + more, seeded(seed))
    assert 0 <= first < places
    assert 0 <= second < places
    assert low <= abs(first - second) <= low + more


def test_shifts_are_uniform_over_allowed_ordered_pairs() -> None:
    generator, draws = seeded(2), 12000
    allowed = [(a, b) for a in range(6) for b in range(6) if 2 <= abs(a - b) <= 4]
    counts = Counter(shifted_places(6, 2, 4, generator) for _ in range(draws))
    assert set(counts) == set(allowed)
    share = 1 / len(allowed)
    assert max(abs(counts[pair] - draws * share) for pair in allowed) < 5 * (draws * share * (1 - share)) ** 0.5


def test_either_place_has_one_distribution() -> None:
    generator = seeded(3)
    drawn = torch.tensor([shifted_places(8, 3, 7, generator) for _ in range(8000)])
    first, second = (torch.bincount(drawn[:, side], minlength=8).double() for side in (0, 1))
    statistic = ((first - second) ** 2 / (first + second).clamp(min=1)).sum()
    # 99.9 % point of chi squared with 7 degrees of freedom
    assert statistic < 24.3


def test_modalities_are_kept_as_often_as_said() -> None:
    generator, draws = seeded(4), 8000
    counts = Counter(kept_modalities(0.5, 0.5, generator) for _ in range(draws))
    assert set(counts) == {(True, True), (True, False), (False, True)}
    assert abs(counts[True, True] / draws - 0.5) < 0.03
    assert abs(counts[True, False] / draws - 0.25) < 0.03
    assert {kept_modalities(0.0, 0.5, generator) for _ in range(50)} == {(True, True)}
    assert {kept_modalities(1.0, 1.0, generator) for _ in range(50)} == {(False, True)}


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 7), st.integers(0, 2**31))
def test_hidden_spans_take_frames_of_other_places(hidden: list[bool], span: int, seed: int) -> None:
    mask = torch.tensor(hidden)
    index = other_spans(mask, span, seeded(seed))
    places = torch.arange(len(mask))
    assert torch.equal(index[~mask], places[~mask])
    assert ((index >= 0) & (index < len(mask))).all()
    if not mask.all() or len(mask) > span:
        assert (index[mask] != places[mask]).all()


def test_substitutes_are_uniform_stretches_that_do_not_overlap() -> None:
    mask = torch.zeros(12, dtype=torch.bool)
    mask[4:7] = True
    generator = seeded(5)
    sources = Counter()
    for _ in range(6000):
        index = other_spans(mask, 3, generator)[4:7]
        assert index.diff().tolist() == [1, 1]
        sources[int(index[0])] += 1
    assert set(sources) == {0, 1, 7, 8, 9}
    assert max(abs(count - 1200) for count in sources.values()) < 5 * (6000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: partners(range(7), g).tolist(),
        lambda g: [x.tolist() for x in true_and_false(range(6), g)],
        lambda g: [shifted_places(20, 2, 9, g) for _ in range(4)],
        lambda g: other_spans(torch.ones(30) > 0, 5, g).tolist(),
    ],
)
def test_the_seed_decides(draw: Callable[[torch.Generator], Hashable]) -> None:
    state = torch.get_rng_state()
    assert draw(seeded(6)) == draw(seeded(6))
    assert draw(seeded(6)) != draw(seeded(7))
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="shuffled"):
        check_control("shuffle")
    with pytest.raises(ConfigError, match="min_shift"):
        shifted_places(9, 0, 3, seeded())
    with pytest.raises(ConfigError, match="min_shift"):
        shifted_places(9, 4, 3, seeded())
    with pytest.raises(InputError, match="another clip"):
        partners(["a"], seeded())
