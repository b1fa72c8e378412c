"""Stored features of clips with several streams, as training and prediction take them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data.streams import Streams, collate_streams
from mmssl.features.store import FeatureStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO
from mmssl.training.batches import TensorBatches
from mmssl.types import Layers, StreamSpec

IN_MEMORY = 4 * 2**30
"""Bytes of features up to which all clips of a split are held in memory; of larger splits clips are read as needed."""
# clips whose statistics are in memory together
_AT_ONCE = 8192
_ORDER = {BOTH: (BOTH, AUDIO, VIDEO), AUDIO: (AUDIO, BOTH), VIDEO: (VIDEO, BOTH)}


class AvStore:
    """The stores of one encoder (`mmssl.stages.av_extract`), asked by what of a clip is given.

    Args:
        folder: of the recipe.
        record: of the encoder in av_features.json.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.stores = {view: FeatureStore(folder / path) for view, path in record["stores"].items()}
        self.separate = bool(record["separate"])
        self.statistics = str(record["statistics"])

    def specs(self, view: str) -> dict[str, StreamSpec]:
        """Streams of a view, as their features are handed out: one frame of statistics, or frames."""
        found: dict[str, StreamSpec] = {}
        for place in _ORDER[view]:
            if place not in self.stores:
                continue
            for name, kept in self.stores[place].streams.items():
                if self._counts(name, view, place) and name not in found:
                    found[name] = self._spec(kept)
        return found

    def ids(self, view: str) -> set[str]:
        """Clips that have something in a view."""
        places = [place for place in _ORDER[view] if place in self.stores and self._streams(view, place)]
        return {clip for place in places for clip in self.stores[place].ids}

    def read(self, clip: str, view: str, streams: Collection[str] | None = None) -> dict[str, Layers]:
        """Streams of one clip, only these where `streams` names any: layers (T_k, D_k), T_k = 1 for statistics."""
        store, names = self._of(clip, view)
        return {name: self._layers(store, clip, name) for name in names if streams is None or name in streams}

    def sizes(self, clip: str, view: str) -> dict[str, int]:
        """Stream -> bytes of what `read` gives, without reading it."""
        store, names = self._of(clip, view)
        found = {}
        for name in names:
            widths = self._spec(store.streams[name]).hidden_sizes
            frames = store.entry(clip).lengths[name] if self.statistics == "frames" else 1
            counts = frames if isinstance(frames, list) else [frames] * len(widths)
            found[name] = 4 * sum(width * count for width, count in zip(widths, counts, strict=True))
        return found

    def moments(self, ids: Sequence[str], view: str) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Stream -> mean and standard deviation (W_k,) of each layer over clips, as `ClipFeatures.moments`."""
        found = {}
        for name in self.specs(view):
            total: _Moments | None = None
            for start in range(0, len(ids), _AT_ONCE):
                part = ids[start : start + _AT_ONCE]
                rows = [layers for clip in part if (layers := self._statistics(clip, view, name))]
                if rows:
                    total = _Moments.of(rows) if total is None else total.joined(_Moments.of(rows))
            if total is not None:
                found[name] = ([c.float() for c in total.centres], [v.sqrt().float() for v in total.variances])
        return found

    def _statistics(self, clip: str, view: str, name: str) -> tuple[list[Tensor], list[Tensor]] | None:
        """Of one clip: what is handed out per layer, and the standard deviation of that within the clip."""
        for place in _ORDER[view]:
            store = self.stores.get(place)
            if store is None or clip not in store or name not in self._streams(view, place):
                continue
            if self.statistics == "frames":
                return (
                    [row[0] for row in store.pooled(clip, name, "mean").hidden_states],
                    [row[0] for row in store.pooled(clip, name, "std").hidden_states],
                )
            rows = [row[0] for row in self._layers(store, clip, name).hidden_states]
            return rows, [torch.zeros_like(row) for row in rows]
        return None

    def _of(self, clip: str, view: str) -> tuple[FeatureStore, list[str]]:
        """The store that a clip is read from in a view, and the streams there."""
        for place in _ORDER[view]:
            store = self.stores.get(place)
            if store is not None and clip in store and (names := self._streams(view, place)):
                return store, names
        raise KeyError(clip)

    def _streams(self, view: str, place: str) -> list[str]:
        return [name for name in self.stores[place].streams if self._counts(name, view, place)]

    def _counts(self, name: str, view: str, place: str) -> bool:
        """Whether a stream of a store is seen in a view: of both inputs, only what comes of the view's own."""
        if view == BOTH or place == view:
            return True
        return not self.separate and name == view

    def _spec(self, kept: Mapping[str, Any]) -> StreamSpec:
        sizes = tuple(kept["hidden_sizes"])
        if self.statistics == "frames":
            return StreamSpec(sizes, tuple(kept["hop_lengths"]), kept["tokens_per_frame"])
        times = 2 if self.statistics == "mean_std" else 1
        return StreamSpec(tuple(times * size for size in sizes), (1,) * len(sizes))

    def _layers(self, store: FeatureStore, clip: str, name: str) -> Layers:
        if self.statistics == "frames":
            return store.read(clip, name)
        mean = store.pooled(clip, name, "mean")
        if self.statistics == "mean":
            return mean
        std = store.pooled(clip, name, "std")
        rows = tuple(torch.cat(pair, -1) for pair in zip(mean.hidden_states, std.hidden_states, strict=True))
        return Layers(rows, mean.lengths)


@dataclass(frozen=True)
class _Moments:
    """Mean and variance of each layer over some clips, in float64.

    Attributes:
        count: of the clips.
        centres, variances: (W_k,) of each layer.
    """

    count: int
    centres: list[Tensor]
    variances: list[Tensor]

    @classmethod
    def of(cls, rows: Sequence[tuple[list[Tensor], list[Tensor]]]) -> _Moments:
        """Of clips: the mean of each layer, and the standard deviation within the clip."""
        centres, variances = [], []
        for k in range(len(rows[0][0])):
            mean = torch.stack([row[0][k] for row in rows]).double()
            within = torch.stack([row[1][k] for row in rows]).double().square().mean(0)
            centres.append(mean.mean(0))
            # law of total variance: within clips, plus between their means
            variances.append(mean.var(0, correction=0) + within)
        return cls(len(rows), centres, variances)

    def joined(self, other: _Moments) -> _Moments:
        """Of both groups of clips (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        one, two = self.count / count, other.count / count
        gaps = [b - a for a, b in zip(self.centres, other.centres, strict=True)]
        centres = [a + two * gap for a, gap in zip(self.centres, gaps, strict=True)]
        pairs = zip(self.variances, other.variances, gaps, strict=True)
        return _Moments(count, centres, [one * a + two * b + one * two * gap.square() for a, b, gap in pairs])


class AvClips(Dataset[tuple[dict[str, Layers], Tensor]]):
    """Items are (stream -> layers of one clip, target); a clip may lack streams.

    Features of all clips are held in memory where they take no more than `IN_MEMORY`. Otherwise each clip is read from
    the store whenever it is asked for: the numbers are the same, and no more than a batch is in memory.

    Args:
        store: of an encoder.
        ids: of the clips.
        targets: id -> class index or value, or indices of all labels.
        view: what of a clip is given.
        only: streams to keep, for a model that is to meet less than it was trained with; None for all.
        num_labels: C, where clips have any number of labels: then targets are rows (C,) of zeros and ones.
    """

    def __init__(
        self,
        store: AvStore,
        ids: Sequence[str],
        targets: Mapping[str, Any],
        view: str = BOTH,
        only: Sequence[str] | None = None,
        num_labels: int | None = None,
    ) -> None:
        self.store, self.view, self.only = store, view, only
        present = store.ids(view)
        rows = [(clip, store.sizes(clip, view)) for clip in ids if clip in present]
        sizes = {clip: [size for name, size in own.items() if only is None or name in only] for clip, own in rows}
        self.ids = [clip for clip, _ in rows if sizes[clip]]
        fits = sum(map(sum, sizes.values())) <= IN_MEMORY
        self.items = [self._read(clip) for clip in self.ids] if fits else None
        values = [targets[clip] for clip in self.ids]
        if num_labels is not None:
            self.targets = torch.zeros(len(values), num_labels)
            for row, own in zip(self.targets, values, strict=True):
                row[list(own)] = 1
            return
        whole = all(isinstance(value, int) for value in values)
        self.targets = torch.tensor(values, dtype=torch.int64 if whole else torch.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, Layers], Tensor]:
        found = self._read(self.ids[index]) if self.items is None else self.items[index]
        return found, self.targets[index]

    def _read(self, clip: str) -> dict[str, Layers]:
        return self.store.read(clip, self.view, self.only)

    def batches(self) -> Dataset[Any] | TensorBatches:
        """The same clips as one tensor for each layer, where each has one frame at most and all are in memory."""
        pooled = self.store.statistics != "frames"
        return StreamBatches.of_clips(self.items, self.targets) if pooled and self.items else self


class StreamBatches(TensorBatches):
    """A split of pooled clips with several streams in memory.

    Args:
        streams: stream -> (N, 1, D_k) per layer; lengths are 1, or 0 in clips that lack the stream.
        targets: (N, ...).
    """

    def __init__(self, streams: Mapping[str, Layers], targets: Tensor) -> None:
        self.streams = Streams(streams)
        self.targets = targets

    @classmethod
    def of_clips(cls, items: Sequence[Mapping[str, Layers]], targets: Tensor) -> StreamBatches:
        """Of single clips, as `mmssl.data.streams.collate_streams` takes them."""
        return cls(collate_streams(items), targets)

    def to(self, device: torch.device | str) -> StreamBatches:
        """The same split on a device."""
        return StreamBatches(self.streams.to(device), self.targets.to(device))

    def batch(self, clips: Tensor) -> Any:
        """The clips with these indices (B,): streams and targets."""
        chosen = {
            name: Layers(tuple(h[clips] for h in layers.hidden_states), tuple(n[clips] for n in layers.lengths))
            for name, layers in self.streams.items()
        }
        return Streams(chosen), self.targets[clips]
