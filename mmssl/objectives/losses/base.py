"""The contract of a loss: prediction and target in, a mean over what was selected out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmssl.errors import ConfigError, InputError


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    Attributes:
        loss: scalar, mean over `count` rows.
        count: frames or clips that the loss averages over.
        logs: name -> scalar without gradient, such as "accuracy".
    """

    loss: Tensor
    count: int
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Loss(nn.Module, ABC):
    """A loss over the rows (frames or clips) that `where` selects.

    Attributes:
        needs_target: False for a penalty, which looks at the prediction alone.
        compares_rows: True where the loss needs more than one row, because rows are contrasted with each other.
        draws_for_clips: True where `forward` takes `seeds` of the clips too, and draws from them where it has any.
    """

    needs_target = True
    compares_rows = False
    draws_for_clips = False

    @abstractmethod
    def forward(
        self,
        prediction: Tensor,
        target: Tensor | None = None,
        where: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> LossOutput:
        """Compute the loss.

        Args:
            prediction: (B, T, D) frames or (B, D) clips.
            target: the same leading sizes; None for a penalty.
            where: (B, T) or (B,) bool, True for rows that count; None for all.
            generator: for losses that draw, on the CPU; None draws from the global generator.

        Raises:
            InputError: sizes that do not fit, or nothing selected.
        """

    def after_step(self) -> None:
        """Called once after each optimizer step; for losses that keep a running state."""
        return

    def after_skipped_step(self) -> None:
        """Called instead of `after_step` where a loss scale left the step out: forget what was kept for it."""
        return


def select_rows(x: Tensor, where: Tensor | None, like: int = 1) -> Tensor:
    """Rows of `x` as one batch.

    Args:
        x: (B, ...) or (B, T, ...).
        where: bool mask of the leading dimensions; None takes every row.
        like: number of trailing dimensions of one row.

    Returns:
        (N, ...), N at least 1.

    Raises:
        InputError: the mask does not fit or selects nothing.
    """
    leading = x.shape[: x.dim() - like]
    if where is None:
        rows = x.reshape(-1, *x.shape[x.dim() - like :])
    else:
        if where.dtype != torch.bool or where.shape != leading:
            raise InputError(
                f"The mask of a loss must be bool {tuple(leading)}, got {where.dtype} {tuple(where.shape)}."
            )
        rows = x[where]
    if len(rows) == 0:
        raise InputError(
            "The loss was given no frame: the mask selects nothing. Raise the mask's probability, or leave out clips "
            "that are shorter than a span."
        )
    return rows


def both_rows(prediction: Tensor, target: Tensor | None, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Selected rows (N, D) of a prediction and of a target of the same shape."""
    if target is None or prediction.shape != target.shape or prediction.dim() < 2:
        given = "none" if target is None else tuple(target.shape)
        raise InputError(
            f"Prediction and target must be of one shape (B, D) or (B, T, D), got {tuple(prediction.shape)} and "
            f"{given}. Check the sizes of the head and of the target."
        )
    return select_rows(prediction, where), select_rows(target, where)


def require_positive(**values: float) -> None:
    """Refuse constructor arguments that must be greater than zero.

    Raises:
        ConfigError: names the argument.
    """
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} must be greater than 0, got {value}.")


def require_rows(count: int, loss: Loss, at_least: int = 2) -> None:
    """Refuse batches too small for a loss that compares rows.

    Raises:
        InputError: fewer rows than it needs.
    """
    if count < at_least:
        raise InputError(
            f"{type(loss).__name__} compares the clips of a batch with each other and needs at least {at_least}, "
            f"got {count}. Use a larger batch, gather over ranks, or a queue of negatives."
        )
