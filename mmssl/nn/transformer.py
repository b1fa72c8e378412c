"""The transformer of speech encoders on packed clips: attention never leaves a clip, linear layers see all frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.nn.packed import Packed, add_to_own, gelu_of_own
from mmssl.nn.positional import relative_position_buckets
from mmssl.types import Layers, Padded


class SelfAttention(nn.Module):
    """Multi-head self-attention within each clip (Vaswani et al. 2017), with WavLM's gated relative position bias.

    Args:
        hidden_size: width of the frames.
        num_heads: heads; divides `hidden_size`.
        dropout: of the attention weights, in training.
        gated_bias: whether a relative position bias is added to the logits, scaled per head and query by a gate
            (WavLM, Chen et al. 2022, equations 4-6).
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float = 0.0, gated_bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size // num_heads, 8) if gated_bias else None
        self.gate_scale = nn.Parameter(torch.ones(num_heads)) if gated_bias else None

    def forward(self, frames: Packed, bias: Tensor | None = None) -> Tensor:
        """Attend within each clip.

        Args:
            frames: packed (N, D).
            bias: (H, T, T) relative position bias, T at least the longest clip; only with `gated_bias`.

        Returns:
            (N, D).
        """
        heads, dropout = self.num_heads, self.dropout if self.training else 0.0
        qkv = frames.replace(self.qkv(frames.data))
        gates = None if bias is None else frames.replace(self._gates(frames.data)).split()
        clips = []
        for index, clip in enumerate(qkv.split()):
            size = len(clip)
            q, k, v = clip.view(size, 3, heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
            mask = None
            if bias is not None and gates is not None:
                mask = (gates[index].t()[:, :, None] * bias[:, :size, :size])[None]
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            clips.append(attended[0].transpose(0, 1).reshape(size, -1))
        return self.output(Packed.of(clips).data)

    def _gates(self, x: Tensor) -> Tensor:
        """Gate (N, H) of each query: a (b s - 1) + 2, both a and b sigmoids of the query's own frame."""
        if self.gate is None or self.gate_scale is None:
            raise ConfigError("A relative position bias was given to an attention without gates: set gated_bias=True.")
        logits = self.gate(x.view(len(x), self.num_heads, -1)).view(len(x), self.num_heads, 2, 4).sum(-1)
        update, reset = torch.sigmoid(logits).unbind(-1)
        return update * (reset * self.gate_scale - 1.0) + 2.0


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a layer norm before or after it.

    Args:
        hidden_size, num_heads, feed_forward_size: sizes.
        layer_norm_first: norm before each part (large models) instead of after each sum (base models).
        dropout: after each part; attention_dropout: of the weights; activation_dropout: inside the feed-forward.
        gated_bias: see `SelfAttention`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        feed_forward_size: int,
        layer_norm_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        gated_bias: bool = False,
    ) -> None:
        super().__init__()
        self.layer_norm_first = layer_norm_first
        self.attention = SelfAttention(hidden_size, num_heads, attention_dropout, gated_bias)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.expand = nn.Linear(hidden_size, feed_forward_size)
        self.contract = nn.Linear(feed_forward_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout, self.activation_dropout = nn.Dropout(dropout), nn.Dropout(activation_dropout)

    def forward(self, frames: Packed, bias: Tensor | None = None) -> Packed:
        """Packed (N, D) -> packed (N, D); `bias` as in `SelfAttention.forward`."""
        x = frames.data
        if self.layer_norm_first:
            x = add_to_own(self.dropout(self.attention(frames.replace(self.attention_norm(x)), bias)), x)
            return frames.replace(add_to_own(self._feed_forward(self.feed_forward_norm(x)), x))
        x = self.attention_norm(add_to_own(self.dropout(self.attention(frames, bias)), x))
        return frames.replace(self.feed_forward_norm(add_to_own(self._feed_forward(x), x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.activation_dropout(gelu_of_own(self.expand(x)))
        return self.dropout(self.contract(x))


class TransformerEncoder(nn.Module):
    """Positions, then blocks: the context network of wav2vec 2.0, HuBERT, WavLM, data2vec and AV-HuBERT.

    Args:
        positions: module from packed frames (N, D) to what is added to them (N, D).
        hidden_size, num_layers, num_heads, feed_forward_size: sizes.
        layer_norm_first: pre-norm blocks, and the norm after the last block instead of before the first one.
        dropout, attention_dropout, activation_dropout: see `TransformerBlock`.
        layer_drop: probability with which a block is passed over in training; its layer is then the one before it.
        relative_buckets: size of WavLM's table of relative positions, shared by all blocks; 0 for none.
        relative_distance: distance in frames from which on positions share a bucket.
    """

    def __init__(
        self,
        positions: nn.Module,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        feed_forward_size: int,
        layer_norm_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        relative_buckets: int = 0,
        relative_distance: int = 800,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ConfigError(f"num_heads must divide hidden_size, got {num_heads} heads for {hidden_size}.")
        self.layer_norm_first, self.layer_drop = layer_norm_first, layer_drop
        self.relative_distance = relative_distance
        self.positions = positions
        self.layer_norm = nn.LayerNorm(hidden_size)
        self.relative_positions = nn.Embedding(relative_buckets, num_heads) if relative_buckets else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                hidden_size,
                num_heads,
                feed_forward_size,
                layer_norm_first,
                dropout,
                attention_dropout,
                activation_dropout,
                gated_bias=relative_buckets > 0,
            )
            for _ in range(num_layers)
        )
        self._init_weights()

    def forward(self, features: Padded) -> Layers:
        """All layers of a padded batch of features.

        Args:
            features: (B, T, D) with lengths.

        Returns:
            `num_layers` + 1 layers (B, T, D), zero past each length: the input of the first block, then the output of
            each. With `layer_norm_first` the norm after the last block is not in the list (`finish` applies it).
        """
        states = self.forward_packed(Packed.from_padded(features))
        padded = [state.pad() for state in states]
        lengths = features.lengths.to(features.data.device)
        return Layers(tuple(p.data for p in padded), (lengths,) * len(padded))

    def forward_packed(self, features: Packed) -> list[Packed]:
        """The same layers of packed features (N, D)."""
        x = features.data + self.positions(features)
        if not self.layer_norm_first:
            x = self.layer_norm(x)
        states = [features.replace(self.dropout(x))]
        bias = self._relative_bias(max(features.lengths))
        for block in self.blocks:
            passed_over = self.training and self.layer_drop > 0 and float(torch.rand(())) < self.layer_drop
            states.append(states[-1] if passed_over else block(states[-1], bias))
        return states

    def finish(self, last: Tensor) -> Tensor:
        """What heads of the pretrained model saw: the last layer (..., D), normed where no block has done it."""
        return self.layer_norm(last) if self.layer_norm_first else last

    def _relative_bias(self, size: int) -> Tensor | None:
        """Bias (H, size, size) before the gates; row = query, column = key."""
        if self.relative_positions is None:
            return None
        table = self.relative_positions
        steps = torch.arange(size, device=table.weight.device)
        offsets = torch.arange(1 - size, size, device=table.weight.device)
        by_offset = table(relative_position_buckets(offsets, table.num_embeddings, self.relative_distance)).t()
        return by_offset[:, steps[None, :] - steps[:, None] + size - 1]

    @torch.no_grad()
    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
