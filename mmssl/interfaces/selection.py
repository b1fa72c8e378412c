"""Interfaces that take one layer and leave the others."""

from __future__ import annotations

from collections.abc import Sequence

from mmssl.interfaces.base import Interface
from mmssl.types import Layers, Padded


class SingleLayer(Interface):
    """One layer, unchanged.

    Args:
        hidden_sizes: width of each layer.
        hop_lengths: hop of each layer.
        layer: which; 0 is the input of the first block, -1 the last output.

    Raises:
        ConfigError: there is no such layer.
    """

    affine = True

    def __init__(self, hidden_sizes: Sequence[int], hop_lengths: Sequence[int], layer: int) -> None:
        super().__init__(hidden_sizes, hop_lengths)
        self.layer = self.layer_index(layer)
        self.output_size = self.hidden_sizes[self.layer]

    def combine(self, layers: Layers) -> Padded:
        """Take the layer."""
        return layers[self.layer]


class LastLayer(SingleLayer):
    """The last layer, unchanged."""

    def __init__(self, hidden_sizes: Sequence[int], hop_lengths: Sequence[int]) -> None:
        super().__init__(hidden_sizes, hop_lengths, layer=-1)
