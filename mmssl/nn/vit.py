"""Vision transformers: pre-norm blocks on batches of tokens, with a mask where sequences differ in length.

Blocks know nothing of positions, so that masked pretraining can hand them the visible tokens alone. Names of the parts
are those of the authors' code of MAE, AudioMAE, VideoMAE, CAV-MAE and HiCMAE.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.nn.patch import Positions


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        hidden_size: width of the tokens.
        num_heads: divides `hidden_size`.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `mask` (B, N) is True at the tokens to attend to, None for all."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(_attend(q, k, v, mask))


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to those of another sequence.

    Args:
        hidden_size: width of the tokens.
        context_size: width of the other sequence's tokens.
        num_heads: divides `hidden_size`.
    """

    def __init__(self, hidden_size: int, context_size: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(context_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) and (B, M, E) -> (B, N, D); `mask` (B, M) is True at the valid tokens of the context."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(_attend(q, k, v, mask))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, hidden_size: int, feed_forward_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, feed_forward_size)
        self.fc2 = nn.Linear(feed_forward_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each added to its input (Dosovitskiy et al. 2021, equations 2 and 3).

    Args:
        hidden_size, num_heads, feed_forward_size: sizes.
        eps: of the layer norms.
        modalities: names of further pairs of norms around the same weights (CAV-MAE's shared block: "a" and "v").
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        feed_forward_size: int,
        eps: float = 1e-6,
        modalities: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for suffix in ("", *(f"_{m}" for m in modalities)):
            self.add_module(f"norm1{suffix}", nn.LayerNorm(hidden_size, eps=eps))
            self.add_module(f"norm2{suffix}", nn.LayerNorm(hidden_size, eps=eps))
        self.attn = Attention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size, feed_forward_size)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, modality: str | None = None, places: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, M, D).

        Args:
            x: tokens.
            mask: as in `Attention`.
            modality: picks the pair of norms.
            places: (B, M) int64, the tokens whose output alone is wanted; None for all.
        """
        suffix = "" if modality is None else f"_{modality}"
        x = rows_at(x, places) + _attention_at(self.attn, self.get_submodule(f"norm1{suffix}")(x), mask, places)
        return x + self.mlp(self.get_submodule(f"norm2{suffix}")(x))


class CrossBlock(nn.Module):
    """Cross-attention to a context, then self-attention and MLP, all pre-norm (Sun et al. 2024, HiCMAE, equation 4).

    Args:
        hidden_size, num_heads, feed_forward_size: sizes.
        context_size: width of the context's tokens.
        eps: of the layer norms.
    """

    def __init__(
        self, hidden_size: int, context_size: int, num_heads: int, feed_forward_size: int, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.cross_norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.cross_norm2 = nn.LayerNorm(context_size, eps=eps)
        self.cross_attn = CrossAttention(hidden_size, context_size, num_heads)
        self.norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = Mlp(hidden_size, feed_forward_size)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) and context (B, M, E) -> (B, N, D); masks are True at valid tokens, `places` as in `Block`."""
        x = x + self.cross_attn(self.cross_norm1(x), self.cross_norm2(context), context_mask)
        x = rows_at(x, places) + _attention_at(self.attn, self.norm1(x), mask, places)
        return x + self.mlp(self.norm2(x))


class PatchEncoder(nn.Module):
    """Patches, positions, an optional class token, and blocks: the encoder of every masked autoencoder here.

    Args:
        patch_embed: from an input to tokens (B, rows * columns, D), row by row.
        positions: of the tokens.
        num_layers, num_heads, feed_forward_size: of the blocks.
        class_token: put a learnt token before the others.
        eps: of the layer norms.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        positions: Positions,
        num_layers: int,
        num_heads: int,
        feed_forward_size: int,
        *,
        class_token: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        size = positions.hidden_size
        self.patch_embed, self.positions = patch_embed, positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size)) if class_token else None
        self.blocks = nn.ModuleList(Block(size, num_heads, feed_forward_size, eps) for _ in range(num_layers))
        self.norm = nn.LayerNorm(size, eps=eps)
        init_linears(self)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens (B, N, D) of an input, with their positions; what masked pretraining picks the visible ones from."""
        tokens = self.patch_embed(inputs)
        return tokens + self.positions(tokens.shape[1] // self.positions.columns, tokens)

    def encode_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Run the blocks on tokens that carry their positions: all of them, or the visible ones in any order.

        Args:
            tokens: (B, N, D).
            mask: (B, N) bool, True at valid tokens; None where all are.

        Returns:
            The input of the first block and the output of each, (B, N, D), or (B, 1 + N, D) with a class token, which
            comes first. `norm` after the last block is not applied.
        """
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        states = [tokens]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        return states

    def finish(self, last: Tensor) -> Tensor:
        """What decoder and heads saw in pretraining: the last block's output (..., D), normed."""
        return self.norm(last)


def init_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases of all linear layers, as the masked autoencoders start."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def rows_at(x: Tensor, places: Tensor | None) -> Tensor:
    """Tokens (B, M, D) of x (B, N, D) at `places` (B, M); None for all."""
    return x if places is None else x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _attention_at(attention: Attention, x: Tensor, mask: Tensor | None, places: Tensor | None) -> Tensor:
    """Self-attention whose output (B, M, D) is wanted at some places alone, which then are the only queries."""
    if places is None:
        return attention(x, mask)
    size, heads = x.shape[-1], attention.num_heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = F.linear(rows_at(x, places), weight[:size], bias[:size]).unflatten(-1, (heads, -1)).transpose(1, 2)
    pairs = F.linear(x, weight[size:], bias[size:])
    k, v = pairs.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.proj(_attend(q, k, v, mask))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Heads (B, H, N, d), (B, H, M, d) -> (B, N, H * d)."""
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
    return attended.transpose(1, 2).flatten(2)


def _check_heads(hidden_size: int, num_heads: int) -> None:
    if num_heads < 1 or hidden_size % num_heads:
        raise ConfigError(f"num_heads must divide the width of {hidden_size}, got {num_heads}.")
