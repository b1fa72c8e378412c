"""Features of clips as a dataset for training: from a store, as statistics of a clip or as frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.features.store import FeatureStore
from mmssl.types import Layers


class ClipFeatures(Dataset[tuple[Layers, Tensor]]):
    """Items are (layers of one clip, target).

    With `pooled`, each layer is one row (1, W_k): the mean, or for "mean_std" the mean and standard deviation side by
    side; all rows are held in memory. Otherwise frames (T_k, D_k) are read from the store when asked for.

    Args:
        store: folder of a feature store.
        ids: of the clips.
        targets: id -> class index or value.
        stream: of the upstream.
        statistics: "frames", "mean" or "mean_std".
        pooled: give statistics instead of frames.
    """

    def __init__(
        self,
        store: Path,
        ids: Sequence[str],
        targets: Mapping[str, int | float],
        stream: str = "audio",
        statistics: str = "frames",
        pooled: bool = True,
    ) -> None:
        self.store = FeatureStore(store)
        self.ids = list(ids)
        self.stream, self.statistics, self.pooled = stream, statistics, pooled
        values = [targets[clip] for clip in ids]
        whole = all(isinstance(value, int) for value in values)
        self.targets = torch.tensor(values, dtype=torch.int64 if whole else torch.float32)
        self._rows = [self._statistics(clip) for clip in ids] if pooled else []

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Layers, Tensor]:
        target = self.targets[index]
        if self.pooled:
            return self._rows[index], target
        return self.store.read(self.ids[index], self.stream), target

    def _statistics(self, clip: str) -> Layers:
        mean = self.store.pooled(clip, self.stream, "mean")
        if self.statistics != "mean_std":
            return mean
        std = self.store.pooled(clip, self.stream, "std")
        rows = tuple(torch.cat(pair, -1) for pair in zip(mean.hidden_states, std.hidden_states, strict=True))
        return Layers(rows, mean.lengths)

    def moments(self) -> tuple[list[Tensor], list[Tensor]]:
        """Mean and standard deviation (W_k,) of each layer's dimensions over these clips, for standardisation.

        With "mean" and "mean_std" over the clips' statistics; with "frames" over frames, each clip counting the same.
        """
        if self.statistics != "frames":
            layers = zip(*(row.hidden_states for row in self._rows), strict=True)
            stacked = [torch.cat(rows).double() for rows in layers]
            return [s.mean(0).float() for s in stacked], [s.std(0, correction=0).float() for s in stacked]
        kept = [
            [self.store.pooled(clip, self.stream, stat).hidden_states for clip in self.ids] for stat in ("mean", "std")
        ]
        means, stds = [], []
        for mean_rows, std_rows in zip(zip(*kept[0], strict=True), zip(*kept[1], strict=True), strict=True):
            mean, std = torch.cat(mean_rows).double(), torch.cat(std_rows).double()
            centre = mean.mean(0)
            # law of total variance: within clips, plus between their means
            variance = std.square().mean(0) + (mean - centre).square().mean(0)
            means.append(centre.float())
            stds.append(variance.sqrt().float())
        return means, stds
