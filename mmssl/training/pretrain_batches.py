"""Batches of waveforms for pretraining: of about equal duration, in an order that a number alone determines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mmssl.errors import ConfigError, DataError
from mmssl.lengths import pad, seconds_to_samples
from mmssl.media.audio import audio_info, load_audio
from mmssl.objectives.types import Examples
from mmssl.random import mix
from mmssl.types import Clip, Inputs, Padded

_BUCKET = 50  # batches whose clips are sorted by length together


@dataclass(frozen=True)
class PretrainBatch:
    """A batch and its place.

    Attributes:
        examples: the clips.
        number: how many batches came before it in the run.
        epoch: passes over the corpus completed before it.
    """

    examples: Examples
    number: int
    epoch: int


class PretrainBatches(Dataset[PretrainBatch]):
    """Batch number k of a run, for any k: the order within each epoch and all crops follow from the seed and k.

    In an epoch every clip comes once. Clips of similar length share a batch, which holds at most `batch_seconds`.

    Args:
        clips: with audio.
        sample_rate: of the waveforms, in Hz.
        batch_seconds: most audio of a batch.
        max_seconds: longer clips are cropped to this at a random place, each epoch anew.
        min_samples: shorter clips are left out; see `skipped`.
        crop_step: crops start at multiples of so many samples: the hop of the encoder, so that its frames are those of
            the whole clip.
        seed: of order and crops.

    Attributes:
        skipped: ids of the clips that are too short.

    Raises:
        ConfigError: durations out of range.
        DataError: a clip has no audio, or none is long enough.
        MediaError: a file that cannot be read.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int,
        batch_seconds: float = 60.0,
        max_seconds: float = 15.6,
        min_samples: int = 400,
        crop_step: int = 1,
        seed: int = 0,
    ) -> None:
        if not 0 < max_seconds <= batch_seconds:
            raise ConfigError(
                f"max_seconds must be above 0 and at most batch_seconds, got {max_seconds} and {batch_seconds}: "
                "a batch has to hold its longest clip."
            )
        self.sample_rate, self.seed, self.crop_step = sample_rate, seed, crop_step
        self.limit = seconds_to_samples(max_seconds, sample_rate)
        self.batch_samples = seconds_to_samples(batch_seconds, sample_rate)
        self.clips: list[Clip] = []
        self.skipped: list[str] = []
        self._sizes: list[int] = []
        for clip in clips:
            size = min(_samples(clip, sample_rate), self.limit)
            if size < min_samples:
                self.skipped.append(clip.id)
                continue
            self.clips.append(clip)
            self._sizes.append(size)
        if not self.clips:
            raise DataError(
                f"None of the {len(clips)} clips has the {min_samples} samples at {sample_rate} Hz that the encoder "
                "needs."
            )
        self._plans: list[list[list[int]]] = []

    def __getitem__(self, number: int) -> PretrainBatch:
        """Batch `number` of the run."""
        epoch, first = 0, 0
        while number >= first + len(self.plan(epoch)):
            first += len(self.plan(epoch))
            epoch += 1
        rows, starts = [], []
        members = self.plan(epoch)[number - first]
        for index in members:
            clip = self.clips[index]
            waveform, _ = load_audio(
                str(clip.audio), sample_rate=self.sample_rate, start=clip.start, duration=clip.duration
            )
            places = max(len(waveform) - self.limit, 0) // self.crop_step + 1
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, index))
            start = int(torch.randint(places, (), generator=generator)) * self.crop_step
            rows.append(waveform[start : start + self.limit])
            starts.append(start)
        inputs = Inputs(waveforms=Padded(*pad(rows)))
        ids = tuple(self.clips[index].id for index in members)
        return PretrainBatch(Examples(inputs, ids, starts=tuple(starts)), number, epoch)

    def plan(self, epoch: int) -> list[list[int]]:
        """Clips of each batch of an epoch."""
        while len(self._plans) <= epoch:
            self._plans.append(self._plan(len(self._plans)))
        return self._plans[epoch]

    def _plan(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, -1))
        order = torch.randperm(len(self.clips), generator=generator).tolist()
        per_batch = max(1, self.batch_samples * len(self._sizes) // sum(self._sizes))
        batches: list[list[int]] = []
        for begin in range(0, len(order), per_batch * _BUCKET):
            bucket = sorted(order[begin : begin + per_batch * _BUCKET], key=lambda k: (self._sizes[k], k))
            current: list[int] = []
            total = 0
            for index in bucket:
                if current and total + self._sizes[index] > self.batch_samples:
                    batches.append(current)
                    current, total = [], 0
                current.append(index)
                total += self._sizes[index]
            batches.append(current)
        shuffle = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[k] for k in shuffle]


class _Onwards(Sampler[int]):
    """Numbers from a first one on; it has no length, so that a resumed run is not cut short."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.end))


def pretrain_loader(batches: PretrainBatches, first: int, end: int, num_workers: int = 0) -> DataLoader[PretrainBatch]:
    """Batches `first` ... `end` - 1 of a run, in order, whatever the number of workers."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=_Onwards(first, end),
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
    )


def _samples(clip: Clip, sample_rate: int) -> int:
    if clip.audio is None:
        raise DataError(f"The clip {clip.id!r} has no audio; this pretraining takes waveforms.")
    seconds = clip.duration
    if seconds is None:
        seconds = audio_info(clip.audio).duration - clip.start
    return seconds_to_samples(seconds, sample_rate)
