from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmssl.probing.data import Part, ProbeData
from mmssl.training.batches import TensorBatches
from mmssl.types import Layers


def make_data(
    widths: tuple[int, ...] = (8, 8, 8), clips: int = 120, values: bool = False, good: int = 1, seed: int = 0
) -> ProbeData:
    """A corpus whose layer `good` tells the classes apart (or holds the value); the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % 3
    rows = [torch.randn(clips, width, generator=generator) for width in widths]
    if values:
        targets = rows[good] @ torch.arange(1.0, widths[good] + 1) + 5
    else:
        rows[good] = rows[good] + 4 * torch.eye(widths[good])[labels]
        targets = labels
    ones = (torch.ones(clips, dtype=torch.int64),) * len(widths)
    batches = TensorBatches(Layers(tuple(r[:, None] for r in rows), ones), targets)
    ids = tuple(f"c{k:03d}" for k in range(clips))
    return ProbeData(ids, batches, () if values else ("a", "b", "c"), tuple(range(len(widths))))


def make_parts(clips: int = 120) -> list[Part]:
    index = torch.arange(clips)
    return [
        Part("one", index[index % 4 < 2], index[index % 4 == 2], index[index % 4 == 3]),
        Part("two", index[index % 4 > 1], index[index % 4 == 1], index[index % 4 == 0]),
    ]


@pytest.fixture
def data() -> ProbeData:
    return make_data()


@pytest.fixture
def parts() -> list[Part]:
    return make_parts()


@pytest.fixture
def corpus() -> Callable[..., ProbeData]:
    return make_data
