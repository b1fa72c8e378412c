from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.faces.crop import black_frames, crop_squares, share_outside


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)


def test_a_square_on_whole_pixels_gives_exactly_these(pictures: np.ndarray) -> None:
    squares = np.array([[28.0, 22.0, 16.0], [8.0, 8.0, 16.0], [62.0, 42.0, 16.0]])
    crops = crop_squares(pictures, squares, 16)
    assert np.array_equal(crops[0], pictures[0, 14:30, 20:36])
    assert np.array_equal(crops[1], pictures[1, :16, :16])
    assert np.array_equal(crops[2], pictures[2, 34:50, 54:70])


@pytest.mark.parametrize("size", [8, 11, 24, 61])
def test_resizing_equals_that_of_torch(pictures: np.ndarray, size: int) -> None:
    # a square in the middle of which the border has no part: torch sees the crop alone
    padded = np.pad(pictures, ((0, 0), (40, 40), (40, 40), (0, 0)), mode="edge")
    crops = crop_squares(pictures, np.array([[35.0, 25.0, 100.0]] * 3), size)
    whole = torch.from_numpy(padded[:, 15:115, 25:125]).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(whole, (size, size), mode="bilinear", antialias=True)
    inner = slice(1, -1)
    difference = np.abs(crops.astype(float) - expected.permute(0, 2, 3, 1).numpy())[:, inner, inner]
    assert difference.max() <= 0.51


def test_a_crop_depends_on_its_own_picture_alone(pictures: np.ndarray) -> None:
    squares = np.array([[20.3, 21.7, 18.9], [35.1, 20.2, 40.0], [60.0, 40.0, 44.4]])
    together = crop_squares(pictures, squares, 17)
    alone = np.concatenate([crop_squares(pictures[k : k + 1], squares[k : k + 1], 17) for k in (2, 0, 1)])
    assert np.array_equal(together[[2, 0, 1]], alone)


def test_beyond_the_edge_its_pixels_are_repeated(pictures: np.ndarray) -> None:
    crop = crop_squares(pictures[:1], np.array([[0.0, 0.0, 16.0]]), 16)[0]
    assert (crop[:9, :9] == pictures[0, 0, 0]).all()
    assert np.array_equal(crop[8:, 8:], pictures[0, :8, :8])
    # a box that misses the picture altogether still gives its corner
    assert (crop_squares(pictures[:1], np.array([[200.0, 300.0, 16.0]]), 8) == pictures[0, -1, -1]).all()


def test_a_square_between_pixels_is_the_mean_of_both(pictures: np.ndarray) -> None:
    crop = crop_squares(pictures[:1], np.array([[28.5, 22.0, 16.0]]), 16)[0].astype(float)
    expected = (pictures[0, 14:30, 20:36].astype(float) + pictures[0, 14:30, 21:37]) / 2
    assert np.abs(crop - expected).max() <= 0.51


def test_share_outside() -> None:
    squares = np.array([[0.0, 0.0, 10.0], [20.0, 20.0, 10.0]])
    assert share_outside(squares, 50, 50) == pytest.approx((0.75 + 0) / 2)


def test_black_frames() -> None:
    pictures = np.zeros((4, 20, 20, 3), np.uint8)
    pictures[1] += 40
    pictures[2, :10] = 255  # half a picture is not black
    assert black_frames(pictures) == 2
