"""Means over the rows of two processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed

from mmssl.objectives.joint import joint_weight
from mmssl.objectives.losses.regression import MSE


def share(rank: int, store: Path) -> None:
    """What one of two processes does: two rows of seven, or the other five."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    x, y, weight = torch.randn(7, 5), torch.randn(7, 4), torch.randn(5, 4)
    joint = weight.clone().requires_grad_()
    MSE()(x @ joint, y).loss.backward()
    mine = weight.clone().requires_grad_()
    own = slice(0, 2) if rank == 0 else slice(2, 7)
    output = MSE()(x[own] @ mine, y[own])
    factor, finite = joint_weight(output.loss.detach(), output.count)
    assert finite
    (output.loss * factor).backward()
    # as data parallel training averages gradients
    distributed.all_reduce(mine.grad)
    torch.testing.assert_close(mine.grad / 2, joint.grad, rtol=0, atol=1e-6)
    # all processes learn of the loss of one that is not finite
    _, finite = joint_weight(torch.tensor(float("nan") if rank else 1.0), 3)
    assert not finite
    distributed.destroy_process_group()


def test_shares_of_unequal_size_are_weighted_by_their_rows(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=share, args=(rank, tmp_path / "store"), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_one_process_keeps_its_mean() -> None:
    assert joint_weight(torch.tensor(2.0), 3) == (1.0, True)
    assert joint_weight(torch.tensor(float("inf")), 3) == (1.0, False)
