"""Decoders of masked autoencoders: from the tokens that are left to the values of all patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.nn.patch import PositionKind, Positions
from mmssl.nn.vit import Block, CrossBlock, init_linears
from mmssl.objectives.types import Decoder, Encoded
from mmssl.objectives.window_attention import WindowBlock
from mmssl.upstreams.mel_patches import token_mask

ATTENTION = ("global", "local")
_EPS = 1e-6
_SHIFT = 2  # rows, of every second block with local attention


@dataclass(frozen=True)
class Chosen:
    """The tokens of each clip that the loss looks at: the last block need not work on others.

    Attributes:
        places: (B, M) int64, in order; past a clip's M_b they are arbitrary.
        valid: (B, M) bool, False there; None where all clips have M.
    """

    places: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, where: Tensor) -> Chosen:
        """From a mask (B, N)."""
        counts = where.sum(1)
        most = int(counts.max())
        places = (~where).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        return cls(places, token_mask(counts, most))

    def flat(self, x: Tensor) -> Tensor:
        """Rows (R, D) of x (B, M, D)."""
        return x.flatten(0, 1) if self.valid is None else x[self.valid]


class PatchDecoder(Decoder):
    """Mask tokens in the places of dropped patches, positions, a few blocks, and a linear layer to the values.

    Sources: He et al. 2022 (MAE), section 3; Huang et al. 2022 (AudioMAE), section 3.3, for local attention: windows of
    4 x 4 patches, which shift by 2 time steps in every second block; the class token does not enter those.

    Args:
        input_size: width of the encoder.
        columns: patches of a row: side by side, of a time step, or of a video slice.
        patch_values: values of one patch.
        hidden_size, num_layers, num_heads: of the decoder.
        positions: "grid" for two-dimensional ones (MAE, AudioMAE), "sequence" for those of the flat index.
        attention: "global" or "local".
        embed_bias: whether the layer from the encoder's width to the decoder's has a bias.

    Raises:
        ConfigError: sizes that do not go together.
    """

    def __init__(
        self,
        input_size: int,
        columns: int,
        patch_values: int,
        hidden_size: int = 512,
        num_layers: int = 8,
        num_heads: int = 16,
        *,
        positions: PositionKind = "grid",
        attention: str = "global",
        embed_bias: bool = True,
    ) -> None:
        super().__init__()
        if attention not in ATTENTION or num_layers < 1:
            raise ConfigError(
                f"A decoder needs at least one layer and attention of {' or '.join(ATTENTION)}, got {num_layers} "
                f"layers and {attention!r}."
            )
        self.local = attention == "local"
        self.embed = nn.Linear(input_size, hidden_size, bias=embed_bias)
        self.mask_token = nn.Parameter(torch.empty(hidden_size).normal_(std=0.02))
        self.positions = Positions(hidden_size, columns, positions)
        sizes = (hidden_size, num_heads, 4 * hidden_size)
        self.blocks = nn.ModuleList(
            WindowBlock(*sizes, columns, k % 2 * _SHIFT) if self.local else Block(*sizes) for k in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=_EPS)
        self.output = nn.Linear(hidden_size, patch_values)
        for part in (self.blocks, self.output):
            init_linears(part)
        nn.init.xavier_uniform_(self.embed.weight)
        if embed_bias:
            nn.init.zeros_(self.embed.bias)

    def forward(self, encoded: Encoded, where: Tensor | None = None) -> Tensor:
        """Values (B, N, P) of every patch, those past a clip's end arbitrary; or (R, P). See `Decoder.forward`."""
        tokens, mask = self.fill(encoded)
        chosen = None if where is None else Chosen.of(where)
        if self.local or "class" not in encoded.taps:
            return self.predict(tokens, mask, chosen)
        tokens = torch.cat([self.embed(encoded.taps["class"].data), tokens], dim=1)
        mask = None if mask is None else nn.functional.pad(mask, (1, 0), value=True)
        if chosen is not None:
            return self.predict(tokens, mask, replace(chosen, places=chosen.places + 1))
        return self.predict(tokens, mask)[:, 1:]

    def fill(self, encoded: Encoded) -> tuple[Tensor, Tensor | None]:
        """Visible and mask tokens (B, N, D) with positions, and where they are valid, (B, N); None for everywhere."""
        if encoded.positions is None or encoded.hidden is None:
            raise ConfigError("A decoder needs a view some of whose patches are dropped.")
        visible = self.embed(encoded.output.data)
        batch, count = encoded.hidden.shape
        size = visible.shape[-1]
        blank = self.mask_token.to(visible.dtype)
        kept = token_mask(encoded.output.lengths, visible.shape[1])
        if kept is not None:
            # clips that keep fewer patches: what fills their rows up lands where a mask token belongs
            visible = torch.where(kept[..., None], visible, blank)
        tokens = blank.expand(batch, count, size)
        tokens = tokens.scatter(1, encoded.positions[..., None].expand(-1, -1, size), visible)
        tokens = tokens + self.positions(count // self.positions.columns, tokens)
        return tokens, token_mask(encoded.taps["patches"].lengths, count)

    def predict(self, tokens: Tensor, mask: Tensor | None, chosen: Chosen | None = None) -> Tensor:
        """Blocks, norm and linear layer: (B, N, D) -> (B, N, P), or the chosen rows (R, P)."""
        for block in self.blocks[:-1]:
            tokens = block(tokens, mask)
        tokens = self.blocks[-1](tokens, mask, places=None if chosen is None else chosen.places)
        return self.values(tokens, chosen)

    def values(self, tokens: Tensor, chosen: Chosen | None) -> Tensor:
        """Norm and linear layer on what the last block gives: (B, N, P), or (R, P)."""
        return self.output(self.norm(tokens if chosen is None else chosen.flat(tokens)))


class HierarchicalDecoder(PatchDecoder):
    """A decoder that looks at several layers of the encoder, from the deepest to the shallowest.

    Its last blocks begin with cross-attention to the visible tokens of a layer each, brought to the decoder's width by
    the same linear layer as its input, with the decoder's positions.

    Source: Sun et al. 2024, "HiCMAE", section 3.4 ("hierarchical skip connections").

    Args:
        input_size, columns, patch_values, hidden_size, num_heads: see `PatchDecoder`.
        levels: blocks of the encoder, whose taps "layer.K" are looked at; any order.
        num_layers: blocks in all, at least one for each level.

    Raises:
        ConfigError: fewer blocks than levels.
    """

    def __init__(
        self,
        input_size: int,
        columns: int,
        patch_values: int,
        levels: Sequence[int],
        hidden_size: int = 384,
        num_layers: int = 4,
        num_heads: int = 6,
    ) -> None:
        super().__init__(
            input_size,
            columns,
            patch_values,
            hidden_size,
            num_layers,
            num_heads,
            positions="sequence",
            embed_bias=False,
        )
        if num_layers < len(levels):
            raise ConfigError(
                f"A decoder with {len(levels)} skip connections needs as many blocks, got {num_layers}: raise "
                "decoder_layers or name fewer levels."
            )
        self.levels = sorted(levels, reverse=True)
        plain = num_layers - len(self.levels)
        for k in range(plain, num_layers):
            block = CrossBlock(hidden_size, hidden_size, num_heads, 4 * hidden_size)
            init_linears(block)
            self.blocks[k] = block
        self.plain = plain

    def forward(self, encoded: Encoded, where: Tensor | None = None) -> Tensor:
        """Values (B, N, P) of every patch, or (R, P); see `PatchDecoder.forward`."""
        tokens, mask = self.fill(encoded)
        chosen = None if where is None else Chosen.of(where)
        if not self.levels:
            return self.predict(tokens, mask, chosen)
        assert encoded.positions is not None  # `fill` has checked it
        table = self.positions(tokens.shape[1] // self.positions.columns, tokens)
        places = table[encoded.positions]
        kept = token_mask(encoded.output.lengths, places.shape[1])
        for block in self.blocks[: self.plain]:
            tokens = block(tokens, mask)
        for level, block in zip(self.levels, self.blocks[self.plain :], strict=True):
            context = self.embed(encoded.taps[f"layer.{level}"].data) + places
            last = None if chosen is None or level != self.levels[-1] else chosen.places
            tokens = block(tokens, context, mask, kept, places=last)
        return self.values(tokens, chosen)
