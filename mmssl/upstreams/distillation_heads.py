"""DistilHuBERT's prediction heads: from the last layer to layers of the teacher.

Source: Chang et al. 2022, "DistilHuBERT: Speech Representation Learning by Layer-wise Distillation of Hidden-unit
BERT", section 2.2; S3PRL's `DistillerModel.output_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import CheckpointError

NUM_HEADS = 3
"""Heads of the published model: they predict layers 4, 8 and 12 of HuBERT base."""


class DistillationHeads(nn.Module):
    """Heads side by side, each a layer with GELU and a linear one.

    Args:
        input_size: D, width of the last layer.
        inner_size: I, width inside of each head.
        output_size: F, width of the teacher's layers.
        num_heads: N.
    """

    def __init__(self, input_size: int, inner_size: int, output_size: int, num_heads: int) -> None:
        super().__init__()
        self.expand = nn.Linear(input_size, num_heads * inner_size)
        bound = inner_size**-0.5
        self.weight = nn.Parameter(torch.empty(num_heads, inner_size, output_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_heads, output_size).uniform_(-bound, bound))

    @property
    def num_heads(self) -> int:
        """N."""
        return self.weight.shape[0]

    @property
    def output_size(self) -> int:
        """F."""
        return self.weight.shape[2]

    @classmethod
    def shaped(cls, state: Mapping[str, Tensor]) -> DistillationHeads:
        """Heads with the sizes of a state dict of this class."""
        num_heads, inner, outer = state["weight"].shape
        return cls(state["expand.weight"].shape[1], inner, outer, num_heads)

    def forward(self, last: Tensor) -> list[Tensor]:
        """Frames (N, D) of the last layer -> for each head, its prediction (N, F)."""
        inner = F.gelu(self.expand(last)).chunk(self.num_heads, dim=-1)
        return [x @ weight + bias for x, weight, bias in zip(inner, self.weight, self.bias, strict=True)]


def heads_of_s3prl(left_out: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The heads among the weights that are no part of an encoder, by our names.

    Raises:
        CheckpointError: they are not there, or of another kind.
    """
    single = "output_layer.2.layer.weight" in left_out  # S3PRL writes one head as a plain linear layer
    names = [f"output_layer.{rest}" for rest in ("0.weight", "0.bias")]
    names += [f"output_layer.2.{'layer.' if single else ''}{part}" for part in ("weight", "bias")]
    missing = [name for name in names if name not in left_out]
    if missing:
        raise CheckpointError(
            f"{source} has no prediction heads: it lacks {', '.join(missing)}. They are in S3PRL's own file of "
            "DistilHuBERT, not in a transformers folder; leave prediction_heads out to load the encoder alone."
        )
    expand, expand_bias, weight, bias = (left_out[name].float() for name in names)
    weight = weight.t()[None] if single else weight
    bias = bias.reshape(len(weight), -1)
    if weight.dim() != 3 or expand.shape[0] != weight.shape[0] * weight.shape[1]:
        raise CheckpointError(
            f"{source}: its prediction heads {tuple(expand.shape)}, {tuple(weight.shape)} do not fit."
        )
    return {"expand.weight": expand, "expand.bias": expand_bias, "weight": weight.contiguous(), "bias": bias}
