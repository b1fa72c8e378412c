from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmssl.errors import InputError
from mmssl.metrics.sequences import edit_distance, error_rate, error_rate_interval

SYMBOLS = st.lists(st.integers(0, 3), max_size=7)


def by_recursion(one: tuple[int, ...], other: tuple[int, ...], known: dict) -> int:
    if not one or not other:
        return len(one) + len(other)
    if (one, other) not in known:
        known[one, other] = min(
            by_recursion(one[1:], other, known) + 1,
            by_recursion(one, other[1:], known) + 1,
            by_recursion(one[1:], other[1:], known) + (one[0] != other[0]),
        )
    return known[one, other]


@given(SYMBOLS, SYMBOLS)
def test_distance_equals_the_definition(one: list[int], other: list[int]) -> None:
    assert edit_distance(one, other) == by_recursion(tuple(one), tuple(other), {}) == edit_distance(other, one)


def test_rate_counts_symbols_and_its_interval_holds_it() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 20, 200)
    edits = generator.binomial(lengths, 0.3)
    rate = error_rate(edits, lengths)
    assert rate == edits.sum() / lengths.sum()
    low, high = error_rate_interval(edits, lengths)
    assert low < rate < high
    # the normal approximation of a ratio over clips
    error = np.std(edits - rate * lengths) / lengths.mean() / np.sqrt(len(lengths))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert error_rate_interval(edits, lengths, seed=0) == (low, high)


def test_mistakes() -> None:
    with pytest.raises(InputError, match="at least one symbol"):
        error_rate([0], [0])
    with pytest.raises(InputError, match="level"):
        error_rate_interval([1], [2], level=2)
