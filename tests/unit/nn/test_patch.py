"""Patch embeddings and fixed positions."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.errors import ConfigError
from mmssl.nn.patch import PatchEmbedding, Positions, TubeletEmbedding, sincos_2d, standardize_pictures


def test_positions_of_a_grid_by_hand() -> None:
    table = sincos_2d(8, 2, 3)
    row, column = 1, 2
    expected = [
        *(f(column / 10000 ** (k / 2)) for f in (math.sin, math.cos) for k in range(2)),
        *(f(row / 10000 ** (k / 2)) for f in (math.sin, math.cos) for k in range(2)),
    ]
    assert torch.allclose(table[row * 3 + column], torch.tensor(expected))
    swapped = sincos_2d(8, 2, 3, rows_first=True)[row * 3 + column]
    assert torch.allclose(swapped, torch.tensor(expected[4:] + expected[:4]))
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_2d(6, 2, 2)


@pytest.mark.parametrize("kind", ["grid", "sequence"])
def test_positions_of_fewer_rows_are_the_first_ones(kind: str) -> None:
    positions = Positions(8, 3, kind)  # type: ignore[arg-type]
    like = torch.zeros(1)
    many = positions(5, like)
    assert many.shape == (15, 8)
    assert torch.equal(positions(2, like), many[:6])
    assert torch.equal(Positions(8, 3, kind)(2, like), many[:6])  # type: ignore[arg-type]
    assert positions(2, like.half()).dtype == torch.float16


def test_only_positions_that_were_trained_are_kept() -> None:
    positions = Positions(8, 3)
    positions.set_table(sincos_2d(8, 4, 3) + 1e-6)
    assert positions.table is None
    assert positions.max_rows is None
    trained = sincos_2d(8, 4, 3) + 0.1
    positions.set_table(trained)
    assert positions.max_rows == 4
    assert torch.equal(positions(2, torch.zeros(1)), trained[:6])
    assert "table" in positions.state_dict()


def test_tokens_are_projections_of_patches_row_by_row() -> None:
    embedding = PatchEmbedding(2, 5, 4)
    pictures = torch.randn(1, 2, 9, 12)  # the ninth row fills no patch
    tokens = embedding(pictures)
    assert tokens.shape == (1, 2 * 3, 5)
    patch = pictures[0, :, 4:8, 8:12].flatten()
    expected = embedding.proj.weight.flatten(1) @ patch + embedding.proj.bias
    assert torch.allclose(tokens[0, 1 * 3 + 2], expected, atol=1e-5)


def test_tubelets_lie_slice_by_slice() -> None:
    embedding = TubeletEmbedding(3, 5, 4, 2)
    video = torch.randn(1, 4, 3, 8, 8)
    tokens = embedding(video)
    assert tokens.shape == (1, 2 * 4, 5)
    tubelet = video[0, 2:4, :, :4, 4:].transpose(0, 1).flatten()
    expected = embedding.proj.weight.flatten(1) @ tubelet + embedding.proj.bias
    assert torch.allclose(tokens[0, 1 * 4 + 1], expected, atol=1e-5)


def test_pictures_are_scaled_by_channel() -> None:
    pictures = torch.rand(2, 4, 3, 5, 6)
    scaled = standardize_pictures(pictures, (0.5, 0.0, 0.1), (1.0, 2.0, 0.5), torch.float32)
    assert torch.allclose(scaled[..., 2, :, :], (pictures[..., 2, :, :] - 0.1) / 0.5)
    assert torch.allclose(scaled[..., 1, :, :], pictures[..., 1, :, :] / 2)
