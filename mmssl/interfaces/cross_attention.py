"""Fusion by cross-attention: each stream looks at the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.interfaces.fusion import Fusion, StreamInput, absent_vector
from mmssl.lengths import valid_mask
from mmssl.nn.vit import CrossBlock, init_linears
from mmssl.types import StreamSpec


class CrossAttentionFusion(Fusion):
    """A stack of blocks per stream: cross-attention to all other streams, self-attention, MLP; then all means.

    The blocks are those of HiCMAE's fusion (Sun et al. 2024, equation 4), all streams updated at once from the states
    before. Each stream's sequence begins with a learned token, another one where a clip lacks the stream; so there is
    always something to attend to, and an absent stream shows nothing but that token.

    Args:
        streams, interface, stream_dropout: see `Fusion`; at least two streams.
        hidden_size, num_layers, num_heads: of the blocks, whose MLPs are four times as wide.

    Raises:
        ConfigError: one stream alone, or sizes that do not go together.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamSpec],
        *,
        hidden_size: int = 256,
        num_layers: int = 1,
        num_heads: int = 4,
        interface: str = "weighted_sum",
        stream_dropout: float = 0.0,
    ) -> None:
        super().__init__(streams, interface=interface, stream_dropout=stream_dropout)
        if len(streams) < 2 or num_layers < 1:
            raise ConfigError(
                f"Cross-attention needs at least two streams and one layer, got {', '.join(streams)} and {num_layers}."
            )
        self.projections = nn.ModuleDict({name: nn.Linear(self.size_of(name), hidden_size) for name in self.streams})
        self.first = nn.ParameterDict({name: absent_vector(hidden_size) for name in self.streams})
        self.absent = nn.ParameterDict({name: absent_vector(hidden_size) for name in self.streams})
        self.blocks = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    CrossBlock(hidden_size, hidden_size, num_heads, 4 * hidden_size) for _ in range(num_layers)
                )
                for name in self.streams
            }
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(hidden_size) for name in self.streams})
        self.num_layers = num_layers
        init_linears(self.blocks)
        self.output_size = hidden_size * len(self.streams)

    def fuse(self, inputs: Mapping[str, StreamInput]) -> Tensor:
        """Means of the streams after the blocks, side by side in the order of `streams`."""
        states, masks = {}, {}
        for name in self.streams:
            found = inputs[name]
            first = torch.where(found.present[:, None], self.first[name], self.absent[name])
            states[name] = torch.cat([first[:, None], self.projections[name](found.frames.data)], dim=1)
            masks[name] = valid_mask(found.frames.lengths + 1, states[name].shape[1])
        for layer in range(self.num_layers):
            states = {name: self._look(name, layer, states, masks) for name in self.streams}
        means = []
        for name in self.streams:
            kept = self.norms[name](states[name]).masked_fill(~masks[name][..., None], 0)
            means.append(kept.sum(1) / masks[name].sum(1, keepdim=True))
        return torch.cat(means, dim=-1)

    def _look(self, name: str, layer: int, states: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        others = [other for other in self.streams if other != name]
        context = torch.cat([states[other] for other in others], dim=1)
        context_mask = torch.cat([masks[other] for other in others], dim=1)
        block = self.blocks[name][layer]  # type: ignore[index]
        return block(states[name], context, masks[name], context_mask)
