"""Means over the rows of all ranks: what makes the gradient of several processes that of one with the joint batch."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from mmssl.objectives.losses.gather import world_size


@torch.no_grad()
def joint_weight(loss: Tensor, count: int) -> tuple[float, bool]:
    """What a rank's mean is multiplied by, so that the mean over ranks is the mean over the rows of all of them.

    With c_r rows on rank r of R, that is R c_r / (c_1 + ... + c_R): data parallel training averages gradients over
    ranks, whatever number of rows each of them has. Every rank must call this as often as the others.

    Args:
        loss: scalar, this rank's mean.
        count: rows it is a mean over.

    Returns:
        The weight, 1 in a single process; and whether the losses of all ranks are finite, so that all of them stop
        where one of them has to.
    """
    finite = bool(torch.isfinite(loss))
    if world_size() == 1:
        return 1.0, finite
    sums = torch.tensor([float(count), float(not finite)], dtype=torch.float64, device=loss.device)
    distributed.all_reduce(sums)
    return world_size() * count / float(sums[0]), float(sums[1]) == 0
