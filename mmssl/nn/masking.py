"""Masks: which frames or tokens an encoder does not get to see.

All draws come from a generator on the CPU, so that a mask depends on its seed and on the lengths alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError


def span_mask(
    lengths: Tensor,
    probability: float,
    span: int,
    *,
    min_spans: int = 0,
    no_overlap: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Spans of `span` frames, which may overlap, as in wav2vec 2.0 and HuBERT.

    A clip of n frames gets probability * n / span spans, rounded up or down at random so that the mean is exact, at
    distinct starting points drawn uniformly from those where a whole span fits. With .65 and 10 about 49 % of the
    frames of a long clip are hidden, because spans overlap. A clip shorter than a span is not masked.

    Source: Baevski et al. 2020, section 3.1 and appendix A.2; the rounding and the fixed number of spans follow the
    authors' code ("static" masks).

    Args:
        lengths: (B,) frames of each clip.
        probability: share of frames that would be hidden if spans did not overlap, in (0, 1].
        span: frames of one span.
        min_spans: at least so many spans for each clip where they fit.
        no_overlap: spans keep apart, so that the share of hidden frames is `probability` (less what does not fit).
        generator: on the CPU, or one for each clip; None draws from the global generator.

    Returns:
        (B, T) bool on the CPU, T the longest clip; True for hidden frames, never past a clip's end.

    Raises:
        ConfigError: a probability or span out of range.
        InputError: no frame of the batch is hidden.
    """
    if not 0 < probability <= 1 or span < 1 or min_spans < 0:
        raise ConfigError(
            f"span_mask needs a probability in (0, 1], a span of at least 1 frame and min_spans of at least 0, "
            f"got {probability}, {span} and {min_spans}: such a mask would hide nothing or is not defined."
        )
    sizes = [int(n) for n in lengths]
    mask = torch.zeros(len(sizes), max(sizes), dtype=torch.bool)
    draws = generator if isinstance(generator, Sequence) else [generator] * len(sizes)
    for row, size, draw in zip(mask, sizes, draws, strict=True):
        rounding = float(torch.rand((), generator=draw))
        count = max(int(probability * size / span + rounding), min_spans)
        for start in _starts(size, span, count, no_overlap, draw):
            row[start : start + span] = True
    if not mask.any():
        raise InputError(
            f"The mask hides nothing: clips of {min(sizes)} to {max(sizes)} frames with spans of {span} and "
            f"probability {probability}. Raise the probability or min_spans, shorten the spans, or use longer clips."
        )
    return mask


def _starts(size: int, span: int, count: int, no_overlap: bool, generator: torch.Generator | None) -> list[int]:
    """Where spans start: distinct and uniform; with `no_overlap` uniform over all placements that keep apart."""
    if no_overlap:
        count = min(count, size // span)
        # placing n blocks in a row of `size` is choosing n of the size - n (span - 1) slots that remain
        slots = size - count * (span - 1)
        chosen = torch.randperm(max(slots, 0), generator=generator)[:count].sort().values
        return (chosen + torch.arange(len(chosen)) * (span - 1)).tolist()
    places = max(size - span + 1, 0)
    return torch.randperm(places, generator=generator)[: min(count, places)].tolist()


def random_token_mask(batch: int, tokens: int, hidden: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Exactly `hidden` of the tokens of each clip, uniformly, as in MAE.

    Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3.

    Args:
        batch: B.
        tokens: T, of each clip.
        hidden: how many to hide; at least 1 and less than T.
        generator: on the CPU; None draws from the global generator.

    Returns:
        (B, T) bool on the CPU, True for hidden tokens.

    Raises:
        ConfigError: `hidden` is none or all of the tokens.
    """
    _check_hidden(tokens, hidden)
    noise = torch.rand(batch, tokens, generator=generator)
    order = noise.argsort(dim=1)
    return torch.zeros(batch, tokens, dtype=torch.bool).scatter_(1, order[:, :hidden], True)


def tube_mask(
    batch: int, steps: int, tokens_per_step: int, hidden: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """The same `hidden` places in every time step, as in VideoMAE: nothing can be copied from a neighbouring frame.

    Source: Tong et al. 2022, "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
    Pre-Training", section 3.3.

    Args:
        batch: B.
        steps: time steps of tokens.
        tokens_per_step: places of one step.
        hidden: places to hide in each step, int(ratio * tokens_per_step) in the authors' code.
        generator: on the CPU; None draws from the global generator.

    Returns:
        (B, steps * tokens_per_step) bool on the CPU, time-major, True for hidden tokens.

    Raises:
        ConfigError: no time step, or `hidden` is none or all of the places.
    """
    if steps < 1:
        raise ConfigError(f"tube_mask needs at least one time step, got {steps}.")
    return random_token_mask(batch, tokens_per_step, hidden, generator=generator).repeat(1, steps)


def hidden_count(tokens: int, ratio: float) -> int:
    """Tokens hidden at a ratio: those that are not among the int(tokens * (1 - ratio)) visible ones, as in MAE.

    Raises:
        ConfigError: the ratio is out of (0, 1), or hides none or all.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"The mask ratio must be between 0 and 1, got {ratio}.")
    hidden = tokens - int(tokens * (1 - ratio))
    _check_hidden(tokens, hidden)
    return hidden


def _check_hidden(tokens: int, hidden: int) -> None:
    if not 0 < hidden < tokens:
        raise ConfigError(
            f"A mask must hide at least one token and leave at least one, got {hidden} hidden of {tokens}: "
            "change the mask ratio or use more tokens."
        )
