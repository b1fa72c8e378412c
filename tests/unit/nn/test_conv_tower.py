from __future__ import annotations

import pytest
import torch

from mmssl.errors import ConfigError, InputError
from mmssl.nn.conv_tower import AudioTower, ConvTower, VideoTower
from mmssl.nn.r2plus1d import avid_r2plus1d_18, r2plus1d_18
from mmssl.nn.resnet2d import PlainBlock, conv2d_10, l3_tower, resnet18_audio, resnet18_stages
from mmssl.nn.spectrogram import LogSpectrogram

AUDIO = {"resnet18": resnet18_audio(2), "conv2d_10": conv2d_10(2), "l3": l3_tower(1, 2)}
VIDEO = {"r2plus1d_18": r2plus1d_18(2), "avid": avid_r2plus1d_18(2)}


@torch.no_grad()
@pytest.mark.parametrize("name", [*AUDIO, *VIDEO])
def test_declared_lengths_are_those_of_the_maps(name: str) -> None:
    tower = (AUDIO | VIDEO)[name].eval()
    for steps in (tower.min_length, tower.min_length + 1, 17, 32, 33):
        x = torch.randn(1, 1, 20, steps) if name in AUDIO else torch.randn(1, 3, steps, 12, 12)
        layers = tower(x)
        for k, layer in enumerate(layers):
            assert layer.shape == (1, int(tower.output_lengths(torch.tensor(steps), k)), tower.hidden_sizes[k])
            assert layer.shape[1] >= 1


def test_hops_and_shortest_inputs() -> None:
    assert AUDIO["resnet18"].hop_lengths == (4, 4, 8, 16, 32)
    assert AUDIO["conv2d_10"].hop_lengths == (2, 4, 8, 16, 16)
    assert AUDIO["l3"].hop_lengths == (1, 2, 4, 8)
    assert VIDEO["r2plus1d_18"].hop_lengths == VIDEO["avid"].hop_lengths == (1, 1, 2, 4, 8)
    assert [tower.min_length for tower in AUDIO.values()] == [1, 1, 8]
    assert [tower.min_length for tower in VIDEO.values()] == [1, 1]
    tower = AudioTower(LogSpectrogram(64, 20), AUDIO["l3"])
    assert tower.hop_lengths == (20, 40, 80, 160)
    assert tower.min_length == 64 + 7 * 20


@torch.no_grad()
def test_layers_are_the_maps_pooled_over_all_but_time() -> None:
    for pooling in ("mean", "max"):
        tower = resnet18_audio(2, pooling).eval()
        x = torch.randn(2, 1, 20, 40)
        for layer, single in zip(tower(x), tower.maps(x), strict=True):
            expected = single.mean(2) if pooling == "mean" else single.amax(2)
            assert torch.allclose(layer, expected.transpose(1, 2), atol=1e-6)


@torch.no_grad()
def test_a_picture_tower_sees_each_video_frame_alone() -> None:
    tower = VideoTower(l3_tower(3, 2, None), (0.5,) * 3, (0.5,) * 3).eval()
    video = torch.rand(2, 5, 3, 16, 16)
    layers = tower(video)
    assert tower.hop_lengths == (1, 1, 1, 1)
    for layer, single in zip(layers, tower(video[1:, 3:4]), strict=True):
        assert torch.allclose(layer[1, 3], single[0, 0], atol=1e-5)


def test_parameter_counts_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        assert count(r2plus1d_18()) == 31_300_125  # torchvision's 31,505,325 less the classifier of 400 classes
        assert count(resnet18_audio()) == 11_176_512 - 2 * 7 * 7 * 64  # torchvision's, one input channel, no classifier


def count(tower: ConvTower) -> int:
    return sum(p.numel() for p in tower.parameters())


def test_gradients_reach_every_parameter() -> None:
    for name, tower in (AUDIO | VIDEO).items():
        x = torch.randn(2, 1, 20, 33) if name in AUDIO else torch.randn(2, 3, 3, 8, 8)
        sum(layer.pow(2).sum() for layer in tower.train()(x)).backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in tower.parameters()), name
        tower.zero_grad()


def test_mistakes_are_refused() -> None:
    with pytest.raises(ConfigError, match="'mean' or 'max'"):
        resnet18_audio(2, "sum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width must be at least 1"):
        resnet18_audio(0)
    with pytest.raises(ConfigError, match="width must be at least 1"):
        avid_r2plus1d_18(-1)
    with pytest.raises(ConfigError, match="'relu' or 'prelu'"):
        resnet18_stages(2, 2, "gelu")
    with pytest.raises(ConfigError, match="one width"):
        ConvTower(None, [PlainBlock(1, 2)], (2, 2), [()], -1)
    with pytest.raises(InputError, match="3 channels, got 1"):
        VideoTower(r2plus1d_18(2), (0.5,) * 3, (0.5,) * 3)(torch.rand(1, 4, 1, 8, 8))
