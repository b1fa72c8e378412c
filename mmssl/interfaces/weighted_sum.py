"""The weighted sum of all layers, the interface of SUPERB."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmssl.interfaces.base import Interface
from mmssl.interfaces.joining import CommonWidth, RateAligner, common_hop, normalized
from mmssl.types import Layers, Padded

NORM_EPS = 1e-5


class WeightedSum(Interface):
    """Sum of the layers with softmax weights, one learned number per layer, equal at the start.

    SUPERB (Yang et al., Interspeech 2021), as its toolkit S3PRL computes it: weights softmax(w) with w = 0 at first.
    The sum is accumulated layer by layer: neither the forward nor the backward pass holds a stack of the layers or a
    normalised or scaled copy of each. Beyond its inputs it keeps one sequence, and one more per projected layer.

    Layers of another rate are brought to a common one (`mmssl.interfaces.joining`), layers of another width projected
    by a learned linear map. It is affine, unless it normalises or the layers differ in rate.

    Args:
        hidden_sizes: width of each layer.
        hop_lengths: hop of each layer.
        normalize: first bring each frame of each layer to mean 0 and variance 1 over its features (layer norm without
            gain and bias, S3PRL's `normalize`).
        output_size: common width; None for the largest. Only layers of another width get a projection.
        rate: common rate, "slowest" or "fastest".

    Raises:
        ConfigError: `rate` or `output_size` is not allowed, or token layers are mixed with layers over time.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        hop_lengths: Sequence[int],
        normalize: bool = False,
        output_size: int | None = None,
        rate: str = "slowest",
    ) -> None:
        super().__init__(hidden_sizes, hop_lengths)
        self.normalize = normalize
        self.hop = common_hop(self.hop_lengths, rate)
        self.width = CommonWidth(self.hidden_sizes, output_size)
        self.weights = nn.Parameter(torch.zeros(len(self.hidden_sizes)))
        self.output_size = self.width.output_size
        self.affine = not normalize and len(set(self.hop_lengths)) == 1

    def combine(self, layers: Layers) -> Padded:
        """Accumulate the layers."""
        aligned = RateAligner(layers, self.hop_lengths, self.hop)
        total: Tensor | None = None
        for layer, weight in enumerate(self.weights.softmax(0).unbind()):
            total = self._add(total, aligned[layer], layer, weight)
        assert total is not None  # the constructor refuses zero layers
        return Padded(total, aligned.lengths)

    def _add(self, total: Tensor | None, data: Tensor, layer: int, weight: Tensor) -> Tensor:
        """Add weight * data in place. Autograd then keeps `data` itself and no product of it."""
        if str(layer) in self.width.projections:
            data = self.width(normalized(data) if self.normalize else data, layer)
        elif self.normalize:
            # weight * (x - mean) / std as a * x - a * mean: a and mean are one number per frame, so that no
            # normalised copy of the layer is kept for the backward pass
            variance, mean = torch.var_mean(data, dim=-1, correction=0, keepdim=True)
            weight = weight * (variance + NORM_EPS).rsqrt()
            shift = weight * mean
            return (data * weight if total is None else total.addcmul_(data, weight)).sub_(shift)
        return data * weight if total is None else total.addcmul_(data, weight)

    def layer_weights(self) -> Tensor:
        """(L,) softmax weights."""
        return self.weights.detach().softmax(0)
