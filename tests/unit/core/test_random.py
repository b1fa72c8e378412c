from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mmssl.random import isolated_rng, mix


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_global_generators_do_not_notice() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with isolated_rng(5):
        draw()
    assert draw() == expected


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    with isolated_rng(3):
        first = draw()
    draw()
    with isolated_rng(3):
        assert draw() == first
    with isolated_rng(4):
        assert draw() != first


def test_states_come_back_after_an_error() -> None:
    torch.manual_seed(2)
    expected = torch.rand(())
    torch.manual_seed(2)
    with pytest.raises(ZeroDivisionError), isolated_rng(9):
        raise ZeroDivisionError
    assert torch.equal(torch.rand(()), expected)


def test_mixed_seeds_are_unlike_each_other() -> None:
    seeds = {mix(seed, epoch, clip) for seed in range(10) for epoch in range(10) for clip in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) == mix(1, 2) != mix(2, 1)
    # neighbours differ in about half of their bits
    flipped = [(mix(0, k) ^ mix(0, k + 1)).bit_count() for k in range(200)]
    assert 25 < sum(flipped) / len(flipped) < 38
