"""Two processes that torchrun starts train on pictures as one does, and one goes on where they stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "strategy", "count"),
    # of 13 pictures the processes have shares of unequal size; of SimCLR one picture is damaged too
    [("mae", "ddp", 13), ("mae", "fsdp", 13), ("simclr", "ddp", 13)],
)
def test_two_processes_train_as_one_with_the_joint_batch(
    method: str, strategy: str, count: int, tmp_path: Path, joint_runs: ModuleType
) -> None:
    clips = joint_runs.corpus(tmp_path / "data", count)
    if method == "simclr":
        (tmp_path / "data" / "3.png").write_bytes(b"no picture")
    alone, gradients, weights = joint_runs.train(method, tmp_path / "one", clips)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        joint_runs.__file__,
    ]
    words = [*torchrun, method, str(tmp_path), strategy, str(count)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    both = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(both["gradients"]) == len(gradients) == 3
    for mine, theirs in zip(gradients, both["gradients"], strict=True):
        assert set(mine) == set(theirs)
        largest = max(float(g.abs().max()) for g in mine.values())
        assert largest > 1e-3
        for name, gradient in mine.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=0, atol=1e-6 * max(largest, 1.0), msg=name)
    assert set(weights) == set(both["weights"])
    for name, weight in weights.items():
        torch.testing.assert_close(both["weights"][name], weight, rtol=0, atol=2e-6, msg=name)
    for row, other in zip(alone.history, both["history"], strict=True):
        assert set(row) == set(other)
        for name in ("step", "loss", "grad_norm", "clips", "learning_rate"):
            assert row[name] == pytest.approx(other[name], rel=1e-5), name
    # one process goes on from what two have saved, with the batches that come next
    whole, _, _ = joint_runs.train(method, tmp_path / "whole", clips, max_steps=5)
    resumed, _, _ = joint_runs.train(method, tmp_path / "run", clips, max_steps=5)
    assert resumed.resumed_from == 3
    for row, other in zip(whole.history, resumed.history, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
