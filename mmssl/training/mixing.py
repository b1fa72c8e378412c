"""Mixup and label smoothing: inputs and targets of fine-tuning."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.lengths import zero_padding
from mmssl.types import Inputs, Padded


def mix_inputs(inputs: Inputs, order: Tensor, weight: float) -> Inputs:
    """Mixup (Zhang et al. 2018, equation 1): weight times each clip and 1 - weight times its partner.

    A clip keeps its own length: a longer partner is cut, a shorter one is silence after its end.

    Args:
        inputs: of B clips.
        order: (B,) the partner of each.
        weight: of the clip itself, in [0, 1].
    """

    def mixed(part: Padded | None) -> Padded | None:
        if part is None:
            return None
        clean = zero_padding(part.data, part.lengths)
        return Padded(zero_padding(weight * clean + (1 - weight) * clean[order], part.lengths), part.lengths)

    images = inputs.images
    return Inputs(
        mixed(inputs.waveforms),
        mixed(inputs.video),
        None if images is None else weight * images + (1 - weight) * images[order],
    )


def draw_mix(count: int, alpha: float, seed: int) -> tuple[Tensor, float]:
    """Partners (B,) and the weight of the clip itself, from Beta(alpha, alpha); one weight for a batch.

    Args:
        count: B.
        alpha: above 0.
        seed: of both.
    """
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.permutation(count)), float(generator.beta(alpha, alpha))


def soft_targets(targets: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(B, C) of class indices (B,): 1 - smoothing on the class, and smoothing / C on each (Szegedy et al. 2016)."""
    return F.one_hot(targets, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def soft_cross_entropy(scores: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy of logits (B, C) with probabilities (B, C), mean over clips; each class times its weight (C,)."""
    weighted = targets if class_weights is None else targets * class_weights
    return -(weighted * scores.log_softmax(-1)).sum(-1).mean()
