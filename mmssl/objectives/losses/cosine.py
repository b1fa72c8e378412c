"""Cosine distance between prediction and target.

Sources: Grill et al. 2020, "Bootstrap your own latent" (BYOL), equation 2; Chen and He 2021, "Exploring Simple Siamese
Representation Learning" (SimSiam), equation 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError
from mmssl.objectives.losses.base import Loss, LossOutput, both_rows


class Cosine(Loss):
    """2 - 2 cos ("byol": the squared distance of normalised vectors, in [0, 4]) or -cos ("simsiam", in [-1, 1]).

    Args:
        form: "byol" or "simsiam".

    Raises:
        ConfigError: another form.
    """

    def __init__(self, form: str = "byol") -> None:
        super().__init__()
        if form not in ("byol", "simsiam"):
            raise ConfigError(f"form must be 'byol' or 'simsiam', got {form!r}.")
        self.form = form

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Mean over selected rows of one shape (B, D) or (B, T, D); logs "cosine". See `Loss.forward`."""
        guess, truth = both_rows(prediction, target, where)
        cosine = F.cosine_similarity(guess.float(), truth.float(), dim=-1).mean()
        loss = 2 - 2 * cosine if self.form == "byol" else -cosine
        return LossOutput(loss, len(guess), {"cosine": cosine.detach()})
