"""InfoNCE with negatives from the same utterance.

Source: Baevski et al. 2020, "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations",
equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import ConfigError, InputError
from mmssl.objectives.losses.base import Loss, LossOutput, require_positive
from mmssl.random import mix

_NEGATIVES = 31  # sets the draws of negatives apart from all else that is drawn for a clip


def draw_negatives(
    counts: Tensor, num_negatives: int, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Draw, for each row of each clip, other rows of the same clip, uniformly and with replacement.

    Args:
        counts: (B,) rows of each clip; a clip without any is allowed, one with a single row is not.
        num_negatives: K, how many to draw for each row.
        generator: on the CPU, or one for each clip, whose draws then do not depend on the batch; None draws from the
            global generator.

    Returns:
        (B, M, K) int64, M the largest count: indices into the rows of the same clip, never the row itself. What stands
        past a clip's count is meaningless but a valid index.

    Raises:
        InputError: a clip has one row only, and so no negatives.
    """
    counts = counts.cpu()
    lonely = (counts == 1).nonzero().flatten()
    if len(lonely):
        raise InputError(
            f"Clip {int(lonely[0])} of the batch has a single hidden frame, and so no negatives: "
            "raise the mask's min_spans or span length, or leave out shorter clips."
        )
    longest = int(counts.max())
    shape = (len(counts), longest, num_negatives)
    if isinstance(generator, Sequence):
        draws = torch.zeros(shape, dtype=torch.float64)
        for row, count, draw in zip(draws, counts.tolist(), generator, strict=True):
            row[:count] = torch.rand((count, num_negatives), generator=draw, dtype=torch.float64)
    else:
        draws = torch.rand(shape, generator=generator, dtype=torch.float64)
    others = (counts - 1).clamp(min=1)[:, None, None]
    index = (draws * others).long().clamp(max=others - 1)
    return index + (index >= torch.arange(longest)[None, :, None])


class UtteranceInfoNCE(Loss):
    """Tell the target of a frame from targets of other selected frames of the same utterance, by cosine.

    Args:
        num_negatives: K, drawn for each frame (100 in the paper).
        temperature: divides the cosines (0.1 in the paper).
        exclude_equal: leave out negatives whose target equals that of the frame, as happens with codes.

    Raises:
        ConfigError: no negatives, or a temperature that is not positive.
    """

    compares_rows = True
    draws_for_clips = True

    def __init__(self, num_negatives: int = 100, temperature: float = 0.1, exclude_equal: bool = True) -> None:
        super().__init__()
        if num_negatives < 1:
            raise ConfigError(
                f"InfoNCE needs at least one negative, got num_negatives = {num_negatives}: without any the loss is 0."
            )
        require_positive(temperature=temperature)
        self.num_negatives, self.temperature, self.exclude_equal = num_negatives, temperature, exclude_equal

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] = (),
    ) -> LossOutput:
        """Mean over selected frames; logs "accuracy", "ln_n" = ln(K + 1) and "equal_negatives", the share left out.

        Args:
            prediction, target: (B, T, D).
            where: (B, T) bool; None selects all.
            generator: for the draw of negatives.
            seeds: one for each clip, to draw from instead; empty for none.
        """
        if target is None or prediction.shape != target.shape or prediction.dim() != 3:
            given = "none" if target is None else tuple(target.shape)
            raise InputError(
                f"UtteranceInfoNCE takes frames (B, T, D) of one shape, got {tuple(prediction.shape)} and {given}."
            )
        if where is None:
            where = torch.ones(prediction.shape[:2], dtype=torch.bool, device=prediction.device)
        counts = where.sum(1)
        if int(counts.max()) == 0:
            raise InputError("UtteranceInfoNCE was given no frame: the mask selects nothing.")
        draws = [torch.Generator().manual_seed(mix(seed, _NEGATIVES)) for seed in seeds]
        negatives = draw_negatives(counts, self.num_negatives, draws or generator).to(prediction.device)
        return self.contrast(prediction, target, where, negatives)

    def contrast(self, prediction: Tensor, target: Tensor, where: Tensor, negatives: Tensor) -> LossOutput:
        """The loss for given negatives (B, M, K), indices into the selected frames of each clip."""
        # selected frames first, in order: row m of a clip is its m-th selected frame
        size = negatives.shape[1]
        order = where.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        valid = where.gather(1, order)
        queries, keys = (
            F.normalize(x.float().gather(1, order[..., None].expand(-1, -1, x.shape[-1])), dim=-1, eps=1e-8)
            for x in (prediction, target)
        )
        scores = queries @ keys.transpose(1, 2) / self.temperature
        logits = torch.cat([scores.diagonal(dim1=1, dim2=2)[..., None], scores.gather(2, negatives)], dim=2)
        equal = torch.zeros_like(negatives, dtype=torch.bool)
        if self.exclude_equal:
            equal = _same_target(target, order, negatives)
            logits = torch.cat([logits[..., :1], logits[..., 1:].masked_fill(equal, -math.inf)], dim=2)
        chosen = logits[valid]
        loss = F.cross_entropy(chosen, chosen.new_zeros(len(chosen), dtype=torch.int64))
        first = chosen.detach()
        # a tie with a negative is no hit: identical predictions for all must not look like success
        hit = first[:, 0] > first[:, 1:].amax(1)
        logs = {
            "accuracy": hit.float().mean(),
            "ln_n": torch.tensor(math.log(1 + negatives.shape[2])),
            "equal_negatives": equal[valid].float().mean(),
        }
        return LossOutput(loss, len(chosen), logs)


def _same_target(target: Tensor, order: Tensor, negatives: Tensor) -> Tensor:
    """(B, M, K) bool: the negative's target equals the frame's own, element by element."""
    flat = target.detach().gather(1, order[..., None].expand(-1, -1, target.shape[-1]))
    identity = flat.reshape(-1, flat.shape[-1]).unique(dim=0, return_inverse=True)[1].view(order.shape)
    return identity.gather(1, negatives.flatten(1)).view_as(negatives) == identity[..., None]
