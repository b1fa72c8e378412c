"""Cuts of clips at known offsets, for synchrony: media is cut before any encoder sees it.

The pictures of a clip's cuts are always those of its middle, and the sound begins `offset` frames earlier, which makes
it come that much late. Nothing is rolled or padded. Every cut is encoded by itself, the sound without the pictures and
the other way round, so that a frame's place in its cut is the same at every offset: positions, context and the edges
of a clip say nothing about it. (Frames of whole clips that are cut afterwards would: an encoder may write into them
where in the clip they were.)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmssl.data.folds import Fold
from mmssl.errors import ConfigError, DataError
from mmssl.features.store import FeatureStore
from mmssl.interfaces.aligned import AlignedStreams
from mmssl.interfaces.joined_frames import chosen_layers
from mmssl.lengths import seconds_to_samples
from mmssl.random import mix
from mmssl.stages.av_features import AvStore
from mmssl.stages.av_media import AUDIO, BOTH, VIDEO, longest, reader_of
from mmssl.training.readers import Item
from mmssl.training.sync_model import common_layers
from mmssl.types import Clip, Layers, StreamSpec, UpstreamSpec
from mmssl.upstreams.base import Upstream

NEAR = 2
"""Shifts of so many frames or fewer are not counted as manipulated: an offset of a frame or two is hardly seen."""
KINDS = ("matched", "offset", "shifted", "dubbed", "control")
"""Test cuts: as recorded; late by any offset; late by more than NEAR frames; with the sound of another clip of the same
speaker; late by any offset and with the pictures of another clip."""

Cut = tuple[str, str, str, int]
"""Kind, clip of the sound, clip of the pictures, and offset in frames. Kinds of training and development: "own"."""


class Cutter:
    """Reads the cuts of clips as an encoder takes them.

    Args:
        upstream: of sound and video, whose audio and video have a time axis.
        max_shift: S, in frames of the slower stream.
        least_frames: that must meet at the largest shift.
        seconds: longest cut; None for the longest that the encoder takes, or all that S leaves of a clip.
        image_size: of the pictures, where the encoder leaves it open.

    Attributes:
        frame_shift: seconds between two frames of the slower stream.
        margin: video frames that stay free on both sides of the pictures.
        longest: of a cut, in seconds; None for no limit.

    Raises:
        ConfigError: max_shift is too small, or the encoder's streams cannot be brought to one clock.
    """

    def __init__(
        self,
        upstream: Upstream,
        max_shift: int,
        least_frames: int,
        seconds: float | None = None,
        image_size: Any = None,
    ) -> None:
        if max_shift <= NEAR or least_frames < 1:
            raise ConfigError(
                f"max_shift must be above {NEAR} frames and least_frames at least 1, got {max_shift} and "
                f"{least_frames}."
            )
        self.upstream, self.max_shift, self.least_frames = upstream, max_shift, least_frames
        spec = upstream.spec
        self.aligned = AlignedStreams(common_layers(spec)[1])
        self.frame_shift = self.aligned.frame_shift
        self.rate, self.fps = int(spec.sample_rate or 0), float(spec.video_fps or 0)
        self.margin = math.ceil(max_shift * self.frame_shift * self.fps - 1e-6)
        self.longest = longest(spec, seconds)
        self.reader = reader_of(spec, BOTH, image_size)

    def size(self, clip: Clip) -> int:
        """Video frames of each of a clip's cuts; 0 where too few would meet at the largest shift.

        Raises:
            MediaError: a file cannot be read.
        """
        free = self.reader.measure(clip) - 2 * self.margin
        if self.longest is not None:
            free = min(free, int(self.longest * self.fps + 1e-6))
        return free if free > 0 and self._frames(free) >= self.max_shift + self.least_frames else 0

    def load(self, clip: Clip) -> Item:
        """Sound and pictures of the middle of a clip, with the margin on both sides.

        Raises:
            DataError: the file holds less than it says, and too little for the shifts.
            MediaError: a file cannot be read.
        """
        count = self.size(clip) + 2 * self.margin
        item = self.reader.load(clip, (self.reader.measure(clip) - count) // 2, count)
        if self._frames(self._count(item)) < self.max_shift + self.least_frames:
            raise DataError(
                f"The clip {clip.id!r} gives {self._count(item) + 2 * self.margin} of its {count} pictures: too few "
                "for the shifts."
            )
        return item

    def sound(self, item: Item, offset: int) -> Tensor:
        """(T,) of the cut that is `offset` frames late, from what `load` read."""
        assert item.waveform is not None
        count = self._count(item)
        size = seconds_to_samples(count / self.fps, self.rate)
        begin = seconds_to_samples(self.margin / self.fps - offset * self.frame_shift, self.rate)
        # three roundings may be one sample more than the file has
        begin = min(begin, len(item.waveform) - size)
        return item.waveform[begin : begin + size]

    def pictures(self, item: Item) -> Tensor:
        """(F, 3, H, W) uint8, the same for all offsets."""
        assert item.video is not None
        return item.video[self.margin : self.margin + self._count(item)]

    def _count(self, item: Item) -> int:
        assert item.video is not None
        return len(item.video) - 2 * self.margin

    def _frames(self, size: int) -> int:
        """Frames of the common clock that both streams of a cut of `size` video frames have."""
        found = []
        for name, given in ((AUDIO, seconds_to_samples(size / self.fps, self.rate)), (VIDEO, size)):
            if name == AUDIO and given < self.upstream.spec.min_length:
                return 0
            tokens = int(self.upstream.output_lengths(torch.tensor([given]), name)[0])
            frames = tokens // self.aligned.tokens_per_frame[name]
            found.append(-(-frames * self.aligned.hops[name] // self.aligned.hop))
        return min(found)


class CutFeatures:
    """Encoded cuts of one encoder (`mmssl.stages.av_cut_extract`).

    Args:
        folder: of the recipe.
        record: of the encoder in av_features.json.

    Attributes:
        clips: ids of those that are long enough and could be read.
        spec: of the layers that have the rate of their stream's last one.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        made = record["cuts"]
        self.clips = set(made["clips"])
        self.too_short = set(made["too_short"])
        self.frame_shift = float(made["frame_shift"])
        self.stores = AvStore(folder, {"stores": made["stores"], "separate": False, "statistics": "frames"})
        streams = {name: _spec_of(self.stores.stores[name], name) for name in (AUDIO, VIDEO)}
        whole = UpstreamSpec(("waveforms", "video"), streams, record["sample_rate"], record["video_fps"])
        self.kept, self.spec = common_layers(whole)

    def read(self, sound: str, pictures: str, offset: int) -> dict[str, Layers]:
        """The sound of one clip, `offset` frames late, and the pictures of the same or another one."""
        return {AUDIO: self._layers(sound_key(sound, offset), AUDIO), VIDEO: self._layers(pictures, VIDEO)}

    def chosen(self, name: str, layers: Layers) -> Layers:
        """Of all layers of a stream, those of `spec`."""
        return chosen_layers(layers, self.kept[name])

    def moments(self, cuts: Sequence[Cut]) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Stream -> mean and standard deviation (W_k,) of each layer of `spec` over cuts."""
        keys = {
            AUDIO: dict.fromkeys(sound_key(sound, offset) for _, sound, _, offset in cuts),
            VIDEO: dict.fromkeys(pictures for _, _, pictures, _ in cuts),
        }
        found = {}
        for name, ids in keys.items():
            centres, spreads = self.stores.moments(list(ids), name)[name]
            found[name] = ([centres[k] for k in self.kept[name]], [spreads[k] for k in self.kept[name]])
        return found

    def _layers(self, key: str, name: str) -> Layers:
        return self.chosen(name, self.stores.read(key, name)[name])


def _spec_of(store: FeatureStore, name: str) -> StreamSpec:
    kept = store.streams[name]
    return StreamSpec(tuple(kept["hidden_sizes"]), tuple(kept["hop_lengths"]), kept["tokens_per_frame"])


def sound_key(clip: str, offset: int) -> str:
    """Id of a clip's sound at an offset in the store of sound; pictures have the id of their clip."""
    return f"{clip} late {offset:+d}"


class CutItems(Dataset[tuple[dict[str, Layers], Tensor]]):
    """Items are (streams of one cut, offset in frames).

    Args:
        features: of an encoder.
        cuts: what to read.
    """

    def __init__(self, features: CutFeatures, cuts: Sequence[Cut]) -> None:
        self.features, self.cuts = features, cuts

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> tuple[dict[str, Layers], Tensor]:
        _, sound, pictures, offset = self.cuts[index]
        return self.features.read(sound, pictures, offset), torch.tensor(offset)


def drawn_offset(clip: str, place: int, low: int, high: int) -> int:
    """An offset of `low` to `high` frames either way, that depends on the clip and the place of use alone."""
    generator = torch.Generator().manual_seed(mix(zlib.crc32(clip.encode()), place))
    size = int(torch.randint(low, high + 1, (), generator=generator))
    return size if float(torch.rand((), generator=generator)) < 0.5 else -size


def judged_cuts(clips: Sequence[str], facts: Mapping[str, Sequence[str | None]], most: int) -> list[Cut]:
    """Every test clip in every kind.

    Dubbed clips have the sound of another clip of the same speaker, and of the same label where there is one; clips
    whose speaker has no other are left out of "dubbed" and "control".

    Args:
        clips: to judge.
        facts: id -> speaker and label.
        most: largest offset.
    """
    found: list[Cut] = []
    for k, clip in enumerate(clips):
        found += [("matched", clip, clip, 0), ("offset", clip, clip, drawn_offset(clip, 1, 0, most))]
        found.append(("shifted", clip, clip, drawn_offset(clip, 2, NEAR + 1, most)))
        order = [*clips[k + 1 :], *clips[:k]]
        own = [other for other in order if facts[other][0] == facts[clip][0]]
        alike = [other for other in own if facts[other][1] == facts[clip][1]] or own
        if alike:
            found.append(("dubbed", alike[0], clip, 0))
            found.append(("control", clip, alike[0], drawn_offset(clip, 1, 0, most)))
    return found


def training_cuts(clips: Sequence[str], most: int, per_clip: int | None = None) -> list[Cut]:
    """Every clip at every offset, or at `per_clip` of them, which depend on the clip alone.

    Raises:
        ConfigError: `per_clip` is below 1.
    """
    if per_clip is not None and per_clip < 1:
        raise ConfigError(f"per_clip must be at least 1, or null for every offset, got {per_clip}.")
    found: list[Cut] = []
    for clip in clips:
        generator = torch.Generator().manual_seed(mix(zlib.crc32(clip.encode()), 0))
        order = torch.randperm(2 * most + 1, generator=generator)[:per_clip].sort().values - most
        found += [("own", clip, clip, int(offset)) for offset in order]
    return found


def fold_cuts(
    fold: Fold, usable: set[str], facts: Mapping[str, Sequence[str | None]], settings: Mapping[str, Any]
) -> dict[str, list[Cut]]:
    """Part of a fold -> its cuts: training clips at every offset, development clips at three, test clips in every kind.

    Args:
        fold: ids.
        usable: those that are long enough.
        facts: id -> speaker and label.
        settings: with max_shift and per_clip.
    """
    most = settings["max_shift"]
    parts = {name: [clip for clip in getattr(fold, name) if clip in usable] for name in ("train", "dev", "test")}
    return {
        "train": training_cuts(parts["train"], most, settings["per_clip"]),
        "dev": [
            ("own", clip, clip, drawn_offset(clip, place, 0, most)) for clip in parts["dev"] for place in (3, 4, 5)
        ],
        "test": judged_cuts(parts["test"], facts, most),
    }
