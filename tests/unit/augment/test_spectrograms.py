"""SpecAugment, BYOL-A's augmentations and mixup against what the papers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmssl.augment.spectrogram import LinearFader, Mixup, SpecAugment, SpectrogramCrop, log_mixup_exp, mixup, warp_time
from mmssl.errors import ConfigError, InputError


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masks_have_the_widths_and_places_of_the_policy() -> None:
    x = torch.ones(200, 40)
    bands, frames, first = [], [], []
    for seed in range(2000):
        out = SpecAugment(0, 8, 1, 20, 1.0, 1)(x, draw(seed))
        rows, columns = (out == 0).all(1), (out == 0).all(0)
        bands.append(int(columns.sum()))
        frames.append(int(rows.sum()))
        if frames[-1]:
            first.append(int(rows.nonzero()[0]))
            assert rows[first[-1] : first[-1] + frames[-1]].all()  # one block
        assert torch.equal(out == 0, rows[:, None] | columns[None])
    assert set(bands) == set(range(9))
    assert set(frames) == set(range(21))
    assert abs(np.mean(bands) - 4) < 0.2
    assert abs(np.mean(frames) - 10) < 0.5
    assert min(first) == 0
    assert max(first) > 185
    assert torch.equal(x, torch.ones(200, 40))


def test_masks_of_short_clips_and_their_share() -> None:
    widest = max(
        int((SpecAugment(0, 0, 0, 100, 0.2, 1)(torch.ones(50, 8), draw(k)) == 0).all(1).sum()) for k in range(300)
    )
    assert widest == 10
    assert SpecAugment.policy("LD")(torch.randn(3, 5), draw()).shape == (3, 5)
    spectrogram = torch.randn(30, 8)
    filled = SpecAugment(0, 0, 0, 30, 1.0, 2, fill=None)(spectrogram, draw(1))
    changed = filled != spectrogram
    assert torch.allclose(filled[changed], spectrogram.mean())
    policy = SpecAugment.policy("SM")
    assert (policy.max_warp, policy.max_bins, policy.bin_masks) == (40, 15, 2)
    assert (policy.max_frames, policy.max_share, policy.frame_masks) == (70, 0.2, 2)


def test_time_is_warped_linearly_on_both_sides() -> None:
    ramp = torch.arange(101).double()[:, None].repeat(1, 2)
    warped = warp_time(ramp, 40, 55)
    expected = np.interp(np.arange(101), [0, 55, 100], [0, 40, 100])
    assert np.allclose(warped[:, 0].numpy(), expected)
    assert torch.equal(warp_time(ramp, 40, 40), ramp)
    out = SpecAugment(20, 0, 0, 0, 1.0, 0)(ramp.float(), draw(2))
    assert (out[1:, 0] > out[:-1, 0]).all()
    assert float((out - ramp).abs().max()) < 20


def test_boxes_have_the_sizes_of_the_paper() -> None:
    crop = SpectrogramCrop()
    boxes = [crop.box(96, 64, draw(k)) for k in range(3000)]
    heights, widths = np.array([b[2] for b in boxes]), np.array([b[3] for b in boxes])
    assert heights.min() == int(0.6 * 96)
    assert heights.max() >= 142  # 1.5 * 96 = 144, never drawn exactly
    assert widths.min() == int(0.6 * 64)
    assert widths.max() == 64  # the canvas is no wider than the spectrogram
    # uniform on [0.6, 1.5) and cut at 1: more than half of all boxes take all bands
    assert abs((widths == 64).mean() - 0.5 / 0.9) < 0.03
    assert all(t + h <= 144 and f + w <= 64 for t, f, h, w in boxes)


def test_a_box_is_cut_from_the_canvas_and_resized() -> None:
    x = torch.randn(20, 8)
    same = SpectrogramCrop((1, 1), (1, 1), (1, 1))(x, draw())
    assert torch.allclose(same, x, atol=1e-5)
    assert SpectrogramCrop()(x, draw()).shape == x.shape
    # a box as large as the canvas: half of the time is added around, as zeros
    whole = SpectrogramCrop((1.5, 1), (1.5, 1.5), (1, 1))(torch.ones(40, 8), draw())
    inside = whole.mean(1)
    assert abs(float(inside[20]) - 1) < 1e-4
    assert float(inside[:5].abs().max()) < 0.05
    assert abs(float((inside > 0.5).float().mean()) - 1 / 1.5) < 0.06


def test_a_fader_adds_a_line() -> None:
    x = torch.randn(50, 8)
    ends = []
    for seed in range(500):
        line = (LinearFader(0.7)(x, draw(seed)) - x).double()
        assert torch.allclose(line, line[:, :1].expand(-1, 8), atol=1e-5)
        steps = line[1:, 0] - line[:-1, 0]
        assert torch.allclose(steps, steps[:1].expand(49), atol=1e-5)
        ends += [float(line[0, 0]), float(line[-1, 0])]
    assert -0.7 <= min(ends) < -0.65
    assert 0.65 < max(ends) <= 0.7
    assert abs(np.mean(ends)) < 0.05


def test_mixup_is_linear_and_its_log_form_adds_power() -> None:
    a, b = torch.randn(12, 4), torch.randn(12, 4)
    for share in (0.0, 0.1, 0.4, 1.0):
        expected = np.log((1 - share) * np.exp(a.double().numpy()) + share * np.exp(b.double().numpy()))
        assert np.allclose(log_mixup_exp(a, b, share).numpy(), expected, atol=1e-5)
        assert torch.allclose(mixup(a, b, share), a + share * (b - a), atol=1e-6)
    loud = torch.full((2, 2), 200.0)  # exp would overflow
    assert torch.allclose(log_mixup_exp(loud, loud, 0.3), loud)


def test_shares_are_uniform_up_to_the_ratio() -> None:
    x, other = torch.zeros(5), torch.ones(9)
    shares = [float(Mixup([other], 0.4)(x, draw(k))[0]) for k in range(2000)]
    assert min(shares) >= 0
    assert 0.39 < max(shares) < 0.4
    assert abs(np.mean(shares) - 0.2) < 0.01
    log_shares = [math.expm1(float(Mixup([other], 0.4, True)(x, draw(k))[0])) / (math.e - 1) for k in range(50)]
    assert np.allclose(log_shares, shares[:50], atol=1e-5)
    with pytest.raises(InputError, match="cannot be mixed"):
        Mixup([torch.ones(3)])(x, draw())


def test_bad_settings_are_refused() -> None:
    for build in (
        lambda: SpecAugment(max_bins=-1),
        lambda: SpecAugment(max_share=1.1),
        lambda: SpecAugment.policy("LE"),
        lambda: SpectrogramCrop((0.5, 1)),
        lambda: SpectrogramCrop(time_scale=(2, 1)),
        lambda: LinearFader(-1),
        lambda: Mixup([], 0.4),
        lambda: Mixup([torch.ones(2)], 1.2),
    ):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(InputError, match="spectrogram"):
        SpecAugment()(torch.ones(3), draw())
