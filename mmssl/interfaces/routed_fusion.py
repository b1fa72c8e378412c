"""Fusion by routed attention: one model for audio, video, or both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError
from mmssl.interfaces.fusion import DERIVED, Fusion, StreamInput
from mmssl.nn.routed import FUSION, RoutedTransformer
from mmssl.types import Layers, Padded, StreamSpec


class RoutedFusion(Fusion):
    """Zorro's routing (`mmssl.nn.routed`) over projected streams; the result is the mean of the fusion tokens.

    `outputs` also gives each stream's own mean, which does not depend on the other streams.

    Args:
        streams, interface, stream_dropout: see `Fusion`; not "fusion", which is no stream of its own.
        hidden_size, num_layers, num_heads: of the transformer, whose MLPs are four times as wide.
        num_fusion_tokens: learned tokens that see all streams.
    """

    def __init__(
        self,
        streams: Mapping[str, StreamSpec],
        *,
        hidden_size: int = 256,
        num_layers: int = 2,
        num_heads: int = 4,
        num_fusion_tokens: int = 8,
        interface: str = "weighted_sum",
        stream_dropout: float = 0.0,
    ) -> None:
        super().__init__(streams, interface=interface, stream_dropout=stream_dropout)
        if DERIVED in streams:
            raise ConfigError("Routed fusion joins streams that stay pure: leave the stream 'fusion' out.")
        self.projections = nn.ModuleDict({name: nn.Linear(self.size_of(name), hidden_size) for name in self.streams})
        self.transformer = RoutedTransformer(
            self.streams, hidden_size, num_layers, num_heads, 4 * hidden_size, num_fusion_tokens
        )
        self.output_size = hidden_size

    def outputs(self, streams: Mapping[str, Layers]) -> dict[str, Tensor]:
        """(B, hidden_size) means of every stream of the fusion (zero where a clip lacks it) and of "fusion"."""
        return self._means(self.inputs(streams))

    def fuse(self, inputs: Mapping[str, StreamInput]) -> Tensor:
        """Mean of the fusion tokens."""
        return self._means(inputs)[FUSION]

    def _means(self, inputs: Mapping[str, StreamInput]) -> dict[str, Tensor]:
        tokens = {
            name: Padded(self.projections[name](found.frames.data), found.frames.lengths)
            for name, found in inputs.items()
        }
        found = self.transformer(tokens)
        return {name: out.data.sum(1) / torch.clamp(out.lengths, min=1)[:, None] for name, out in found.items()}
