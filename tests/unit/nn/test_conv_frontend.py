from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.conv_frontend import ConvFrontEnd

SIZES = {
    "base": ((24, 16, 16, 12), (10, 3, 3, 2), (5, 2, 2, 2)),
    "one": ((8,), (10,), (5,)),
    "wide kernels": ((8, 8, 8), (4, 5, 4), (3, 2, 1)),
}


def front_end(sizes: str, norm: str, bias: bool) -> ConvFrontEnd:
    torch.manual_seed(0)
    front = ConvFrontEnd(*SIZES[sizes], bias=bias, norm=norm).eval()
    for module in front.norms:
        torch.nn.init.normal_(module.weight, 1.0, 0.3)
        torch.nn.init.normal_(module.bias, 0.0, 0.3)
    return front


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_blocked_path_gives_the_numbers_of_the_plain_one(sizes: str, norm: str, bias: bool) -> None:
    front = front_end(sizes, norm, bias).requires_grad_(False)
    # several blocks of the first layers, a single one, a very short clip
    for length in (9000, 1100, max(front.min_length, 20)):
        clip = torch.randn(length) * 0.1 + 0.05
        plain, blocked = front._plain(clip), front._blocked(clip)
        assert plain.shape == blocked.shape
        assert (plain - blocked).abs().max() <= 1e-5 * plain.abs().max()


def test_the_plain_path_is_conv_norm_gelu() -> None:
    front = front_end("base", "group", False)
    clip = torch.randn(900)
    x = torch.nn.functional.conv1d(clip[None, None], front.convs[0].weight, stride=5)
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5)
    x = torch.nn.functional.gelu(x * front.norms[0].weight[:, None] + front.norms[0].bias[:, None])
    for conv in front.convs[1:]:
        x = torch.nn.functional.gelu(torch.nn.functional.conv1d(x, conv.weight, stride=2))
    assert torch.allclose(front([clip]).data, x[0].t(), atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_clip_does_not_see_the_others(norm: str) -> None:
    front = front_end("base", norm, False).requires_grad_(False)
    clips = [torch.randn(n) for n in (3001, 800, 1200)]
    packed = front(clips)
    lengths = front.output_lengths(torch.tensor([len(c) for c in clips]))
    assert list(packed.lengths) == lengths.tolist()
    for clip, frames in zip(clips, packed.split(), strict=True):
        assert torch.equal(frames, front([clip]).data)


def test_the_fast_path_is_left_where_gradients_are_wanted() -> None:
    front = front_end("base", "group", True)
    clip = torch.randn(900, requires_grad=True)
    front([clip]).data.sum().backward()
    assert clip.grad.abs().max() > 0
    assert front.convs[0].weight.grad.abs().max() > 0


def test_a_constant_clip_gives_finite_frames() -> None:
    front = front_end("base", "group", False).requires_grad_(False)
    assert front([torch.zeros(2000)]).data.isfinite().all()
    assert torch.allclose(front._plain(torch.full((2000,), 0.5)), front._blocked(torch.full((2000,), 0.5)), atol=1e-3)


def test_min_length_gives_one_frame_and_hop_is_the_product_of_strides() -> None:
    front = ConvFrontEnd((4,) * 7)
    assert (front.min_length, front.hop_length) == (400, 320)
    assert front.output_lengths(torch.tensor([399, 400, 719, 720])).tolist() == [0, 1, 1, 2]


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 channels, 1 kernels"):
        ConvFrontEnd((4, 4), (3,), (2,))
    with pytest.raises(ConfigError, match="'batch'"):
        ConvFrontEnd((4,), (3,), (2,), norm="batch")
