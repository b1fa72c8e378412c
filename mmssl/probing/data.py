"""Pooled features and labels of a corpus in memory, as every protocol takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmssl.data.folds import Fold
from mmssl.errors import ConfigError, DataError, did_you_mean
from mmssl.features.store import FeatureStore
from mmssl.training.batches import TensorBatches
from mmssl.types import Clip, Layers

STATISTICS = ("mean", "mean_std")


@dataclass(frozen=True)
class Part:
    """A fold as indices into the clips.

    Attributes:
        name: of the fold.
        train, dev, test: (n,) int64.
    """

    name: str
    train: Tensor
    dev: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Features and labels of a corpus.

    Attributes:
        ids: of the clips.
        batches: layers (N, 1, W) and targets (N,): class indices, or values.
        classes: names in the order of the indices; empty for values.
        numbers: which layers of the upstream these are.
    """

    ids: tuple[str, ...]
    batches: TensorBatches
    classes: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width W of each layer."""
        return self.batches.layers.hidden_sizes

    @property
    def truth(self) -> np.ndarray:
        """(N,) targets."""
        return self.batches.targets.numpy()

    def rows(self, layer: int) -> Tensor:
        """(N, W) features of one layer, counted among those that are here."""
        return self.batches.layers.hidden_states[layer][:, 0]

    def moments(self, clips: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Mean and (population) standard deviation (W,) of every layer over some clips, for standardisation."""
        chosen = [self.rows(k)[clips].double() for k in range(len(self.widths))]
        return [c.mean(0).float() for c in chosen], [c.std(0, correction=0).float() for c in chosen]

    def parts(self, folds: Sequence[Fold]) -> list[Part]:
        """Folds as indices; clips that have no features are left out.

        Raises:
            DataError: nothing is left of a part.
        """
        return parts_of(self.ids, folds)


def parts_of(ids: Sequence[str], folds: Sequence[Fold]) -> list[Part]:
    """Folds as indices into `ids`; clips that are not among them are left out.

    Raises:
        DataError: nothing is left of a part.
    """
    place = {clip: k for k, clip in enumerate(ids)}
    found = []
    for fold in folds:
        three = {
            name: torch.tensor([place[c] for c in getattr(fold, name) if c in place], dtype=torch.int64)
            for name in ("train", "dev", "test")
        }
        for name, index in three.items():
            if not len(index):
                raise DataError(
                    f"Fold {fold.name!r} has no {name} clip with features and a label: check that folds, manifest "
                    f"and store belong together."
                )
        found.append(Part(fold.name, **three))
    return found


def kept_clips(stores: Sequence[FeatureStore], clips: Sequence[Clip], label: str) -> list[Clip]:
    """The clips that all stores hold.

    Raises:
        DataError: there is none, or one has no such label.
    """
    kept = [clip for clip in clips if all(clip.id in store for store in stores)]
    if not kept:
        raise DataError(f"None of the {len(clips)} clips is in {', '.join(str(s.folder) for s in stores)}.")
    missing = [clip.id for clip in kept if clip.labels.get(label) is None]
    if missing:
        names = sorted({name for clip in kept for name in clip.labels})
        raise DataError(
            f"{len(missing)} clips have no label {label!r}, among them {missing[0]!r}.{did_you_mean(label, names)} "
            f"Labels: {', '.join(names) or 'none'}."
        )
    return kept


def targets_of(clips: Sequence[Clip], label: str, values: bool) -> tuple[Tensor, tuple[str, ...]]:
    """Targets (N,), class indices or values, and the class names in the order of the indices (none for values).

    Raises:
        DataError: a value is no number.
    """
    if not values:
        classes = tuple(sorted({str(clip.labels[label]) for clip in clips}))
        index = {name: k for k, name in enumerate(classes)}
        return torch.tensor([index[str(clip.labels[label])] for clip in clips]), classes
    try:
        return torch.tensor([float(clip.labels[label]) for clip in clips], dtype=torch.float32), ()
    except (TypeError, ValueError):
        raise DataError(
            f"The label {label!r} is to be a number, but that of {clips[0].id!r} is {clips[0].labels[label]!r}: leave "
            "--values out (values: false in a suite), or name another label."
        ) from None


def load_data(
    stores: FeatureStore | Sequence[FeatureStore],
    clips: Sequence[Clip],
    label: str,
    *,
    stream: str = "audio",
    statistics: str = "mean_std",
    layers: Sequence[int] | None = None,
    values: bool = False,
) -> ProbeData:
    """Read what the stores hold of these clips.

    Several stores are fused: each upstream gives one vector per clip, the mean of its (chosen) layers after each is
    scaled to unit norm, and the vectors stand side by side as one layer.

    Args:
        stores: one or several.
        clips: with the label; clips that a store lacks are left out.
        label: name of the label.
        stream: of the upstreams.
        statistics: over time: "mean", or "mean_std" for mean and standard deviation side by side.
        layers: numbers of layers, negative ones from the end; None for all.
        values: the label is a number to predict, not a class.

    Raises:
        ConfigError: unknown statistics.
        DataError: no clip is left, or one has no such label.
        StoreError: a store lacks the statistics, stream or layers.
    """
    if statistics not in STATISTICS:
        raise ConfigError(f"statistics is {' or '.join(map(repr, STATISTICS))}, got {statistics!r}.")
    every = [stores] if isinstance(stores, FeatureStore) else list(stores)
    kept = kept_clips(every, clips, label)
    tables = [_tables(store, kept, stream, statistics, layers) for store in every]
    if len(tables) == 1:
        hidden = tables[0]
        numbers = tuple(int(k) for k in _numbers(every[0], stream, layers))
    else:
        scaled = [
            torch.stack([torch.nn.functional.normalize(t, dim=1) for t in table]).mean(0)
            if len({t.shape[1] for t in table}) == 1
            else torch.cat([torch.nn.functional.normalize(t, dim=1) for t in table], 1)
            for table in tables
        ]
        hidden, numbers = [torch.cat(scaled, 1)], (0,)
    targets, classes = targets_of(kept, label, values)
    ones = torch.ones(len(kept), dtype=torch.int64)
    batches = TensorBatches(Layers(tuple(t[:, None] for t in hidden), (ones,) * len(hidden)), targets)
    return ProbeData(tuple(clip.id for clip in kept), batches, classes, numbers)


def subset(part: Part, truth: np.ndarray, fraction: float, seed: int, classes: bool = True) -> Part:
    """A fold with a share of its training clips, drawn class by class so that no class is lost.

    A larger share of the same seed holds the smaller one. Development and test parts stay as they are.

    Args:
        part: the fold.
        truth: (N,) targets of all clips.
        fraction: of the training clips of every class, rounded up, in (0, 1].
        seed: of the draw.
        classes: whether targets are classes; values are drawn without strata.

    Raises:
        ConfigError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"A label fraction lies above 0 and is at most 1, got {fraction}.")
    if fraction == 1:
        return part
    order = part.train.numpy()[np.random.default_rng(seed).permutation(len(part.train))]
    strata = [order[truth[order] == c] for c in np.unique(truth[order])] if classes else [order]
    chosen = np.concatenate([s[: max(1, int(np.ceil(fraction * len(s) - 1e-9)))] for s in strata])
    return Part(part.name, torch.from_numpy(np.sort(chosen)), part.dev, part.test)


def _numbers(store: FeatureStore, stream: str, layers: Sequence[int] | None) -> list[int]:
    count = store.streams[stream]["num_layers"]
    return list(store.streams[stream]["layers"]) if layers is None else [k % count for k in layers]


def _tables(
    store: FeatureStore, clips: Sequence[Clip], stream: str, statistics: str, layers: Sequence[int] | None
) -> list[Tensor]:
    stats = statistics.split("_")
    tables: list[Tensor] = []
    for place, clip in enumerate(clips):
        parts = [store.pooled(clip.id, stream, stat, layers).hidden_states for stat in stats]
        rows = [torch.cat(pair, -1)[0] for pair in zip(*parts, strict=True)]
        # filled in place: rows kept until the end would take the memory twice
        tables = tables or [row.new_empty(len(clips), len(row)) for row in rows]
        for table, row in zip(tables, rows, strict=True):
            table[place] = row
    return tables
