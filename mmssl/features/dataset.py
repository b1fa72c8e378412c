"""A feature store as a torch Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from mmssl.errors import DataError
from mmssl.features.store import FeatureStore
from mmssl.types import Layers


class FeatureDataset(Dataset[tuple[Layers, Any]]):
    """Items `(layers of one clip, target)`: frames, or one pooled frame per clip.

    Args:
        store: where the features are; read lazily, item by item.
        clip_ids: which clips, in this order.
        targets: one per clip, of any type; None gives None with every clip.
        stream: of the upstream.
        layers: numbers of the layers, as the upstream counts them; None gives all kept.
        stat: "mean", "std" or "max" for one pooled frame per clip; None for all frames.

    Raises:
        DataError: there are not as many targets as clips, or a clip is not in the store.
    """

    def __init__(
        self,
        store: FeatureStore,
        clip_ids: Sequence[str],
        targets: Sequence[Any] | None = None,
        *,
        stream: str = "audio",
        layers: Sequence[int] | None = None,
        stat: str | None = None,
    ):
        if targets is not None and len(targets) != len(clip_ids):
            raise DataError(f"{len(clip_ids)} clips need as many targets, got {len(targets)}.")
        missing = [clip_id for clip_id in clip_ids if clip_id not in store]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(clip_ids)} clips are not in {store.location}, for example {missing[0]!r}: "
                f"extract them, or leave out what the extraction skipped."
            )
        self.store, self.clip_ids, self.targets = store, list(clip_ids), targets
        self.stream, self.layers, self.stat = stream, layers, stat

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> tuple[Layers, Any]:
        clip_id = self.clip_ids[index]
        if self.stat is None:
            features = self.store.read(clip_id, self.stream, self.layers)
        else:
            features = self.store.pooled(clip_id, self.stream, self.stat, self.layers)
        return features, None if self.targets is None else self.targets[index]
