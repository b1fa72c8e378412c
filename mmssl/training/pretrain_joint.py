"""The batches of a run that all processes can train on, where files may turn out to be damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from torch.utils.data import Dataset

from mmssl.errors import MediaError
from mmssl.objectives.losses.gather import world_size
from mmssl.objectives.types import Examples
from mmssl.training.pretrain_batches import PretrainBatch, PretrainBatches, pretrain_loader
from mmssl.training.pretrain_parallel import gathered
from mmssl.types import Inputs


class JointBatches:
    """This process's share of batch after batch, none of them empty; every process must iterate over its own in step.

    With `on_error="skip"` a process learns only when it reads that files of its share are damaged. If nothing is left
    of the share of one of them, the processes tell each other which clips cannot be read, and the others are dealt anew
    (`PretrainBatches.share`): each process then has clips, every clip that can be read is in one share, and as its
    crop, mask and negatives follow its own seed, the step is that of one process with the joint batch of these clips.
    Nothing in objectives, losses or teachers has to know of it.

    A batch with fewer readable clips than processes (of one process: with none) is left out by all of them alike, and
    the batch after it takes its place, so that the number of steps and of batches in each does not change.

    Args:
        batches: of the run.
        first: number of the first batch.
        count: how many to give, those that are left out aside.
        num_workers: processes that read clips; what is dealt anew is read by this one.
    """

    def __init__(self, batches: PretrainBatches, first: int, count: int, num_workers: int = 0) -> None:
        self.batches, self.first, self.count, self.num_workers = batches, first, count, num_workers

    def __iter__(self) -> Iterator[PretrainBatch]:
        """The batches.

        Raises:
            MediaError: a damaged file, or with on_error="skip" an epoch of batches that are all left out.
            DataError: fewer clips in a batch than processes.
        """
        return islice(self._readable(), self.count)

    def _readable(self) -> Iterator[PretrainBatch]:
        left_out = 0
        failed: dict[str, str] = {}
        for share in pretrain_loader(_Shares(self.batches), self.first, None, self.num_workers):
            batch = share if self.batches.on_error == "raise" else self._dealt(share)
            failed |= batch.failed
            if batch.examples.ids:
                yield replace(batch, failed=failed, left_out=left_out)
                left_out, failed = 0, {}
                continue
            left_out += 1
            if left_out >= len(self.batches.plan(batch.epoch)):
                raise MediaError(
                    f"No batch of the {left_out} up to number {batch.number} has a clip that can be read for each of "
                    f"{world_size()} processes; the first: {next(iter(failed.values()))}"
                )

    def _dealt(self, batch: PretrainBatch) -> PretrainBatch:
        """The batch, dealt anew as long as a process has no clip of it; empty on all if there are too few."""
        failed: dict[str, str] = {}
        while True:
            parts = gathered((len(batch.examples.ids), dict(batch.failed)))
            counts = [count for count, _ in parts]
            if min(counts) > 0:
                return replace(batch, failed=failed | dict(batch.failed))
            for _, damaged in parts:
                failed |= damaged
            if sum(counts) < len(counts):
                return replace(batch, examples=Examples(Inputs()), failed=failed)
            batch = self.batches.share(batch.number, without=failed)


class _Shares(Dataset[PretrainBatch]):
    """Shares of batches, which may be empty."""

    def __init__(self, batches: PretrainBatches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> PretrainBatch:
        return self.batches.share(number)
