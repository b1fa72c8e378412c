"""Layers side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmssl.errors import ConfigError
from mmssl.interfaces.base import Interface
from mmssl.interfaces.joining import RateAligner, common_hop
from mmssl.types import Layers, Padded


class Concat(Interface):
    """Chosen layers concatenated over their features, in the order given.

    Layers of another rate are brought to a common one first (`mmssl.interfaces.joining`). It is affine, unless the
    chosen layers differ in rate.

    Args:
        hidden_sizes: width of each layer.
        hop_lengths: hop of each layer.
        layers: which, counted from 0 or from the end; None for all.
        rate: common rate, "slowest" or "fastest" of the chosen layers.

    Raises:
        ConfigError: a layer does not exist or is named twice, none is chosen, `rate` is not allowed, or token layers
            are mixed with layers over time.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        hop_lengths: Sequence[int],
        layers: Sequence[int] | None = None,
        rate: str = "slowest",
    ) -> None:
        super().__init__(hidden_sizes, hop_lengths)
        chosen = range(len(self.hidden_sizes)) if layers is None else layers
        self.layers = tuple(self.layer_index(layer) for layer in chosen)
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"Concat takes one or more different layers, got {list(chosen)}.")
        self._hops = tuple(self.hop_lengths[layer] for layer in self.layers)
        self.hop = common_hop(self._hops, rate)
        self.output_size = sum(self.hidden_sizes[layer] for layer in self.layers)
        self.affine = len(set(self._hops)) == 1

    def combine(self, layers: Layers) -> Padded:
        """Concatenate the chosen layers."""
        chosen = Layers(
            tuple(layers.hidden_states[k] for k in self.layers), tuple(layers.lengths[k] for k in self.layers)
        )
        aligned = RateAligner(chosen, self._hops, self.hop)
        return Padded(torch.cat([aligned[k] for k in range(len(chosen))], dim=-1), aligned.lengths)
