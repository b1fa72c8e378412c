"""Batches of (layers, target) items for training and evaluation.

Pooled features, one frame per layer and clip, are small: `TensorBatches` holds a whole split as one tensor per layer
and slices batches out of it. Sequences of frames go through a DataLoader that pads each batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmssl.data.collate import collate_layers
from mmssl.data.streams import Streams, collate_streams
from mmssl.errors import InputError
from mmssl.types import Layers

Batch = tuple[Layers | Streams, Tensor]


class TensorBatches:
    """A split of pooled clips as tensors in memory.

    Args:
        layers: (N, 1, D_k) per layer, lengths all 1.
        targets: (N, ...).

    Raises:
        InputError: there is no clip, a layer has more than one frame per clip, or numbers of clips differ.
    """

    def __init__(self, layers: Layers, targets: Tensor) -> None:
        count = len(targets)
        if count == 0 or any(h.shape[:2] != (count, 1) for h in layers.hidden_states):
            raise InputError(
                f"TensorBatches takes N >= 1 clips of one frame per layer and N targets; got {count} targets "
                f"and layers {[tuple(h.shape) for h in layers.hidden_states]}."
            )
        self.targets = targets
        self.layers = layers
        self._stacked: Tensor | None = None
        if len(set(layers.hidden_sizes)) == 1:
            # one tensor makes one gather per batch instead of one per layer; the layers become views of it
            self._stacked = torch.cat(layers.hidden_states, dim=1)
            self.layers = Layers(self._stacked.split(1, dim=1), layers.lengths)

    @classmethod
    def of(cls, dataset: Dataset[Any] | TensorBatches) -> TensorBatches | None:
        """Read a dataset into memory, once; None where a clip has several streams or a layer more than one frame.

        Raises:
            InputError: the dataset is empty or its clips do not fit each other.
        """
        if isinstance(dataset, TensorBatches):
            return dataset
        items = []
        for index in range(_size(dataset)):
            layers, target = dataset[index]
            if isinstance(layers, Mapping) or any(
                len(h) != 1 or int(n) != 1 for h, n in zip(layers.hidden_states, layers.lengths, strict=True)
            ):
                return None
            items.append((layers, target))
        return cls(collate_layers([layers for layers, _ in items]), _stacked_targets(items))

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> TensorBatches:
        """The same split on a device."""
        return TensorBatches(self.layers.to(device), self.targets.to(device))

    def batch(self, clips: Tensor) -> tuple[Layers, Tensor]:
        """The clips with these indices (B,)."""
        if self._stacked is None:
            hidden = tuple(h[clips] for h in self.layers.hidden_states)
        else:
            hidden = self._stacked[clips].split(1, dim=1)
        lengths = torch.ones(len(clips), dtype=torch.int64, device=hidden[0].device)
        return Layers(hidden, (lengths,) * len(hidden)), self.targets[clips]


class StepStream(IterableDataset):
    """Exactly `steps` training batches: pass after pass over a split, each in a fresh random order.

    Every clip is seen once per pass; a pass's last batch holds what is left. The order depends on the seed alone.

    Args:
        dataset: items (Layers of one clip, target), or `TensorBatches`.
        batch_size: clips per batch.
        steps: number of batches.
        seed: of the order.
    """

    def __init__(self, dataset: Dataset[Any] | TensorBatches, batch_size: int, steps: int, seed: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        left = self.steps
        while left:
            order = torch.randperm(_size(self.dataset), generator=generator)
            for clips in order.split(self.batch_size)[:left]:
                left -= 1
                yield _batch(self.dataset, clips)


class PassOnce(IterableDataset):
    """All clips of a split in their order, in batches.

    Args:
        dataset: items (Layers of one clip, target), or `TensorBatches`.
        batch_size: clips per batch; a split in memory comes as one batch.
    """

    def __init__(self, dataset: Dataset[Any] | TensorBatches, batch_size: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = _size(dataset) if isinstance(dataset, TensorBatches) else batch_size

    def __len__(self) -> int:
        return math.ceil(_size(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for clips in torch.arange(_size(self.dataset)).split(self.batch_size):
            yield _batch(self.dataset, clips)


def loader(batches: StepStream | PassOnce) -> DataLoader[Batch]:
    """A DataLoader over ready batches that draws nothing from the global generator."""
    return DataLoader(batches, batch_size=None, generator=torch.Generator().manual_seed(0))


def collate(items: Sequence[tuple[Layers | Mapping[str, Layers], Any]]) -> Batch:
    """Batch of (layers of one clip, or stream -> layers, target) items: padded layers and (B, ...) targets."""
    targets = _stacked_targets(items)
    streams = [layers for layers, _ in items if isinstance(layers, Mapping)]
    if streams:
        return collate_streams(streams), targets
    return collate_layers([layers for layers, _ in items if isinstance(layers, Layers)]), targets


def _stacked_targets(items: Sequence[tuple[Any, Any]]) -> Tensor:
    targets = torch.stack([torch.as_tensor(target) for _, target in items])
    return targets.float() if targets.is_floating_point() else targets


def _batch(dataset: Dataset[Any] | TensorBatches, clips: Tensor) -> Batch:
    if isinstance(dataset, TensorBatches):
        return dataset.batch(clips.to(dataset.targets.device))
    return collate([dataset[index] for index in clips.tolist()])


def _size(dataset: Dataset[Any] | TensorBatches) -> int:
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise InputError("A split without clips was given. Check the folds: each of train, dev and test needs clips.")
    return size
