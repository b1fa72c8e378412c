from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.nn.ska_tdnn import (
    ConvNorm2d,
    FrontBlock,
    KernelChoice,
    MaskedBatchNorm2d,
    SelectiveBlock,
    SelectiveConv2d,
    SkaTdnnEncoder,
)
from mmssl.types import Padded


def drawn_norms(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def tiny() -> SkaTdnnEncoder:
    torch.manual_seed(0)
    encoder = drawn_norms(SkaTdnnEncoder(8, 16, 4, 12, 5))
    assert isinstance(encoder, SkaTdnnEncoder)
    return encoder


def frames(*lengths: int) -> Padded:
    data = torch.randn(len(lengths), max(lengths), 8, generator=torch.Generator().manual_seed(1))
    return Padded(data, torch.tensor(lengths))


def test_it_has_as_many_parameters_as_the_authors() -> None:
    def convs2d() -> int:
        return sum(128 * 128 * k * k + 128 + 2 * 128 for k in (5, 7))

    def choice(size: int, width: int) -> int:
        return size * width + width + 2 * (width * size + size)

    block2d = 128 * 128 * 9 + 2 * 128 + convs2d() + choice(40, 16) + convs2d() + choice(128, 16)
    front = (9 * 128 + 128 + 256) + 2 * block2d + (128 * 128 * 9 + 128 + 256)
    steps = 7 * sum(128 * 128 * k + 128 + 2 * 128 for k in (5, 7))
    gate = 1024 * 128 + 128 + 2 * 128 + 128 * 1024 + 1024
    block = 2 * (1024 * 1024 + 1024 + 2 * 1024) + steps + choice(128, 32) + gate
    stem = 128 * 20 * 1024 * 5 + 1024 + 2 * 1024
    attention = 4608 * 128 + 128 + 2 * 128 + 128 * 1536 + 1536
    last = 2 * 3072 + 3072 * 192 + 192 + 2 * 192
    expected = front + stem + 3 * block + (3072 * 1536 + 1536) + attention + last
    with torch.device("meta"):
        encoder = SkaTdnnEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == expected == 35_812_864


def plain(layer: ConvNorm2d, x: Tensor) -> Tensor:
    norm = layer.norm
    return F.batch_norm(
        F.relu(layer.conv(x)), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


@pytest.mark.parametrize("over", ["frequency", "channel"])
def test_kernels_are_chosen_per_band_or_per_channel(over: str) -> None:
    torch.manual_seed(0)
    layer = drawn_norms(SelectiveConv2d(4, 6 if over == "frequency" else 4, over))
    x = torch.randn(2, 4, 6, 9)
    with torch.no_grad():
        maps = [plain(conv, x) for conv in layer.convs]
        mean = (maps[0] + maps[1]).mean((1, 3) if over == "frequency" else (2, 3))
        hidden = F.relu(layer.choice.squeeze(mean))
        scores = [score(hidden) for score in layer.choice.scores]
        share = torch.sigmoid(scores[0] - scores[1])  # softmax of two
        share = share[:, None, :, None] if over == "frequency" else share[:, :, None, None]
        expected = share * maps[0] + (1 - share) * maps[1]
        torch.testing.assert_close(layer(x, torch.tensor([9, 9])), expected, rtol=1e-4, atol=1e-5)


def test_the_front_halves_bands_twice_and_frames_once() -> None:
    encoder = tiny()
    x, lengths = encoder.front_in(frames(21, 10).data.transpose(1, 2)[:, None], torch.tensor([21, 10]))
    assert x.shape == (2, 4, 4, 21)
    x, lengths = encoder.front_out(x, lengths)
    assert x.shape == (2, 4, 2, 11)
    assert lengths.tolist() == [11, 5]


def test_steps_of_a_block_share_the_choice_and_add_up() -> None:
    torch.manual_seed(0)
    block = drawn_norms(SelectiveBlock(16, 2))
    x, whole = torch.randn(1, 16, 12), torch.tensor([12])
    with torch.no_grad():
        groups = block.expand(x).chunk(8, 1)
        done, last = [], None
        for k in range(7):
            given = groups[k] if last is None else last + groups[k]
            maps = [conv(given) for conv in block.steps[k]]
            weights = block.choice((maps[0] + maps[1]).mean(-1))
            last = weights[0][..., None] * maps[0] + weights[1][..., None] * maps[1]
            done.append(last)
        y = block.contract(torch.cat([*done, groups[7]], 1))
        gate = block.gate.excite(block.gate.norm(F.relu(block.gate.squeeze(y.mean(-1))))).sigmoid()
        torch.testing.assert_close(block(x, whole), y * gate[..., None] + x, rtol=1e-4, atol=1e-5)


def test_shares_sum_to_one() -> None:
    shares = KernelChoice(6, 8, 3)(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 6))


def test_a_clip_alone_and_in_a_padded_batch_are_one() -> None:
    encoder, batch = tiny(), frames(21, 1, 12, 12)
    batch.data[1, 1:], batch.data[2, 12:] = torch.nan, 1e4
    with torch.no_grad():
        together = encoder(batch)
        for row, length in enumerate(batch.lengths):
            alone = encoder(Padded(batch.data[row : row + 1, :length], length[None]))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_batch_norm_in_training_sees_valid_steps_only() -> None:
    norm, plain_norm = MaskedBatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    garbage = x.clone()
    garbage[1, :, :, 2:] = 1e4
    out = norm(garbage, torch.tensor([6, 2]))
    valid = torch.cat([x[0], x[1, :, :, :2]], dim=-1)[None]
    expected = plain_norm(valid)[0]
    torch.testing.assert_close(out[0], expected[..., :6])
    torch.testing.assert_close(out[1, :, :, :2], expected[..., 6:])
    assert not out[1, :, :, 2:].any()
    torch.testing.assert_close(norm.running_var, plain_norm.running_var)


def test_training_on_a_padded_batch_does_not_see_the_padding() -> None:
    outputs = []
    for filler in (0.0, 1e4):
        encoder, batch = tiny().train(), frames(20, 7, 12)
        batch.data[1, 7:] = filler
        out = encoder(batch)
        out.square().sum().backward()
        outputs.append(out.detach())
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    torch.testing.assert_close(*outputs)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        SkaTdnnEncoder(10)
    with pytest.raises(ConfigError, match="20 channels and scale 8"):
        SelectiveBlock(20, 2)
    with pytest.raises(InputError, match=r"takes \(B, T, 8\)"):
        tiny()(Padded(torch.zeros(1, 5, 9), torch.tensor([5])))
    with pytest.raises(InputError, match="without a frame"):
        tiny()(Padded(torch.zeros(1, 5, 8), torch.tensor([0])))
    assert FrontBlock(4, 4).by_band.over == "frequency"
