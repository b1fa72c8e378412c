"""Frames and labels of a corpus, read from stores when they are asked for: for heads that need the course of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data.folds import Fold
from mmssl.errors import StoreError
from mmssl.features.store import FeatureStore
from mmssl.probing.data import Part, kept_clips, parts_of, targets_of
from mmssl.types import Clip, Layers, StreamSpec


@dataclass(frozen=True, eq=False)
class FrameData:
    """A corpus whose frames stay on disk, mapped into memory clip by clip.

    Attributes:
        ids: of the clips.
        stores: that hold them; the layers of several stand side by side.
        stream: of the upstreams.
        layers: numbers of the layers of a store that are read; None for all it keeps.
        targets: (N,) class indices or values.
        classes: names in the order of the indices; empty for values.
        numbers: which layers of the upstream these are.
    """

    ids: tuple[str, ...]
    stores: tuple[FeatureStore, ...]
    stream: str
    layers: tuple[int, ...] | None
    targets: Tensor
    classes: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def truth(self) -> np.ndarray:
        """(N,) targets."""
        return self.targets.numpy()

    @property
    def spec(self) -> StreamSpec:
        """Widths and hops of the layers, store after store."""
        return frame_spec(self.stores, self.stream, self.layers)

    def read(self, clip: str) -> Layers:
        """Frames of one clip: (T_k, D_k) per layer, and lengths."""
        found = [store.read(clip, self.stream, self.layers) for store in self.stores]
        return Layers(
            tuple(h for one in found for h in one.hidden_states), tuple(n for one in found for n in one.lengths)
        )

    def parts(self, folds: Sequence[Fold]) -> list[Part]:
        """Folds as indices; clips that have no features are left out.

        Raises:
            DataError: nothing is left of a part.
        """
        return parts_of(self.ids, folds)

    def moments(self, clips: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Mean and standard deviation (D_k,) of every layer's frames, every clip counting the same.

        They come from the means and deviations that the store keeps of each clip, where it does, and otherwise from
        the frames, one clip at a time.
        """
        first: list[Tensor] = []
        second: list[Tensor] = []
        for clip in clips.tolist():
            for k, (mean, square) in enumerate(self._clip_moments(self.ids[clip])):
                if len(first) <= k:
                    first.append(torch.zeros_like(mean))
                    second.append(torch.zeros_like(mean))
                first[k] += mean / len(clips)
                second[k] += square / len(clips)
        stds = [(s - m.square()).clamp(min=0).sqrt().float() for m, s in zip(first, second, strict=True)]
        return [m.float() for m in first], stds

    def _clip_moments(self, clip: str) -> list[tuple[Tensor, Tensor]]:
        """Mean and mean square of each layer, in float64."""
        if all({"mean", "std"} <= set(store.stats) for store in self.stores):
            found = []
            for store in self.stores:
                pair = [store.pooled(clip, self.stream, stat, self.layers).hidden_states for stat in ("mean", "std")]
                found += [(m[0].double(), s[0].double()) for m, s in zip(*pair, strict=True)]
            return [(mean, mean.square() + std.square()) for mean, std in found]
        frames = [h.double() for h in self.read(clip).hidden_states]
        return [(h.mean(0), h.square().mean(0)) for h in frames]


class FrameSplit(Dataset[tuple[Layers, Tensor]]):
    """Items (layers of one clip, target) of some clips of a corpus.

    Args:
        data: the corpus.
        clips: (n,) indices.
    """

    def __init__(self, data: FrameData, clips: Tensor) -> None:
        self.data, self.clips = data, clips.tolist()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Layers, Tensor]:
        clip = self.clips[index]
        return self.data.read(self.data.ids[clip]), self.data.targets[clip]


def frame_spec(stores: Sequence[FeatureStore], stream: str, layers: Sequence[int] | None) -> StreamSpec:
    """Widths and hops of the chosen layers of stores, side by side.

    Raises:
        StoreError: a store lacks the stream or a layer, or the stores' sampling rates differ.
    """
    sizes: list[int] = []
    hops: list[int] = []
    for store in stores:
        if stream not in store.streams:
            raise StoreError(f"{store.folder} has no stream {stream!r}; it has {', '.join(store.streams)}.")
        kept = store.streams[stream]
        count = kept["num_layers"]
        numbers = list(kept["layers"]) if layers is None else [k + count if k < 0 else k for k in layers]
        missing = [k for k in numbers if k not in kept["layers"]]
        if missing:
            raise StoreError(f"{store.folder} has no layer {missing[0]} of {stream!r}; it has {kept['layers']}.")
        places = [kept["layers"].index(k) for k in numbers]
        sizes += [kept["hidden_sizes"][k] for k in places]
        hops += [kept["hop_lengths"][k] for k in places]
    rates = {store.sample_rate for store in stores}
    if len(rates) > 1:
        raise StoreError(
            f"The upstreams take waveforms of different rates ({', '.join(map(str, rates))} Hz), so that their frames "
            "do not share a clock: fuse pooled features instead (--protocol linear)."
        )
    return StreamSpec(tuple(sizes), tuple(hops))


def load_frames(
    stores: FeatureStore | Sequence[FeatureStore],
    clips: Sequence[Clip],
    label: str,
    *,
    stream: str = "audio",
    layers: Sequence[int] | None = None,
    values: bool = False,
) -> FrameData:
    """What the stores hold of these clips; no frame is read yet.

    Args:
        stores: one, or several whose layers are put side by side.
        clips: with the label; clips that a store lacks are left out.
        label: name of the label.
        stream: of the upstreams.
        layers: numbers of layers, negative ones from the end; None for all.
        values: the label is a number to predict, not a class.

    Raises:
        DataError: no clip is left, or one has no such label.
        StoreError: a store holds pooled features only, or lacks the stream or a layer.
    """
    every = (stores,) if isinstance(stores, FeatureStore) else tuple(stores)
    require_frames(every)
    kept = kept_clips(every, clips, label)
    targets, classes = targets_of(kept, label, values)
    frame_spec(every, stream, layers)
    info = every[0].streams[stream]
    numbers = tuple(info["layers"]) if layers is None else tuple(k % info["num_layers"] for k in layers)
    chosen = None if layers is None else tuple(layers)
    return FrameData(tuple(clip.id for clip in kept), every, stream, chosen, targets, classes, numbers)


def require_frames(stores: Sequence[FeatureStore]) -> None:
    """Refuse stores without frames.

    Raises:
        StoreError: one holds pooled features only; the message says which command keeps frames.
    """
    for store in stores:
        if not store.has_frames:
            raise StoreError(
                f"{store.folder} holds pooled features only ({', '.join(store.stats)}), and this head needs every "
                "frame, because it is not affine between the layers and the mean over time. Extract again, into "
                "another folder and without --no-frames: mmssl extract MANIFEST FOLDER --upstream NAME. Or take a "
                "head for which pooled features are enough: --head linear with --interface weighted_sum, layer, "
                "last_layer or concat."
            )
