"""Standardisation, and statistics of whole clips, in front of any interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import ConfigError
from mmssl.interfaces.base import Interface, build_interface
from mmssl.lengths import valid_mask
from mmssl.types import Layers, Padded, StreamSpec

STATISTICS = ("frames", "mean", "mean_std")


class Standardized(Interface):
    """Per layer the frames or statistics over them, then (x - mean) / std, then an interface.

    The means and standard deviations are those of the training clips (`set_statistics`) and part of the state dict, so
    that a trained model carries them. With "mean" and "mean_std" a clip becomes one frame per layer, its mean or its
    mean and (population) standard deviation side by side: this is exact for stored statistics and for frames alike.

    Args:
        hidden_sizes: width D_k of each layer.
        hop_lengths: hop of each layer, in samples.
        interface: name or dotted path of the interface that follows.
        statistics: "frames", "mean" or "mean_std".
        arguments: of that interface.

    Raises:
        ConfigError: an unknown kind of statistics.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        hop_lengths: Sequence[int],
        interface: str = "weighted_sum",
        statistics: str = "frames",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(hidden_sizes, hop_lengths)
        if statistics not in STATISTICS:
            raise ConfigError(f"statistics must be one of {', '.join(STATISTICS)}, got {statistics!r}.")
        self.statistics = statistics
        self.widths = tuple(2 * d if statistics == "mean_std" else d for d in hidden_sizes)
        hops = tuple(hop_lengths) if statistics == "frames" else (1,) * len(self.widths)
        self.inner = build_interface(interface, StreamSpec(self.widths, hops), **dict(arguments or {}))
        self.output_size = self.inner.output_size
        self.affine = self.inner.affine and statistics != "mean_std"
        for k, width in enumerate(self.widths):
            self.register_buffer(f"mean_{k}", torch.zeros(width))
            self.register_buffer(f"scale_{k}", torch.ones(width))

    def set_statistics(self, means: Sequence[Tensor], stds: Sequence[Tensor]) -> None:
        """Take over the training clips' statistics.

        Args:
            means: (W_k,) per layer, W_k = 2 D_k for "mean_std", else D_k.
            stds: (W_k,) per layer; a dimension that never changes (below 1e-6 of the layer's largest) keeps scale 1.
        """
        for k, (mean, std) in enumerate(zip(means, stds, strict=True)):
            flat = std <= 1e-6 * std.max().clamp(min=1e-30)
            getattr(self, f"mean_{k}").copy_(mean)
            getattr(self, f"scale_{k}").copy_(torch.where(flat, torch.ones_like(std), 1.0 / std))

    def forward(self, layers: Layers) -> Padded:
        """Map frames (B, T_k, D_k), or ready statistics (B, 1, W_k), to the interface's output.

        Raises:
            InputError: the layers have neither the widths of the upstream nor those of its statistics.
        """
        ready = self.statistics != "frames" and layers.hidden_sizes == self.widths
        return self.combine(layers) if ready else super().forward(layers)

    def combine(self, layers: Layers) -> Padded:
        """Reduce where asked for, standardise, and hand over to the inner interface."""
        states, lengths = [], []
        for k, width in enumerate(self.widths):
            padded = layers[k]
            if self.statistics != "frames":
                padded = self._reduced(padded, width)
            scaled = (padded.data - getattr(self, f"mean_{k}")) * getattr(self, f"scale_{k}")
            # the shift would fill the padding
            valid = valid_mask(padded.lengths, scaled.shape[1])
            states.append(scaled.masked_fill(~valid[..., None], 0.0))
            lengths.append(padded.lengths)
        return self.inner(Layers(tuple(states), tuple(lengths)))

    def layer_weights(self) -> Tensor | None:
        """The inner interface's weights (L,), or None."""
        return self.inner.layer_weights()

    def _reduced(self, padded: Padded, width: int) -> Padded:
        data = padded.data
        if data.shape[-1] == width and data.shape[1] == 1:
            return padded
        mask = padded.mask[..., None]
        count = padded.lengths.clamp(min=1)[:, None, None].double()
        wide = data.double().masked_fill(~mask, 0.0)
        mean = wide.sum(1, keepdim=True) / count
        parts = [mean]
        if self.statistics == "mean_std":
            parts.append(((wide - mean).masked_fill(~mask, 0.0).square().sum(1, keepdim=True) / count).sqrt())
        return Padded(torch.cat(parts, -1).to(data.dtype), torch.ones_like(padded.lengths))
