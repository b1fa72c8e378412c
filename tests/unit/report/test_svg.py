from __future__ import annotations

from itertools import pairwise

import pytest

from mmssl.report.svg import heat, luminance, padded_range, shorten, thinned, ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (28.3, 91.7), (-3, 3), (0.001, 0.0042), (1e5, 9e5), (-9.1, 3.2), (0, 15.9), (0, 16)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low <= found[0] < found[-1] <= high
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) == 1
    # the last digit of a tick is not a quarter of the one before: -10, -5, 0 and not -7.5, -5, -2.5
    assert f"{steps.pop():e}"[:3] in ("1.0", "2.0", "5.0")


def test_ranges_are_never_empty() -> None:
    for values in ([], [0.0], [5.0, 5.0], [float("nan")], [-2.0]):
        low, high = padded_range(values)
        assert low < high
    assert padded_range([1.0, 2.0], 0.1) == pytest.approx((0.9, 2.1))


def test_text_on_heat_is_readable() -> None:
    for step in range(101):
        background, text = heat(step / 100)
        cell, ink = (luminance([int(c[k : k + 2], 16) for k in (1, 3, 5)]) for c in (background, text))
        contrast = (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05)
        assert contrast >= 4.5, (step, background, text, contrast)
    assert heat(-1) == heat(0)
    assert heat(2) == heat(1)


def test_shorten_and_thin() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"
    assert thinned(range(25), 13) == list(range(0, 25, 2))
    assert thinned([], 3) == []
