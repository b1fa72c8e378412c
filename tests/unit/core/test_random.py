from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mmssl.random import isolated_rng


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
