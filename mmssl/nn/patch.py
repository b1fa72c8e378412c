"""Patches of pictures, spectrograms and videos, and the fixed positions of masked autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.nn.sinusoidal import SinusoidalPositions

PositionKind = Literal["grid", "sequence"]


def sincos_1d(hidden_size: int, positions: Tensor) -> Tensor:
    """Sines, then cosines of positions (N,): (N, hidden_size) float64, wavelengths from 2 pi to 10000 * 2 pi.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", appendix A.1, after Vaswani et al. 2017.
    """
    half = hidden_size // 2
    angle = positions.double()[:, None] / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(hidden_size: int, rows: int, columns: int, *, rows_first: bool = False) -> Tensor:
    """Fixed positions of a grid, row by row: (rows * columns, hidden_size) float32.

    One half of the features encodes the column, the other half the row.

    Args:
        hidden_size: a multiple of 4.
        rows, columns: of the grid.
        rows_first: the first half is the row's, not the column's as in MAE.
    """
    if hidden_size % 4:
        raise ConfigError(f"Positions of a grid need a width that is a multiple of 4, got {hidden_size}.")
    row = sincos_1d(hidden_size // 2, torch.arange(rows)).repeat_interleave(columns, dim=0)
    column = sincos_1d(hidden_size // 2, torch.arange(columns)).repeat(rows, 1)
    return torch.cat([row, column] if rows_first else [column, row], dim=1).float()


class Positions(nn.Module):
    """Positions of tokens that lie row by row: fixed for any number of rows, or a table that a checkpoint brought.

    Args:
        hidden_size: width of the tokens.
        columns: tokens of a row: patches side by side, mel patches of a time step, or patches of a video slice.
        kind: "grid" for `sincos_2d` (MAE), "sequence" for sines and cosines of the flat index (VideoMAE).
        rows_first: see `sincos_2d`.

    Attributes:
        table: (rows * columns, hidden_size) from a checkpoint whose positions were trained; None for the fixed ones.
    """

    table: Tensor | None

    def __init__(
        self, hidden_size: int, columns: int, kind: PositionKind = "grid", *, rows_first: bool = False
    ) -> None:
        super().__init__()
        self.hidden_size, self.columns, self.kind, self.rows_first = hidden_size, columns, kind, rows_first
        self.register_buffer("table", None)
        self._fixed = torch.empty(0, hidden_size)

    def fixed(self, rows: int) -> Tensor:
        """The fixed positions of `rows` rows: (rows * columns, hidden_size) float32 on the CPU."""
        if self.kind == "sequence":
            return SinusoidalPositions(self.hidden_size).table(rows * self.columns)
        return sincos_2d(self.hidden_size, rows, self.columns, rows_first=self.rows_first)

    def set_table(self, table: Tensor) -> None:
        """Take over positions (rows * columns, hidden_size); those that equal the fixed ones are not kept."""
        rows = len(table) // self.columns
        if not torch.allclose(table.float(), self.fixed(rows), atol=1e-4):
            self.table = table.clone()

    @property
    def max_rows(self) -> int | None:
        """Rows of a trained table; None where any number goes."""
        return None if self.table is None else len(self.table) // self.columns

    def forward(self, rows: int, like: Tensor) -> Tensor:
        """Positions (rows * columns, hidden_size) of the type and device of `like`."""
        size = rows * self.columns
        if self.table is not None:
            return self.table[:size].to(like)
        if len(self._fixed) < size or self._fixed.device != like.device:
            self._fixed = self.fixed(rows).to(like.device)
        return self._fixed[:size].to(like.dtype)


class PatchEmbedding(nn.Module):
    """Linear projection of patches that do not overlap, from pictures or spectrograms (B, C, rows, columns).

    Args:
        channels: of the input.
        hidden_size: width of the tokens.
        patch_size: height and width of a patch.
    """

    def __init__(self, channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, hidden_size, patch_size, patch_size)
        _like_linear(self.proj)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, C, H, W) -> tokens (B, H / patch * W / patch, D), row by row; a rest that fills no patch is dropped."""
        return self.proj(pictures).flatten(2).transpose(1, 2)


class TubeletEmbedding(nn.Module):
    """Linear projection of tubelets, patches over a few video frames, that do not overlap.

    Args:
        channels: of the video.
        hidden_size: width of the tokens.
        patch_size: height and width of a tubelet.
        tubelet_size: video frames of a tubelet.
    """

    def __init__(self, channels: int, hidden_size: int, patch_size: int, tubelet_size: int) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size = patch_size, tubelet_size
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(channels, hidden_size, kernel, kernel)
        _like_linear(self.proj)

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, C, H, W) -> tokens (B, T / tubelet * patches, D), slice by slice, each row by row."""
        return self.proj(video.transpose(1, 2)).flatten(2).transpose(1, 2)


def standardize_pictures(pictures: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Pictures (..., C, H, W) in [0, 1] -> (x - mean) / std of each channel, computed in float32, of type `dtype`."""
    shift, scale = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (mean, std))
    return ((pictures.float() - shift) / scale).to(dtype)


def _like_linear(projection: nn.Conv2d | nn.Conv3d) -> None:
    """Initialise as the linear layer on flat patches that the convolution is."""
    nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
