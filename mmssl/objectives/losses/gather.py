"""Rows of all ranks, with gradients that equal those of one process with the joint batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of ranks; 1 outside of a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside of a process group."""
    return distributed.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every rank's loss asks of this rank's rows.

    Distributed data parallel divides gradients by the number of ranks afterwards, so that with each rank's loss a mean
    over its own anchors, or the same joint loss on all ranks, the result is the gradient of the joint mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        distributed.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather_rows(x: Tensor) -> Tensor:
    """Rows (N, ...) of this rank -> rows (R N, ...) of all ranks in order; unchanged in a single process.

    Every rank must hold the same number of rows.
    """
    if world_size() == 1:
        return x
    return cast("Tensor", _Gather.apply(x))


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of a tensor over ranks, without gradient; unchanged in a single process."""
    if world_size() > 1:
        x = x.clone()
        distributed.all_reduce(x)
        x = x / world_size()
    return x
