from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from mmssl.nn.masked import MaskedGroupNorm, length_scope, scoped_lengths, zero_steps


def norm(groups: int = 4, channels: int = 8, scope: str | None = None) -> MaskedGroupNorm:
    made = MaskedGroupNorm(groups, channels, scope=scope)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, channels))
        made.bias.copy_(torch.linspace(-1, 1, channels))
    return made


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_statistics_cover_valid_steps_only(groups: int) -> None:
    data = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0)) + 3
    lengths = torch.tensor([20, 7, 1])
    masked = norm(groups)
    plain = nn.GroupNorm(groups, 8)
    plain.load_state_dict(masked.state_dict())
    out = masked(data, lengths)
    for row, size in enumerate(lengths.tolist()):
        valid = data[row : row + 1, :, :size]
        if size * 8 // groups > 1:
            assert torch.equal(out[row, :, :size], plain(valid)[0])
        else:
            # torch's module refuses a group of one value, whose mean is itself: the bias is left, after rounding
            assert torch.allclose(out[row, :, :size], plain.bias[:, None], atol=1e-2)
        assert torch.equal(masked(valid), out[row : row + 1, :, :size])
        assert not out[row, :, size:].any()
    assert torch.equal(masked(data), plain(data))


def test_padding_cannot_be_seen_and_gets_no_gradient() -> None:
    data = torch.randn(2, 8, 10)
    data[0, :, 4:] = float("nan")
    data.requires_grad_(True)
    out = norm()(data, torch.tensor([4, 10]))
    assert out.isfinite().all()
    (out * torch.randn(out.shape)).sum().backward()
    assert data.grad is not None
    assert not data.grad[0, :, 4:].any()
    assert data.grad[0, :, :4].any()


def test_an_empty_sequence_gives_zeros() -> None:
    assert not norm()(torch.ones(2, 8, 5), torch.tensor([0, 5]))[0].any()


def test_scope_reaches_by_name_nests_and_ends_with_an_exception() -> None:
    masked, data, lengths = norm(scope="frames"), torch.randn(2, 8, 6), torch.tensor([3, 6])
    expected = masked(data, lengths)
    with length_scope(frames=lengths):
        assert torch.equal(masked(data), expected)
        with length_scope(other=lengths):
            assert scoped_lengths("frames") is None
        assert torch.equal(masked(data), expected)
    with pytest.raises(RuntimeError, match="stop"), length_scope(frames=lengths):
        raise RuntimeError("stop")
    assert scoped_lengths("frames") is None
    assert not torch.equal(masked(data), expected)


def test_another_thread_does_not_see_the_scope() -> None:
    seen: list[object] = []
    with length_scope(frames=torch.tensor([1])):
        thread = threading.Thread(target=lambda: seen.append(scoped_lengths("frames")))
        thread.start()
        thread.join()
    assert seen == [None]


def test_like_shares_parameters_and_copies() -> None:
    plain = nn.GroupNorm(2, 4, eps=1e-3)
    masked = MaskedGroupNorm.like(plain, scope="x")
    assert masked.weight is plain.weight
    assert masked.eps == 1e-3
    assert copy.deepcopy(masked).scope == "x"
    assert list(masked.state_dict()) == ["weight", "bias"]


def test_zero_steps_clears_nan_and_leaves_whole_batches_alone() -> None:
    data = torch.full((2, 3, 4), float("nan"))
    data[0, :, :2], data[1] = 1.0, 2.0
    out = zero_steps(data, torch.tensor([2, 4]))
    assert torch.equal(out[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(3, 4))
    assert zero_steps(data, None) is data
    assert zero_steps(out, torch.tensor([4, 4])) is out
