from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.downstream.sync_distance import IN_SYNC, NO_MATCH, SHIFTED, judge, shift_distances
from mmssl.errors import ConfigError, InputError
from mmssl.lengths import pad
from mmssl.types import Padded


def by_hand(a: np.ndarray, v: np.ndarray, reach: int, least: int) -> list[float]:
    """Frame by frame, as the definition reads."""
    found = []
    for shift in range(-reach, reach + 1):
        values = []
        for t in range(len(v)):
            if 0 <= t + shift < len(a):
                x, y = a[t + shift] / np.linalg.norm(a[t + shift]), v[t] / np.linalg.norm(v[t])
                values.append(np.sqrt(((x - y) ** 2).sum()))
        found.append(np.mean(values) if len(values) >= least else np.inf)
    return found


def test_distances_are_those_of_the_definition_and_ignore_padding():
    rng = np.random.default_rng(0)
    clips = [(rng.standard_normal((t, 5)), rng.standard_normal((u, 5))) for t, u in ((12, 10), (7, 9), (3, 8))]
    audio, video = (Padded(*pad([torch.tensor(pair[k]) for pair in clips])) for k in (0, 1))
    for side in (audio, video):
        for row, length in zip(side.data, side.lengths, strict=True):
            row[length:] = torch.nan
    found = shift_distances(audio, video, 4, least_frames=3)
    expected = [by_hand(a, v, 4, 3) for a, v in clips]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert np.isinf(expected).any()


def test_confidence_is_median_minus_minimum():
    rng = np.random.default_rng(1)
    rows = rng.uniform(0.5, 1.5, (6, 9))
    rows[:, 2] = 0.1
    for row, found in zip(rows, judge(torch.tensor(rows), threshold=0.0), strict=True):
        assert found.offset == -2
        assert found.confidence == pytest.approx(np.median(row) - row.min())
        assert found.distances == pytest.approx(tuple(row))
        assert (found.verdict, found.manipulated) == (SHIFTED, True)


def test_verdicts():
    near, far, flat = [1.0, 1.0, 1.0, 0.2, 1.0], [0.2, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.99, 1.0, 1.0]
    rows = torch.tensor([near, far, flat])
    assert [f.verdict for f in judge(rows, threshold=0.1)] == [IN_SYNC, SHIFTED, NO_MATCH]
    assert [f.manipulated for f in judge(rows, threshold=0.1)] == [False, True, True]
    assert [f.verdict for f in judge(rows)] == [IN_SYNC, SHIFTED, IN_SYNC]
    assert [f.verdict for f in judge(rows, tolerance=0)] == [SHIFTED, SHIFTED, IN_SYNC]
    with pytest.raises(ConfigError, match="tolerance"):
        judge(rows, tolerance=-1)
    with pytest.raises(InputError):
        judge(torch.full((1, 5), torch.inf))


def test_wrong_arguments():
    x, y = (Padded(torch.ones(1, 4, size), torch.tensor([4])) for size in (3, 2))
    with pytest.raises(InputError, match="one width"):
        shift_distances(x, y, 1)
    with pytest.raises(ConfigError, match="max_shift"):
        shift_distances(x, x, -1)
