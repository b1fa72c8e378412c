"""Rows of all ranks, with gradients that equal those of one process with the joint batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


def world_size() -> int:
    """Number of ranks; 1 outside of a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """All-gather of unequal numbers of rows, whose backward sums what every rank's loss asks of this rank's rows.

    Distributed data parallel divides gradients by the number of ranks afterwards, so that with each rank's loss the sum
    over its own anchors times ranks / anchors of all (`mmssl.objectives.joint`), or the same joint loss on all ranks,
    the result is the gradient of the joint mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        own = distributed.get_rank()
        ctx.begin, ctx.count = sum(counts[:own]), len(x)
        # a collective takes equal shares: short ones are padded, and what was padded is cut off again
        padded = F.pad(x.flatten(1), (0, 0, 0, max(counts) - len(x))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        rows = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return rows.view(-1, *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # what came in may belong to others, and a collective writes
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)
        return grad[ctx.begin : ctx.begin + ctx.count], None


def gather_rows(*rows: Tensor) -> tuple[list[Tensor], int]:
    """Rows of all ranks, which may have different numbers of them.

    Args:
        rows: (N, ...) tensors with one N, which is that of this rank.

    Returns:
        For each of them the rows of all ranks in order, (N_1 + ... + N_R, ...), and the place of this rank's first row
        among them. In a single process the same tensors, and 0.
    """
    if world_size() == 1:
        return list(rows), 0
    counts = _counts(len(rows[0]), rows[0].device)
    gathered = [cast("Tensor", _Gather.apply(x, counts)) for x in rows]
    return gathered, sum(counts[: distributed.get_rank()])


def _counts(count: int, device: torch.device) -> list[int]:
    """The number of rows of each rank."""
    own = torch.tensor([count], device=device)
    found = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(found, own)
    return [int(number) for number in torch.cat(found).tolist()]


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor over ranks, without gradient; unchanged in a single process."""
    if world_size() > 1:
        x = x.clone()
        distributed.all_reduce(x)
    return x
