"""A transformer over the tokens of several streams in which attention is routed: streams stay pure, fusion sees all.

Source: Recasens et al. 2023, "Zorro: the masked multimodal transformer", section 3: tokens of a stream attend to that
stream alone, fusion tokens to everything. One set of weights then serves every set of streams, and the outputs of a
stream are the same whether the others are there or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.lengths import zero_padding
from mmssl.nn.vit import Attention, Mlp, init_linears
from mmssl.types import Padded

FUSION = "fusion"


class RoutedAttention(Attention):
    """Multi-head self-attention with a mask of its own for every pair of tokens."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `mask` (B, N, N) is True where the row's token sees the column's, None for all."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None])
        return self.proj(attended.transpose(1, 2).flatten(2))


class RoutedBlock(nn.Module):
    """Pre-norm routed attention and MLP, each added to its input.

    Args:
        hidden_size, num_heads, feed_forward_size: sizes.
    """

    def __init__(self, hidden_size: int, num_heads: int, feed_forward_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attn = RoutedAttention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size, feed_forward_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D) and mask (B, N, N) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class RoutedTransformer(nn.Module):
    """Blocks over the tokens of several streams and learned fusion tokens.

    Args:
        streams: their names.
        hidden_size, num_layers, num_heads, feed_forward_size: sizes.
        num_fusion_tokens: learned tokens that see all streams.

    Raises:
        ConfigError: no stream, one called "fusion", or a size below 1.
    """

    def __init__(
        self,
        streams: Sequence[str],
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        feed_forward_size: int,
        num_fusion_tokens: int = 8,
    ) -> None:
        super().__init__()
        if not streams or FUSION in streams or min(num_layers, num_fusion_tokens, feed_forward_size) < 1:
            raise ConfigError(
                f"A routed transformer needs at least one stream, none of them called {FUSION!r}, and sizes of at "
                f"least 1; got {list(streams)}, num_layers={num_layers}, num_fusion_tokens={num_fusion_tokens} and "
                f"feed_forward_size={feed_forward_size}."
            )
        self.streams = tuple(streams)
        self.fusion_tokens = nn.Parameter(torch.randn(num_fusion_tokens, hidden_size) * 0.02)
        self.stream_tokens = nn.Parameter(torch.randn(len(self.streams), hidden_size) * 0.02)
        self.blocks = nn.ModuleList(RoutedBlock(hidden_size, num_heads, feed_forward_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        init_linears(self)

    def forward(self, tokens: Mapping[str, Padded]) -> dict[str, Padded]:
        """Outputs of every stream that is given, and of the fusion tokens.

        Args:
            tokens: stream -> (B, N_s, D) with lengths; 0 for clips that lack the stream. A stream may be missing.

        Returns:
            The same streams, zero past each length, and "fusion" (B, F, D). The outputs of a stream depend on that
            stream alone; tokens past a length and streams a clip lacks are seen by none.

        Raises:
            InputError: no stream, or an unknown one.
        """
        names = [name for name in self.streams if name in tokens]
        if not names or len(names) < len(tokens):
            raise InputError(f"The transformer knows the streams {', '.join(self.streams)}, got {', '.join(tokens)}.")
        batch = len(tokens[names[0]].lengths)
        parts = [
            zero_padding(tokens[n].data, tokens[n].lengths) + self.stream_tokens[self.streams.index(n)] for n in names
        ]
        parts.append(self.fusion_tokens.expand(batch, -1, -1))
        valid = [tokens[n].mask for n in names]
        valid.append(torch.ones(batch, len(self.fusion_tokens), dtype=torch.bool, device=parts[0].device))
        sizes = [part.shape[1] for part in parts]
        mask = routing_mask(sizes, torch.cat(valid, dim=1))
        x = torch.cat(parts, dim=1)
        for block in self.blocks:
            x = block(x, mask)
        outputs = self.norm(x).split(sizes, dim=1)
        found = {
            name: Padded(zero_padding(out, tokens[name].lengths), tokens[name].lengths)
            for name, out in zip(names, outputs[:-1], strict=True)
        }
        full = torch.full((batch,), sizes[-1], dtype=torch.int64, device=x.device)
        return found | {FUSION: Padded(outputs[-1], full)}


def routing_mask(sizes: Sequence[int], valid: Tensor) -> Tensor:
    """Which token sees which.

    Args:
        sizes: tokens of each stream in their order, of the fusion last.
        valid: (B, N) bool, N the sum of the sizes: False for padding.

    Returns:
        (B, N, N) bool, row sees column: a stream's tokens their own stream's valid ones, fusion tokens all valid ones.
        Every token sees itself, so that padding, which no other token sees, has something to attend to.
    """
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=valid.device), torch.tensor(sizes).to(valid.device))
    allowed = (owner[:, None] == owner[None]) | (owner[:, None] == len(sizes) - 1)
    itself = torch.eye(len(owner), dtype=torch.bool, device=valid.device)
    return (allowed & valid[:, None, :]) | itself
