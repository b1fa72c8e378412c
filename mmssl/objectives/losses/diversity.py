"""Diversity of a codebook: the farther its perplexity is from its size, the greater the penalty.

Source: Baevski et al. 2020, "wav2vec 2.0", equation 4, in the form of the authors' code: (G V - sum of perplexities)
over G V, with the softmax of the logits averaged over the selected frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.objectives.losses.base import Loss, LossOutput, select_rows


class Diversity(Loss):
    """(G V - sum over groups of exp entropy of the mean distribution) / (G V), in [0, 1)."""

    needs_target = False

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """The penalty of distributions over G groups of V codes; logs "perplexity", their sum over groups.

        Args:
            prediction: probabilities (B, T, G, V) or (B, G, V).
            target: not used.
            where: (B, T) or (B,) bool; None for all.
            generator: not used.
        """
        if prediction.dim() not in (3, 4):
            raise InputError(f"Diversity takes probabilities (B, T, G, V) or (B, G, V), got {tuple(prediction.shape)}.")
        rows = select_rows(prediction, where, like=2).float()
        mean = rows.mean(0)
        # a code of probability 0 adds nothing, and must not have an infinite gradient
        logarithm = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        perplexity = (-(mean * logarithm).sum(-1)).exp().sum()
        codes = mean.numel()
        return LossOutput((codes - perplexity) / codes, len(rows), {"perplexity": perplexity.detach()})
