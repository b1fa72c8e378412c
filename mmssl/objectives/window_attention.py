"""Attention inside windows of a grid of patches, which shift from one block to the next.

Source: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", section 3.2; its use
as decoder of log-mel patches: Huang et al. 2022, "Masked Autoencoders that Listen", section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.nn.vit import Mlp, rows_at

WINDOW = 4
_EPS = 1e-6


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window, with a learnt bias for each distance and head.

    Windows begin at rows `shift`, `shift` + 4 ..., and at columns 0, 4 ...; those at the borders hold what there is of
    them. That is what Swin's cyclic shift with its mask computes, for any number of rows.

    Args:
        hidden_size: width of the tokens.
        num_heads: divides `hidden_size`.
        columns: tokens of a row.
        shift: rows before the first whole window, 0 to 3.

    Raises:
        ConfigError: heads that do not divide the width, or columns that windows do not fill.
    """

    offsets: Tensor

    def __init__(self, hidden_size: int, num_heads: int, columns: int, shift: int = 0) -> None:
        super().__init__()
        self.columns, self.num_heads = columns, num_heads
        self.before, self.width = -shift % WINDOW, min(WINDOW, columns)
        if num_heads < 1 or hidden_size % num_heads or columns % self.width:
            raise ConfigError(
                f"Window attention needs heads that divide the width, and rows of a multiple of {WINDOW} patches, "
                f"got {num_heads} heads for {hidden_size} and rows of {columns}."
            )
        self.qkv, self.proj = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)
        self.bias = nn.Parameter(torch.empty((2 * WINDOW - 1) * (2 * self.width - 1), num_heads).normal_(std=0.02))
        row = torch.arange(WINDOW).repeat_interleave(self.width)
        column = torch.arange(self.width).repeat(WINDOW)
        down, right = (x[:, None] - x[None] for x in (row, column))
        offsets = (down + WINDOW - 1) * (2 * self.width - 1) + right + self.width - 1
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, rows * columns, D) -> the same; `mask` (B, rows * columns) is True at tokens to attend to."""
        batch, count, size = x.shape
        rows = count // self.columns
        after = -(self.before + rows) % WINDOW
        windows = self._cut(x, after)
        bias = self.bias[self.offsets].permute(2, 0, 1).to(x.dtype)
        if mask is not None or self.before or after:
            valid = x.new_ones(batch, count, 1, dtype=torch.bool) if mask is None else mask[..., None]
            valid = self._cut(valid, after)[..., 0]
            # a window without any token: what it gives is thrown away, but has to be a number
            valid = valid | ~valid.any(1, keepdim=True)
            bias = bias + torch.zeros_like(valid, dtype=x.dtype).masked_fill(~valid, -torch.inf)[:, None, None]
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1).to(q.dtype))
        joined = self.proj(attended.transpose(1, 2).flatten(2)).reshape(
            batch, -1, self.columns // self.width, WINDOW, self.width, size
        )
        joined = joined.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return joined[:, self.before : self.before + rows].flatten(1, 2)

    def _cut(self, x: Tensor, after: int) -> Tensor:
        """(B, rows * columns, D) -> (B * windows, 4 * width, D), with rows of zeros before and after."""
        grid = F.pad(x.unflatten(1, (-1, self.columns)), (0, 0, 0, 0, self.before, after))
        split = grid.unflatten(2, (-1, self.width)).unflatten(1, (-1, WINDOW))
        return split.transpose(2, 3).flatten(3, 4).flatten(0, 2)


class WindowBlock(nn.Module):
    """Pre-norm window attention and MLP, each added to its input (Liu et al. 2021, equation 3).

    Args:
        hidden_size, num_heads, feed_forward_size: sizes.
        columns, shift: see `WindowAttention`.
    """

    def __init__(self, hidden_size: int, num_heads: int, feed_forward_size: int, columns: int, shift: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size, eps=_EPS), nn.LayerNorm(hidden_size, eps=_EPS)
        self.attn = WindowAttention(hidden_size, num_heads, columns, shift)
        self.mlp = Mlp(hidden_size, feed_forward_size)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, places: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, M, D) at `places` (B, M) alone; `mask` as in `WindowAttention`."""
        x = rows_at(x + self.attn(self.norm1(x), mask), places)
        return x + self.mlp(self.norm2(x))
