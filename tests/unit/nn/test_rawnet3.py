from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.nn.rawnet3 import AnalyticSincConv, RawNet3Encoder, RawNetBlock
from mmssl.types import Padded


def tiny() -> RawNet3Encoder:
    torch.manual_seed(0)
    encoder = RawNet3Encoder(16, 5, 12)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


def waveforms(*lengths: int) -> Padded:
    data = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(1)) * 0.1
    return Padded(data, torch.tensor(lengths))


def test_it_has_as_many_parameters_as_the_authors() -> None:
    def block(inputs: int) -> int:
        dense, norm = inputs * 1024 + 1024, 2 * 1024
        steps = 7 * (128 * 128 * 3 + 128 + 2 * 128)
        scaling = 1024 + 1024 * 1024 + 1024
        shortcut = inputs * 1024 if inputs != 1024 else 0
        return dense + norm + steps + (1024 * 1024 + 1024) + norm + scaling + shortcut

    front = 2 + 2 * 128  # gain and offset of the norm, two edges of each band
    attention = 4608 * 128 + 128 + 2 * 128 + 128 * 1536 + 1536
    last = 2 * 3072 + 3072 * 256 + 256 + 2 * 256
    expected = front + block(256) + 2 * block(1024) + (3072 * 1536 + 1536) + attention + last
    with torch.device("meta"):
        encoder = RawNet3Encoder()
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert round(expected / 1e6, 2) == 16.28
    assert (encoder.output_size, encoder.min_length) == (256, 391)


def test_filters_are_windowed_sinc_differences_and_their_odd_twins() -> None:
    conv = AnalyticSincConv(8, 51, 10)
    filters = conv.filters().detach().double().numpy()[:, 0]
    time = np.arange(-25, 26) / 16000
    window = np.hamming(51)
    for band in range(4):
        low = 50 + abs(float(conv.low_hz[band]))
        high = min(low + 50 + abs(float(conv.band_hz[band])), 8000.0)
        angles = 2 * np.pi * np.where(time == 0, 1, time)
        even = np.where(time == 0, 1, (np.sin(high * angles) - np.sin(low * angles)) / (angles * (high - low)))
        odd = np.where(time == 0, 0, (np.cos(low * angles) - np.cos(high * angles)) / (angles * (high - low)))
        expected_even, expected_odd = even * window, odd * window
        expected_even[25] = 1
        np.testing.assert_allclose(filters[band], expected_even, atol=1e-5)
        np.testing.assert_allclose(filters[4 + band], expected_odd, atol=1e-5)


def test_a_pure_tone_wakes_the_band_that_holds_it_whatever_its_phase() -> None:
    conv = AnalyticSincConv(64)
    low = 50 + conv.low_hz.detach().abs()
    frequency = float(low[16] + (50 + conv.band_hz.detach().abs())[16] / 2)
    time = torch.arange(4000) / 16000
    for phase in (0.0, 1.0):
        out = conv(torch.sin(2 * math.pi * frequency * time + phase)[None, None])[0]
        magnitude = (out[:32].square() + out[32:].square()).sqrt().mean(-1)
        assert abs(int(magnitude.argmax()) - 16) <= 1


def reference(encoder: RawNet3Encoder, wave: Tensor) -> Tensor:
    """The network on one clip, step by step, without lengths or masks."""

    def tdnn(layer: nn.Module, x: Tensor) -> Tensor:
        conv, norm = layer.conv, layer.norm
        x = F.relu(conv(x))
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    def block(b: RawNetBlock, x: Tensor) -> Tensor:
        parts = torch.split(tdnn(b.expand, x), b.expand.conv.out_channels // 8, dim=1)
        out, last = [], None
        for k in range(7):
            last = tdnn(b.steps[k], parts[k] if last is None else last + parts[k])
            out.append(last)
        y = tdnn(b.contract, torch.cat([*out, parts[7]], 1)) + b.shortcut(x)
        if b.pool > 1:
            y = F.max_pool1d(y, b.pool)
        gate = torch.sigmoid(b.scaling.gate(y.mean(-1)))
        return (y + b.scaling.shift) * gate[..., None]

    x = F.pad(wave[None, None], (1, 0), mode="reflect")
    x = F.conv1d(x, torch.tensor([[[-0.97, 1.0]]]))
    x = F.instance_norm(x, weight=encoder.gain, bias=encoder.offset, eps=1e-4)
    x = F.conv1d(x, encoder.filters.filters(), stride=10).abs()
    x = torch.log(x + 1e-6)
    x = x - x.mean(-1, keepdim=True)
    first = block(encoder.blocks[0], x)
    second = block(encoder.blocks[1], first)
    third = block(encoder.blocks[2], F.max_pool1d(first, 3) + second)
    x = F.relu(encoder.join(torch.cat([F.max_pool1d(first, 3), second, third], 1)))
    shape = (1, 1, x.shape[-1])
    deviation = x.var(-1, keepdim=True).clamp(min=1e-4).sqrt()
    seen = torch.cat([x, x.mean(-1, keepdim=True).repeat(shape), deviation.repeat(shape)], 1)
    weights = torch.softmax(encoder.pooling.scores(tdnn(encoder.pooling.hidden, seen)), -1)
    mean = (x * weights).sum(-1)
    deviation = ((x**2 * weights).sum(-1) - mean**2).clamp(min=1e-4).sqrt()
    return encoder.embedding_norm(encoder.embedding(encoder.pooled_norm(torch.cat([mean, deviation], 1))))


def test_it_computes_the_published_network() -> None:
    encoder, batch = tiny(), waveforms(4000)
    with torch.no_grad():
        encoder.gain.fill_(1.3)
        encoder.offset.fill_(-0.2)
        torch.testing.assert_close(encoder(batch), reference(encoder, batch.data[0]), rtol=1e-4, atol=1e-5)


def test_a_clip_alone_and_in_a_padded_batch_are_one() -> None:
    encoder, batch = tiny(), waveforms(5000, 391, 1200, 1200)
    batch.data[1, 391:], batch.data[2, 1200:] = torch.nan, 1e4
    with torch.no_grad():
        together = encoder(batch)
        for row, length in enumerate(batch.lengths):
            alone = encoder(Padded(batch.data[row : row + 1, :length], length[None]))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_training_on_a_padded_batch_does_not_see_the_padding() -> None:
    outputs = []
    for filler in (0.0, 1e4):
        encoder, batch = tiny().train(), waveforms(3000, 900, 2000)
        batch.data[1, 900:] = filler
        out = encoder(batch)
        out.square().sum().backward()
        outputs.append(out.detach())
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    torch.testing.assert_close(*outputs)


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="at least 391 samples, got one of 390"):
        tiny()(waveforms(390))
    with pytest.raises(InputError, match=r"waveforms \(B, T\)"):
        tiny()(Padded(torch.zeros(1, 500, 2), torch.tensor([500])))
    with pytest.raises(ConfigError, match="multiple of 8, got 12"):
        RawNet3Encoder(12)
    with pytest.raises(ConfigError, match="even number of filters"):
        AnalyticSincConv(7)
    with pytest.raises(ConfigError, match="20 channels and scale 8"):
        RawNetBlock(4, 20, 2)
