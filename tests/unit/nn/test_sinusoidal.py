from __future__ import annotations

import math

import torch

from mmssl.nn.packed import Packed
from mmssl.nn.sinusoidal import SinusoidalPositions


def test_positions_are_the_formula_and_start_anew_with_each_clip() -> None:
    positions = SinusoidalPositions(6)
    packed = Packed(torch.zeros(5, 6), (3, 2))
    out = positions(packed)
    assert torch.equal(out[:2], out[3:])
    for time in range(3):
        for feature in range(6):
            angle = time / 10000 ** (2 * (feature // 2) / 6)
            expected = math.sin(angle) if feature % 2 == 0 else math.cos(angle)
            assert abs(float(out[time, feature]) - expected) < 1e-6
