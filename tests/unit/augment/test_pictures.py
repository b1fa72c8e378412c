"""Augmentations of pictures and videos: distributions, values, and one draw for all frames of a video."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch

from mmssl.augment.base import Augmentation, Chain, With
from mmssl.augment.pictures import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
)
from mmssl.errors import ConfigError, InputError


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ALL: list[Augmentation] = [
    RandomResizedCrop(12),
    HorizontalFlip(),
    ColorJitter(0.8, 0.8, 0.8, 0.2),
    Grayscale(),
    GaussianBlur(),
    Solarize(),
    Chain([RandomResizedCrop(16), With(0.5, HorizontalFlip()), With(0.8, ColorJitter()), With(0.5, GaussianBlur())]),
]


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_every_frame_of_a_video_is_changed_alike(augmentation: Augmentation) -> None:
    video = torch.rand(4, 3, 20, 24, generator=draw(9))
    before = video.clone()
    state = torch.get_rng_state()
    for seed in range(6):
        out = augmentation(video, draw(seed))
        frames = torch.stack([augmentation(frame, draw(seed)) for frame in video])
        assert torch.allclose(out, frames, atol=1e-5)
        assert out.min() >= 0
        assert out.max() <= 1
    assert torch.equal(video, before)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match="picture"):
        augmentation(torch.rand(20, 24), draw())


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.4)])
def test_areas_and_ratios_of_boxes(scale: tuple[float, float]) -> None:
    crop = RandomResizedCrop(32, scale)
    boxes = np.array([crop.box(400, 400, draw(k)) for k in range(3000)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 400).all()
    area, logs = boxes[:, 2] * boxes[:, 3] / 160000, np.log(boxes[:, 3] / boxes[:, 2])
    assert abs(area.min() - scale[0]) < 0.01
    assert area.max() <= scale[1] * 1.01
    assert abs(np.exp(logs.min()) - 0.75) < 0.02
    assert abs(np.exp(logs.max()) - 4 / 3) < 0.02
    if scale[1] < 0.5:  # all draws fit: uniform area, uniform logarithm of the ratio
        assert abs(area.mean() - sum(scale) / 2) < 0.01
        assert abs(logs.mean()) < 0.01
        assert abs(logs.std() - math.log(16 / 9) / math.sqrt(12)) < 0.01


def test_a_box_that_cannot_fit_becomes_the_central_one() -> None:
    assert RandomResizedCrop(8, (1, 1), (1, 1)).box(10, 40, draw()) == (0, 15, 10, 10)
    whole = torch.rand(3, 16, 16)
    assert torch.allclose(RandomResizedCrop(16, (1, 1), (1, 1))(whole, draw()), whole, atol=1e-5)
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    half = RandomResizedCrop(32, (1, 1), (1, 1))(ramp, draw())
    assert torch.allclose(half[0, 0, 2:-2], ramp[0, 0].reshape(32, 2).mean(1)[2:-2], atol=1e-3)


def test_colours_are_those_of_the_formulas() -> None:
    x = torch.rand(3, 5, 6, generator=draw(3))
    assert torch.equal(HorizontalFlip()(x, draw()), torch.flip(x, [2]))
    gray = 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    assert torch.allclose(Grayscale()(x, draw()), gray.expand(3, -1, -1), atol=1e-4)
    assert torch.equal(Solarize(0.5)(x, draw()), torch.where(x >= 0.5, 1 - x, x))
    brighter = ColorJitter(0.5, 0, 0, 0)
    factors = [float(brighter(torch.full((3, 2, 2), 0.4), draw(k))[0, 0, 0]) / 0.4 for k in range(500)]
    assert 0.5 <= min(factors) < 0.52
    assert 1.48 < max(factors) <= 1.5
    saturated = ColorJitter(0, 0, 1.0, 0)(x, draw(1))
    mixture = (saturated - gray) / (x - gray)
    inside = (saturated > 0.001) & (saturated < 0.999) & ((x - gray).abs() > 0.05)
    assert float(mixture[inside].std()) < 0.01
    turned = ColorJitter(0, 0, 0, 0.3)(x, draw(2))
    shifts = set()
    for old, new in zip(x.flatten(1).t().tolist(), turned.flatten(1).t().tolist(), strict=True):
        (h, s, v), (h2, s2, v2) = colorsys.rgb_to_hsv(*old), colorsys.rgb_to_hsv(*new)
        assert abs(s - s2) < 1e-3
        assert abs(v - v2) < 1e-3
        shifts.add(round((h2 - h + 0.5) % 1 - 0.5, 2))
    assert max(shifts) - min(shifts) < 0.011


def test_a_blurred_point_is_a_gaussian() -> None:
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1
    out = GaussianBlur((1.7, 1.7))(point, draw())[0].double()
    offset = torch.arange(31).double() - 15
    assert abs(float(out.sum()) - 1) < 1e-5
    assert abs(float((out.sum(0) * offset**2).sum()) ** 0.5 - 1.7) < 0.06  # cut at three deviations
    assert GaussianBlur((9, 9))(torch.rand(3, 4, 4), draw()).shape == (3, 4, 4)


def test_bad_settings_are_refused() -> None:
    for build in (
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop(8, (0, 1)),
        lambda: RandomResizedCrop(8, (0.5, 1.5)),
        lambda: RandomResizedCrop(8, ratio=(2, 1)),
        lambda: ColorJitter(-0.1),
        lambda: ColorJitter(hue=0.6),
        lambda: GaussianBlur((0, 1)),
        lambda: Solarize(1.5),
    ):
        with pytest.raises(ConfigError):
            build()
