"""Long recordings, piece by piece: exactly where frames see a known stretch, else in declared chunks with overlap."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import ConfigError, InputError
from mmssl.features.forward import forward_clips
from mmssl.features.shards import explain_write_errors
from mmssl.features.writer import encode_clip
from mmssl.types import Layers, Representation

if TYPE_CHECKING:
    from mmssl.media.streaming import AudioStream
    from mmssl.upstreams.base import Upstream

_EXACT_SECONDS = 60.0
_IN_MEMORY = 64 << 20


@dataclass(frozen=True)
class Chunks:
    """How a long clip is cut.

    Attributes:
        step: time steps of the coarsest layer between the starts of two chunks.
        overlap: time steps that a chunk sees beyond both of its ends.
        unit: samples of such a step.
        exact: whether features are those of the uncut clip.
    """

    step: int
    overlap: int
    unit: int
    exact: bool

    @property
    def samples(self) -> int:
        """A clip up to this length is not cut."""
        return (self.step + 2 * self.overlap) * self.unit


def make_chunks(upstream: Upstream, seconds: float | None, overlap: float, stride: int = 1) -> Chunks | None:
    """How clips of an upstream are cut; None where they are not.

    An upstream that says how far its frames look (`Upstream.frame_context`) is always computed in pieces, of a minute
    or of `seconds`, and exactly. Any other one only where `seconds` is given.

    Args:
        upstream: of waveforms.
        seconds: of a chunk without its overlap, or None.
        overlap: that a chunk sees beyond both of its ends, in seconds.
        stride: of the frames that will be kept.

    Raises:
        ConfigError: a value is out of range, or the upstream has tokens without a time axis.
    """
    if seconds is not None and not (seconds > 0 and overlap >= 0):
        raise ConfigError(f"chunk_seconds must be > 0 and chunk_overlap >= 0, got {seconds} and {overlap}.")
    context, rate = upstream.frame_context(), upstream.spec.sample_rate
    if rate is None or (context is None and seconds is None):
        return None
    hops = [hop for stream in upstream.spec.streams.values() for hop in stream.hop_lengths]
    if not all(hops):
        raise ConfigError(f"{type(upstream).__name__} gives tokens without a time axis, so clips cannot be cut.")
    # chunks begin where all layers have a frame, and where a kept frame lies
    unit = math.lcm(*hops) * stride
    steps = max(1, round((seconds or _EXACT_SECONDS) * rate / unit))
    reach = math.ceil(overlap * rate / unit) if context is None else math.ceil(context / stride)
    return Chunks(steps, reach, unit, exact=context is not None)


def forward_chunks(upstream: Upstream, waveform: Tensor | AudioStream, chunks: Chunks) -> Iterator[Representation]:
    """Representations of the successive chunks of a clip, overlaps cut off: laid end to end, those of the clip.

    Args:
        upstream: of waveforms.
        waveform: (T,), or a stream, of which one chunk at a time is in memory.
        chunks: how to cut it.
    """
    total = _samples(waveform)
    spec, frames = upstream.spec, _time_steps(upstream, total)
    per_step = {(s, k): chunks.unit // spec.streams[s].hop_lengths[k] for s, k in frames}
    # every layer has a frame in the last chunk, which goes on to the end
    count = max(1, min(-(-n // (per_step[key] * chunks.step)) for key, n in frames.items()))
    for number in range(count):
        first, last = number * chunks.step, (number + 1) * chunks.step
        begin = max(0, first - chunks.overlap)
        end = total if number == count - 1 else (last + chunks.overlap) * chunks.unit + spec.min_length
        begin_sample = begin * chunks.unit
        window = waveform[begin_sample:end] if isinstance(waveform, Tensor) else waveform.read(begin_sample, end)
        found = forward_clips(upstream, [window])[0]
        piece = {}
        for stream, layers in found.items():
            kept = []
            for k, states in enumerate(layers.hidden_states):
                rows = per_step[stream, k] * spec.streams[stream].tokens_per_frame
                stop = None if number == count - 1 else (last - begin) * rows
                kept.append(states[(first - begin) * rows : stop])
            piece[stream] = Layers(tuple(kept), tuple(torch.tensor(len(h)) for h in kept))
        yield piece


def encode_long(
    upstream: Upstream,
    waveform: Tensor | AudioStream,
    chunks: Chunks,
    clip_id: str,
    fields: Mapping[str, Any],
    folder: Path,
) -> tuple[dict[str, np.ndarray], dict[str, int | list[int]]]:
    """What `writer.encode_clip` gives for the whole clip, computed chunk by chunk.

    Frames of more than 64 MB lie in a nameless file in `folder` and not in memory.

    Args:
        upstream: of waveforms.
        waveform: (T,), or a stream.
        chunks: how to cut it.
        clip_id: of the clip.
        fields: of the store's fingerprint.
        folder: of the store.

    Raises:
        InputError: a value is NaN or infinite, or too large for float16.
        StoreError: the disk is full.
    """
    arrays: dict[str, np.ndarray] = {}
    filled: dict[str, int] = {}
    moments: dict[str, list[Moments]] = {}
    stride, steps = fields.get("stride", 1), _time_steps(upstream, _samples(waveform))
    for piece in forward_chunks(upstream, waveform, chunks):
        for stream, declared in fields["streams"].items():
            kept = [piece[stream].hidden_states[k] for k in declared["layers"]]
            states = moments.setdefault(stream, [Moments() for _ in kept])
            for state, frames in zip(states, kept, strict=True):
                state.add(frames)
        found, _ = encode_clip(clip_id, piece, {**fields, "pooled": []})
        for name, part in found.items():
            # (L, T, D), or (T, D) with the place of the layer at the end of the name
            axis = part.ndim - 2
            if name not in arrays:
                stream, _, place = name.partition("/frames")
                declared = fields["streams"][stream]
                layer = declared["layers"][int(place[1:]) if place else 0]
                total = -(-steps[stream, layer] // stride) * declared["tokens_per_frame"]
                arrays[name] = _room((*part.shape[:axis], total, *part.shape[axis + 1 :]), part.dtype, folder)
            begin = filled.get(name, 0)
            filled[name] = end = begin + part.shape[axis]
            arrays[name][(slice(None),) * axis + (slice(begin, end),)] = part
    lengths: dict[str, int | list[int]] = {}
    for stream, states in moments.items():
        declared = fields["streams"][stream]
        keep = stride if fields["frames"] else 1
        counts = [-(-steps[stream, k] // keep) * declared["tokens_per_frame"] for k in declared["layers"]]
        stacked = len(set(declared["hidden_sizes"])) == 1 and len(set(declared["hop_lengths"])) == 1
        lengths[stream] = counts[0] if stacked else counts
        for stat in fields["pooled"]:
            rows = [state.result(clip_id, stat) for state in states]
            if len(set(declared["hidden_sizes"])) == 1:
                arrays[f"{stream}/{stat}"] = np.stack(rows)
            else:
                arrays |= {f"{stream}/{stat}/{k}": row for k, row in enumerate(rows)}
    return arrays, lengths


class Moments:
    """Mean, variance and maximum over frames that come in pieces (Chan et al. 1979, equations 2.1), in float64."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, frames: Tensor) -> None:
        """Take in frames (T, D)."""
        wide = frames.double()
        count, mean, highest = len(wide), wide.mean(0), wide.amax(0)
        squares = (wide - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self.squares, self.highest = count, mean, squares, highest
            return
        total = self.count + count
        difference = mean - self.mean
        self.squares = self.squares + squares + difference.square() * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.highest = torch.maximum(self.highest, highest)
        self.count = total

    def result(self, clip_id: str, stat: str) -> np.ndarray:
        """A statistic (D,) as float32.

        Raises:
            InputError: it is NaN or infinite.
        """
        value = {"mean": self.mean, "std": (self.squares / self.count).sqrt(), "max": self.highest}[stat]
        if not bool(value.isfinite().all()):
            raise InputError(f"A feature of the clip {clip_id!r} is NaN or infinite.")
        return value.float().cpu().numpy()


def _samples(waveform: Tensor | AudioStream) -> int:
    return len(waveform) if isinstance(waveform, Tensor) else waveform.num_samples


def _time_steps(upstream: Upstream, samples: int) -> dict[tuple[str, int], int]:
    """(stream, layer) -> time steps of a clip."""
    total = torch.tensor([samples])
    return {
        (stream, k): int(upstream.output_lengths(total, stream, k)[0]) // declared.tokens_per_frame
        for stream, declared in upstream.spec.streams.items()
        for k in range(declared.num_layers)
    }


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path) -> np.ndarray:
    """An array to fill; a large one in a file that has no name, so that nothing is left when this process dies."""
    size = math.prod(shape) * dtype.itemsize
    if size <= _IN_MEMORY:
        return np.empty(shape, dtype)
    with explain_write_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        # a full disk must show here, as an error, and not when a mapped page finds no room
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
