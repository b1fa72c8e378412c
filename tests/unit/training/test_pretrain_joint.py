"""Damaged files: the run goes on, with all processes in step, as one process does with the clips that can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import distributed

from mmssl.errors import MediaError
from mmssl.training.pretrain_batches import PretrainBatches
from mmssl.training.pretrain_joint import JointBatches
from mmssl.training.readers import ImageReader
from mmssl.types import Clip


def batches_of(clips: list[Clip], **changes: object) -> PretrainBatches:
    return PretrainBatches(clips, ImageReader(16), **{"batch_size": 4, "seed": 5, "on_error": "skip", **changes})


def damage(clips: Sequence[Clip]) -> list[str]:
    """Cut the files off, which shows only when they are decoded."""
    for clip in clips:
        path = Path(str(clip.image))
        path.write_bytes(path.read_bytes()[:300])
    return sorted(clip.id for clip in clips)


@pytest.fixture
def clips(joint_runs: ModuleType, tmp_path: Path) -> list[Clip]:
    """Of 24 clips in batches of four; of batch 1 the second of two processes can read none, of batch 3 nobody any."""
    found = joint_runs.corpus(tmp_path / "data", 24)
    plan = batches_of(found).plan(0)
    damage([found[index] for index in (*plan[1][1::2], *plan[3])])
    return found


def train_shared(rank: int, joint_runs: ModuleType, method: str, clips: list[Clip], folder: Path) -> None:
    result, gradients, weights = joint_runs.train(method, folder / "two", clips, max_steps=2, batch_size=4, devices=2)
    found = {"history": result.history, "gradients": gradients, "weights": weights, "skipped": result.skipped}
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("method", ["mae", "info_nce"])
def test_a_process_without_readable_clips_stops_no_run_and_changes_no_step(
    method: str, clips: list[Clip], joint_runs: ModuleType, in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    assert batches_of(clips).skipped == {}
    in_two_processes(train_shared, joint_runs, method, clips, tmp_path)
    alone, gradients, weights = joint_runs.train(method, tmp_path / "one", clips, max_steps=2, batch_size=4)
    assert [row.get("left_out_batches") for row in alone.history] == [None, 1]
    assert [row["clips"] for row in alone.history] == [3, 4]
    assert len(alone.skipped) == 6
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert both["skipped"] == alone.skipped
        for mine, theirs in zip(gradients, both["gradients"], strict=True):
            assert set(mine) == set(theirs)
            largest = max(float(g.abs().max()) for g in mine.values())
            assert largest > 1e-3
            for name, gradient in mine.items():
                torch.testing.assert_close(theirs[name], gradient, rtol=0, atol=1e-6 * max(largest, 1.0))
        for name, weight in weights.items():
            torch.testing.assert_close(both["weights"][name], weight, rtol=0, atol=2e-6)
        for row, other in zip(alone.history, both["history"], strict=True):
            assert set(row) == set(other)
            for name in ("step", "loss", "grad_norm", "clips", "learning_rate"):
                assert row[name] == pytest.approx(other[name], rel=1e-5), name
            assert row.get("left_out_batches") == other.get("left_out_batches")


def deal(rank: int, clips: list[Clip], folder: Path) -> None:
    distributed.init_process_group("gloo")
    batches = batches_of(clips, rank=rank, world_size=2)
    rows = [(b.number, b.examples.ids, b.examples.seeds, b.failed, b.left_out) for b in JointBatches(batches, 0, 4)]
    torch.save(rows, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_readable_clips_are_dealt_anew(
    clips: list[Clip], in_two_processes: Callable[..., None], tmp_path: Path
) -> None:
    whole = batches_of(clips)
    plan = whole.plan(0)
    # too few to go round
    damage([clips[index] for index in plan[4][:3]])
    in_two_processes(deal, clips, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert [row[0] for row in first] == [row[0] for row in second] == [0, 1, 2, 5]
    assert [row[4] for row in first] == [row[4] for row in second] == [0, 0, 0, 2]
    for number, a, b in zip((0, 1, 2, 5), first, second, strict=True):
        joint = whole.share(number).examples
        readable = [clips[index].id for index in plan[number] if clips[index].id in joint.ids]
        assert a[1] + b[1] == (*readable[::2], *readable[1::2])
        assert dict(zip(a[1] + b[1], a[2] + b[2], strict=True)) == dict(zip(joint.ids, joint.seeds, strict=True))
    # every process knows what was damaged where clips were dealt anew, or nobody had any
    assert sorted(first[1][3]) == sorted(second[1][3]) == sorted(clips[index].id for index in plan[1][1::2])
    assert len(first[3][3]) == len(second[3][3]) == 7


def test_one_process_leaves_out_what_it_cannot_read(clips: list[Clip]) -> None:
    found = list(JointBatches(batches_of(clips), 0, 5))
    assert [batch.number for batch in found] == [0, 1, 2, 4, 5]
    assert [batch.left_out for batch in found] == [0, 0, 0, 1, 0]
    assert [len(batch.examples.ids) for batch in found] == [4, 2, 4, 4, 4]
    assert [len(batch.failed) for batch in found] == [0, 2, 0, 4, 0]
    # read by another process
    workers = list(JointBatches(batches_of(clips), 0, 5, num_workers=1))
    assert [(b.number, b.examples.ids, b.left_out) for b in workers] == [
        (b.number, b.examples.ids, b.left_out) for b in found
    ]
    # a resumed run begins there, and leaves it out again
    assert [batch.number for batch in JointBatches(batches_of(clips), 3, 2)] == [4, 5]
    with pytest.raises(MediaError, match="truncated or damaged"):
        list(JointBatches(batches_of(clips, on_error="raise"), 0, 5))


def test_a_corpus_that_cannot_be_read_ends(joint_runs: ModuleType, tmp_path: Path) -> None:
    clips = joint_runs.corpus(tmp_path / "data", 8)
    assert damage(clips)
    with pytest.raises(MediaError, match=r"No batch of the 2 up to number 1 .* each of 1 processes"):
        next(iter(JointBatches(batches_of(clips), 0, 5)))
