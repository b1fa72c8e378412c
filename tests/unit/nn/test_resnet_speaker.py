from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.nn.resnet_speaker import BLOCKS, BottleneckBlock, ResNetEncoder
from mmssl.types import Padded


def frames(*lengths: int, size: int = 10) -> Padded:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(len(lengths), max(lengths), size, generator=generator)
    return Padded(data, torch.tensor(lengths))


def tiny(depth: int) -> ResNetEncoder:
    torch.manual_seed(0)
    encoder = ResNetEncoder(10, depth, width=2, embedding_size=6)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


# published for 80 filters and embeddings of 256 (WeSpeaker, VoxCeleb recipe)
@pytest.mark.parametrize(("depth", "millions"), [(34, 6.63), (101, 15.89), (152, 19.81), (221, 23.79), (293, 28.62)])
def test_it_has_as_many_parameters_as_published(depth: int, millions: float) -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder(depth=depth)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_smallest_has_two_blocks_a_stage() -> None:
    expected, inputs = 9 * 32 + 2 * 32, 32
    for width in (32, 64, 128, 256):
        shortcut = inputs * width + 2 * width if width != inputs else 0
        expected += 9 * inputs * width + 3 * 9 * width * width + 4 * 2 * width + shortcut
        inputs = width
    expected += 2 * 256 * 10 * 256 + 256
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNetEncoder(depth=18).parameters()) == expected


@pytest.mark.parametrize("depth", [18, 50])
def test_a_clip_alone_and_in_a_padded_batch_are_one(depth: int) -> None:
    encoder, batch = tiny(depth), frames(33, 1, 20, 20)
    batch.data[1, 1:], batch.data[2, 20:] = 1e4, torch.nan
    with torch.no_grad():
        together = encoder(batch)
        for row, length in enumerate(batch.lengths):
            alone = encoder(Padded(batch.data[row : row + 1, :length], length[None]))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    assert together.shape == (4, 6)
    assert together.isfinite().all()


def test_the_bottleneck_is_torchvisions() -> None:
    from torchvision.models.resnet import Bottleneck

    ours, shortcut = BottleneckBlock(6, 3, 2), torch.nn.Sequential(torch.nn.Conv2d(6, 12, 1, 2, bias=False))
    shortcut.append(torch.nn.BatchNorm2d(12))
    theirs = Bottleneck(6, 3, 2, shortcut)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_pooling_is_over_time_of_every_channel_and_frequency() -> None:
    encoder, batch = tiny(18), frames(16)
    with torch.no_grad():
        x = F.relu(encoder.bn1(encoder.conv1(batch.data.transpose(1, 2)[:, None])))
        for stage in encoder.stages:
            x = stage(x)
        assert x.shape == (1, 16, 2, 2)  # 10 filters -> 5 -> 3 -> 2, and 16 frames to 2
        deviation = x.var(-1, correction=0).clamp(min=1e-10).sqrt()
        pooled = torch.cat([x.mean(-1).flatten(1), deviation.flatten(1)], 1)
        torch.testing.assert_close(encoder(batch), encoder.embedding(pooled))


@pytest.mark.parametrize("depth", [18, 50])
def test_training_reaches_every_parameter(depth: int) -> None:
    encoder = tiny(depth).train()
    encoder(frames(24, 24, 24)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="18, 34, 50, 101, 152, 221, 293"):
        ResNetEncoder(depth=35)
    assert sorted(BLOCKS) == list(BLOCKS)
    encoder = tiny(18)
    with pytest.raises(InputError, match=r"takes \(B, T, 10\)"):
        encoder(frames(5, size=9))
    with pytest.raises(InputError, match="Lengths must lie in 1 to 5"):
        encoder(Padded(frames(5).data, torch.tensor([0])))
    with pytest.raises(InputError, match="one length, got 3 to 5 frames"):
        encoder.train()(frames(5, 3))
