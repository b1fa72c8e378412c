from __future__ import annotations

import math

import pytest
import torch

from mmssl.nn.packed import Packed
from mmssl.nn.positional import ConvPositions, ConvStackPositions, relative_position_buckets


@pytest.mark.parametrize("module", [ConvPositions(12, 8, 4), ConvPositions(12, 5, 3), ConvStackPositions(12, 3, 4, 3)])
def test_positions_are_the_same_alone_with_and_without_gradients(module: torch.nn.Module) -> None:
    clips = [torch.randn(n, 12) for n in (9, 1, 30)]
    packed = Packed.of(clips)
    together = module(packed)
    assert together.shape == packed.data.shape
    alone = torch.cat([module(Packed.of([clip])) for clip in clips])
    assert torch.allclose(together, alone, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(together, module(packed), atol=1e-5)


def test_weight_norm_is_over_each_tap() -> None:
    module = ConvPositions(8, 4, 2)
    clip = torch.randn(11, 8)
    with torch.no_grad():
        module.weight_g.mul_(torch.rand_like(module.weight_g) + 0.5)
        got = module(Packed.of([clip]))
        scale = module.weight_g / module.weight_v.norm(dim=(0, 1), keepdim=True)
        x = torch.nn.functional.conv1d(clip.t()[None], module.weight_v * scale, module.bias, padding=2, groups=2)
    assert torch.allclose(got, torch.nn.functional.gelu(x[0, :, :-1].t()), atol=1e-6)


def test_buckets_are_exact_when_near_logarithmic_when_far_and_signed() -> None:
    offsets = torch.tensor([0, 1, 79, 80, 100, 800, 5000, -1, -79, -5000])
    got = relative_position_buckets(offsets, 320, 800).tolist()
    far = 80 + int(math.log(100 / 80) / math.log(800 / 80) * 80)
    assert got == [0, 161, 239, 240, 160 + far, 319, 319, 1, 79, 159]
