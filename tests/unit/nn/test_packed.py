from __future__ import annotations

import torch

from mmssl.nn.packed import Packed, add_to_own, gelu_of_own, runs_on_fast_path, runs_without_grad
from mmssl.types import Padded


def test_packing_a_padded_batch_drops_the_padding_and_padding_again_zeroes_it() -> None:
    data = torch.arange(1.0, 25.0).view(2, 4, 3)
    packed = Packed.from_padded(Padded(data, torch.tensor([4, 2])))
    assert packed.lengths == (4, 2)
    assert torch.equal(packed.data, torch.cat([data[0], data[1, :2]]))
    again = packed.pad()
    assert torch.equal(again.data[0], data[0])
    assert torch.equal(again.data[1, :2], data[1, :2])
    assert not again.data[1, 2:].any()
    assert again.lengths.tolist() == [4, 2]


def test_split_returns_views_of_each_clip() -> None:
    packed = Packed.of([torch.zeros(2, 1), torch.ones(3, 1)])
    first, second = packed.split()
    assert (first.sum(), second.sum()) == (0, 3)
    assert second.data_ptr() == packed.data[2:].data_ptr()


def test_nothing_is_overwritten_while_gradients_are_wanted() -> None:
    x = torch.randn(5, requires_grad=True)
    kept = x.detach().clone()
    own = x * 1
    gelu_of_own(own).sum().backward()
    expected = kept.clone().requires_grad_()
    torch.nn.functional.gelu(expected).sum().backward()
    assert torch.equal(own.detach(), kept)
    assert torch.equal(x.grad, expected.grad)
    assert not runs_without_grad(x)
    with torch.no_grad():
        assert runs_without_grad(x)
        assert runs_on_fast_path(x)
    assert not runs_on_fast_path(x.detach().double())


def test_a_sum_of_two_precisions_keeps_the_wider_one() -> None:
    total = add_to_own(torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1e-4))
    assert total.dtype == torch.float32
