"""NT-Xent: of two views of each clip, find the other one among all views of the batch.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), equation 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.objectives.losses.base import Loss, LossOutput, both_rows, require_positive, require_rows
from mmssl.objectives.losses.gather import gather_rows


class NTXent(Loss):
    """Cross entropy of cosines / temperature over the 2 B - 1 other views; both views are anchors.

    Args:
        temperature: divides the cosines.
        gather: views of all ranks, not only of this one.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    compares_rows = True

    def __init__(self, temperature: float = 0.5, gather: bool = False) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature, self.gather = temperature, gather

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean over 2 B anchors; logs "accuracy", "negatives" = 2 B - 2 and "ln_n" = ln(2 B - 1).

        Args:
            prediction, target: (B, D), the two views.
            where: as `Loss.forward`.
            generator: not used.
        """
        a, b = (F.normalize(x.float(), dim=-1) for x in both_rows(prediction, target, where))
        (all_a, all_b), first = gather_rows(a, b) if self.gather else ([a, b], 0)
        count = len(all_a)
        require_rows(count, self)
        own = torch.arange(first, first + len(a), device=a.device)
        logits = torch.cat([a, b]) @ torch.cat([all_a, all_b]).t() / self.temperature
        itself = torch.cat([own, own + count])
        logits = logits.scatter(1, itself[:, None], -math.inf)
        other = torch.cat([own + count, own])
        logs = {
            "accuracy": (logits.detach().argmax(1) == other).float().mean(),
            "negatives": torch.tensor(float(2 * count - 2)),
            "ln_n": torch.tensor(math.log(2 * count - 1)),
        }
        return LossOutput(F.cross_entropy(logits, other), len(logits), logs)
