"""Batches of clips for pretraining, in an order and with crops that a number alone determines."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mmssl.augment.base import Augmentation, clip_generator
from mmssl.errors import ConfigError, DataError, MediaError
from mmssl.objectives.types import Examples
from mmssl.random import mix
from mmssl.training.readers import ClipReader, Item
from mmssl.types import Clip, Inputs

_BUCKET = 50  # batches whose clips are sorted by length together
ON_ERROR = ("raise", "skip")
_AUGMENTATION = 1  # names what is drawn here among what else is drawn from a clip's seed


@dataclass(frozen=True)
class PretrainBatch:
    """A batch, or one rank's share of it, and its place.

    Attributes:
        examples: the clips.
        number: how many batches came before it in the run.
        epoch: passes over the corpus completed before it.
        failed: id -> why, of clips of the batch whose files turned out to be damaged; they are not among the examples.
        left_out: batches right before it that were left out, see `mmssl.training.pretrain_joint`.
    """

    examples: Examples
    number: int
    epoch: int
    failed: Mapping[str, str]
    left_out: int = 0


class PretrainBatches(Dataset[PretrainBatch]):
    """Batch number k of a run, for any k: the order within each epoch and all crops follow from the seed and k.

    In an epoch every clip comes once. Clips of similar length share a batch.

    Args:
        clips: what is trained on.
        reader: how they are read.
        batch_seconds: most sound or video of a batch, for readers whose units have a duration.
        batch_size: clips of a batch; instead of `batch_seconds`, or with it as a further limit.
        seed: of order and crops.
        cache_bytes: memory for decoded clips, kept from their first use; 0 decodes them each time. Every worker
            process has its own.
        on_error: "raise", or "skip" to leave out clips that cannot be read: listed in `skipped`, or in `failed` of
            their batch where that shows only when they are decoded.
        labels: fields of the clips ("speaker", "split" or a label) that go with the examples, as numbers of their
            sorted values; -1 where a clip has none.
        rank, world_size: this process takes the clips `rank`, `rank + world_size` ... of each batch, whose clips do not
            depend on the number of processes.
        group_by: "speaker", "split" or a label: every batch is made of groups of clips that share its value, for
            pretexts whose false pairs or negatives should be hard; None mixes all clips. Clips that lack it form one
            group.
        group_size: most clips of such a group in a batch; 2 or more.
        augment: change of each crop of sound, drawn anew for each clip and epoch; it must keep the length, so that
            label files, which are of the clips as they are, still fit.

    Attributes:
        clips: those that are used.
        skipped: id -> why, of clips that are too short or, with on_error="skip", unreadable.
        label_values: field -> its sorted values.

    Raises:
        ConfigError: a batch without a size, or one that cannot hold its longest clip; a label that no clip has.
        DataError: a clip lacks what is read, or none is long enough.
        MediaError: a file that cannot be read.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        reader: ClipReader,
        *,
        batch_seconds: float | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
        on_error: str = "raise",
        labels: Sequence[str] = (),
        rank: int = 0,
        world_size: int = 1,
        group_by: str | None = None,
        group_size: int = 8,
        augment: Augmentation | None = None,
    ) -> None:
        if group_size < 2 or (group_by is not None and batch_size == 1):
            raise ConfigError(
                f"group_size and batch_size must be at least 2, got {group_size} and {batch_size}: a group of one clip "
                "has no other."
            )
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}.")
        self.reader, self.seed, self.cache_bytes, self.on_error = reader, seed, cache_bytes, on_error
        self.rank, self.world_size = rank, world_size
        self.group_by, self.group_size = group_by, group_size
        self.augment = augment
        self.batch_units, self.batch_size = _limits(reader, batch_seconds, batch_size)
        self.clips: list[Clip] = []
        self.skipped: dict[str, str] = {}
        self._extents: list[int] = []
        for clip in clips:
            self._take(clip)
        if not self.clips:
            first = next(iter(self.skipped.values()), "the list is empty")
            raise DataError(f"None of the {len(clips)} clips can be used; the first: {first}")
        for name in (*labels, *([group_by] if group_by is not None else [])):
            if all(clip.group(name) is None for clip in self.clips):
                fields = {"speaker", "split"} | {label for clip in self.clips for label in clip.labels}
                known = sorted(f for f in fields if any(clip.group(f) is not None for clip in self.clips))
                raise ConfigError(
                    f"No clip has {name!r}, by which pairs or batches go; they have: {', '.join(known) or 'none'}."
                )
        self.label_values = {
            name: sorted({v for clip in self.clips if (v := clip.group(name)) is not None}) for name in labels
        }
        self._sizes = [n if reader.most is None else min(n, reader.most) for n in self._extents]
        self._plans: list[list[list[int]]] = []
        self._cache: dict[int, Item] = {}
        self._cached = 0

    def _take(self, clip: Clip) -> None:
        try:
            extent = self.reader.measure(clip)
        except (MediaError, DataError) as error:
            if self.on_error == "raise":
                raise
            self.skipped[clip.id] = str(error)
            return
        if extent < self.reader.least:
            units = "units" if self.reader.rate is None else f"units of 1/{self.reader.rate:g} s"
            self.skipped[clip.id] = f"It has {extent} {units}, the encoder needs {self.reader.least}."
            return
        self.clips.append(clip)
        self._extents.append(extent)

    def __getitem__(self, number: int) -> PretrainBatch:
        """Batch `number` of the run.

        Raises:
            MediaError: a damaged file, or with on_error="skip" a batch of nothing else.
            DataError: fewer clips in the batch than processes.
        """
        batch = self.share(number)
        if not batch.examples.ids:
            raise MediaError(f"No clip of batch {number} can be read; the first: {next(iter(batch.failed.values()))}")
        return batch

    def share(self, number: int, without: Collection[str] = ()) -> PretrainBatch:
        """Batch `number` of the run, which with on_error="skip" may be empty.

        Args:
            number: from 0.
            without: ids of clips that are known to be damaged: the others are dealt to the processes without them.

        Raises:
            MediaError: a damaged file, with on_error="raise".
            DataError: fewer clips in the batch than processes.
        """
        epoch, first = 0, 0
        while number >= first + len(self.plan(epoch)):
            first += len(self.plan(epoch))
            epoch += 1
        members = self.plan(epoch)[number - first]
        if len(members) < self.world_size:
            raise DataError(
                f"Batch {number} has {len(members)} clips for {self.world_size} processes, and none may be without: "
                "give larger batches (batch_size, batch_seconds), or use fewer processes."
            )
        items: list[Item] = []
        kept: list[int] = []
        failed: dict[str, str] = {}
        members = [index for index in members if self.clips[index].id not in without]
        for index in members[self.rank :: self.world_size]:
            try:
                items.append(self._read(index, epoch))
            except MediaError as error:
                if self.on_error == "raise":
                    raise
                failed[self.clips[index].id] = str(error)
                continue
            kept.append(index)
        examples = self._examples(items, kept, epoch) if items else Examples(Inputs(), epoch=epoch)
        return PretrainBatch(examples, number, epoch, failed)

    def plan(self, epoch: int) -> list[list[int]]:
        """Clips of each batch of an epoch, of all ranks."""
        while len(self._plans) <= epoch:
            self._plans.append(self._plan(len(self._plans)))
        return self._plans[epoch]

    def start(self, index: int, epoch: int) -> int:
        """First unit of the crop of a clip in an epoch."""
        places = (self._extents[index] - self._sizes[index]) // self.reader.step + 1
        generator = torch.Generator().manual_seed(self._clip_seed(index, epoch))
        return int(torch.randint(places, (), generator=generator)) * self.reader.step

    def _clip_seed(self, index: int, epoch: int) -> int:
        return mix(self.seed, epoch, _number_of(self.clips[index].id))

    def _read(self, index: int, epoch: int) -> Item:
        item = self._cut(index, epoch)
        if self.augment is None:
            return item
        if item.waveform is None:
            raise ConfigError("augment changes sound, and this encoder is trained on pictures: leave it out.")
        changed = self.augment(item.waveform, clip_generator(self._clip_seed(index, epoch), _AUGMENTATION))
        if changed.shape != item.waveform.shape:
            raise ConfigError(
                f"augment must keep the length of a clip, and made {len(item.waveform)} samples {len(changed)}: labels "
                "and pictures would no longer fit. Leave out changes of speed."
            )
        return replace(item, waveform=changed)

    def _cut(self, index: int, epoch: int) -> Item:
        clip, extent, size = self.clips[index], self._extents[index], self._sizes[index]
        first = self.start(index, epoch)
        if index in self._cache:
            return self.reader.cut(self._cache[index], first, size)
        if self._cached >= self.cache_bytes:
            return self.reader.load(clip, first, size)
        whole = self.reader.load(clip, 0, extent)
        if self._cached + whole.nbytes <= self.cache_bytes:
            self._cache[index] = whole
            self._cached += whole.nbytes
        return self.reader.cut(whole, first, size)

    def _examples(self, items: Sequence[Item], members: Sequence[int], epoch: int) -> Examples:
        inputs = self.reader.collate(items)
        crops = tuple(self.reader.first_sample(self.start(index, epoch)) for index in members)
        return Examples(
            inputs,
            ids=tuple(self.clips[index].id for index in members),
            labels={name: self._codes(name, members) for name in self.label_values},
            starts=crops if inputs.waveforms is not None else (),
            seeds=tuple(self._clip_seed(index, epoch) for index in members),
            epoch=epoch,
        )

    def _codes(self, name: str, members: Sequence[int]) -> Tensor:
        values = {value: code for code, value in enumerate(self.label_values[name])}
        return torch.tensor([values.get(self.clips[index].group(name) or "", -1) for index in members])

    def _plan(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, -1))
        order = torch.randperm(len(self.clips), generator=generator).tolist()
        if self.group_by is not None:
            batches = self._grouped(order, self.group_by, generator)
        else:
            batches = self._by_length(order) if len(set(self._sizes)) > 1 else self._evenly(order)
        shuffle = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[k] for k in shuffle]

    def _evenly(self, order: list[int]) -> list[list[int]]:
        """Batches whose sizes differ by one clip at most: a last one of a single clip would have no negatives."""
        limit = min(self.batch_size, max(1, self.batch_units // max(self._sizes[0], 1)))
        count = -(-len(order) // limit)
        return [order[len(order) * k // count : len(order) * (k + 1) // count] for k in range(count)]

    def _grouped(self, order: list[int], field: str, generator: torch.Generator) -> list[list[int]]:
        """Batches of whole groups; a value's clips are divided evenly, so that none is left by itself."""
        by_value: dict[str | None, list[int]] = {}
        for index in order:
            by_value.setdefault(self.clips[index].group(field), []).append(index)
        size = max(2, min(self.group_size, self.batch_size, self.batch_units // max(*self._sizes, 1)))
        groups = []
        for members in by_value.values():
            count = -(-len(members) // size)
            groups += [members[len(members) * k // count : len(members) * (k + 1) // count] for k in range(count)]
        batches: list[list[int]] = []
        total = 0
        for place in torch.randperm(len(groups), generator=generator).tolist():
            units = sum(self._sizes[index] for index in groups[place])
            full = not batches or total + units > self.batch_units
            if full or len(batches[-1]) + len(groups[place]) > self.batch_size:
                batches.append([])
                total = 0
            batches[-1] += groups[place]
            total += units
        return batches

    def _by_length(self, order: list[int]) -> list[list[int]]:
        """Batches of clips of similar length."""
        per_batch = min(max(1, self.batch_units * len(self._sizes) // sum(self._sizes)), self.batch_size)
        batches: list[list[int]] = []
        for begin in range(0, len(order), per_batch * _BUCKET):
            of_before = len(batches)
            current: list[int] = []
            total = 0
            for index in sorted(order[begin : begin + per_batch * _BUCKET], key=lambda k: (self._sizes[k], k)):
                full = total + self._sizes[index] > self.batch_units or len(current) == self.batch_size
                if current and full:
                    batches.append(current)
                    current, total = [], 0
                current.append(index)
                total += self._sizes[index]
            batches.append(current)
            if len(batches) - of_before > 1:
                self._fill_last(batches[-2], batches[-1])
        return batches

    def _fill_last(self, previous: list[int], last: list[int]) -> None:
        """Let the batch before the last share its clips: a single one would have no negatives."""
        total = sum(self._sizes[index] for index in last)
        while len(last) + 1 < len(previous) and total + self._sizes[previous[-1]] <= self.batch_units:
            total += self._sizes[previous[-1]]
            last.insert(0, previous.pop())


class _Onwards(Sampler[int]):
    """Numbers from a first one on; it has no length, so that a resumed run is not cut short."""

    def __init__(self, first: int, end: int | None) -> None:
        self.first, self.end = first, end

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first) if self.end is None else iter(range(self.first, self.end))


def pretrain_loader(
    batches: Dataset[PretrainBatch], first: int, end: int | None, num_workers: int = 0
) -> DataLoader[PretrainBatch]:
    """Batches `first` ... `end` - 1 of a run, or without end, in order, whatever the number of workers."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=_Onwards(first, end),
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
    )


def _limits(reader: ClipReader, batch_seconds: float | None, batch_size: int | None) -> tuple[int, int]:
    """Most units and most clips of a batch."""
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    if batch_size is None and (batch_seconds is None or reader.rate is None):
        raise ConfigError("Say how large a batch is: batch_size, or batch_seconds for sound and video.")
    huge = 2**62
    if batch_seconds is None or reader.rate is None:
        return huge, batch_size or huge
    units = int(batch_seconds * reader.rate + 1e-6)
    if units < (reader.most or reader.least):
        raise ConfigError(
            f"A batch of {batch_seconds} s cannot hold a clip of {(reader.most or reader.least) / reader.rate:g} s: "
            "raise batch_seconds, or crop to less (max_seconds, seconds or num_frames)."
        )
    return units, batch_size or huge


def _number_of(name: str) -> int:
    """A number that belongs to a clip's id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
