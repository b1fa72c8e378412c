"""Adding clips to a feature store."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import InputError, StoreError
from mmssl.features.locks import FolderLock
from mmssl.features.pooled import pool_frames
from mmssl.features.shards import Entry, content_crc, shard_pieces, tensor_bytes, write_atomically, write_part
from mmssl.types import Layers, Representation

if TYPE_CHECKING:
    from mmssl.features.store import FeatureStore


@dataclass(frozen=True)
class EncodedClip:
    """A clip as it goes into a shard: arrays by name, crc32 of each and of all, frames per stream (`shards.Entry`)."""

    id: str
    input_key: str
    arrays: Mapping[str, np.ndarray]
    crcs: Mapping[str, int]
    crc32: int
    lengths: Mapping[str, int | list[int]]


class StoreWriter:
    """Adds clips to a store, shard by shard. Use as a context manager.

    Shards are written by a thread, so that computing goes on; an error of writing is raised by the next call.
    A shard is closed when it has `max_bytes`, `max_clips`, or is `max_seconds` old: what a kill can cost. Leaving the
    block closes the last one, also after an exception, because what is in it is whole; only after a failed write it
    does not.

    Args:
        store: opened by `FeatureStore.create`.
        name: of this writer, letters, digits, ".", "_" and "-"; unique among those who write at the same time.
        max_bytes: of a shard; it may be larger by one clip, or by what is put in at once.
        max_clips: of a shard.
        max_seconds: between opening and closing a shard.
        wait: seconds to wait for another writer of the same name to end.
    """

    def __init__(
        self,
        store: FeatureStore,
        name: str = "main",
        *,
        max_bytes: int = 128 << 20,
        max_clips: int = 512,
        max_seconds: float = 60.0,
        wait: float = 0.0,
    ):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise StoreError(f"A writer's name is made of letters, digits, '.', '_' and '-', got {name!r}.")
        self.store = store
        # runs on other machines are not locked out behind a URL, so that each gets names of its own there
        self.name = name if store.remote is None else f"{name}.{secrets.token_hex(4)}"
        self.max_bytes, self.max_clips, self.max_seconds = max_bytes, max_clips, max_seconds
        self._lock = FolderLock(store.lock_folder, name, wait=wait)
        self._number = 0
        self._last_created = 0
        self._thread: ThreadPoolExecutor
        self._pending: Future[None] | None = None
        self._clear()

    def __enter__(self) -> StoreWriter:
        self._lock.acquire()
        try:
            self._number = 1 + remove_leftovers(self.store.folder, self.name)
            self.store.refresh()
            parts = self.store.parts.values()
            self._last_created = max((e.created for p in parts for e in p.entries[:1]), default=0)
        except BaseException:
            self._lock.release()
            raise
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if isinstance(error, StoreError):
                self._clear()
            self.flush()
        except StoreError:
            # the first failure is the one to report
            if not isinstance(error, StoreError):
                raise
        finally:
            self._thread.shutdown()
            self._lock.release()

    def add(self, clip_id: str, representation: Representation, *, input_key: str = "") -> None:
        """Add the representation of one clip; an entry of the same id is superseded.

        Args:
            clip_id: any non-empty string.
            representation: stream -> all layers of the upstream: tensors (T_k, D_k), on any device.
            input_key: what it was computed from, see `fingerprint.input_key`.

        Raises:
            InputError: the shapes are not those of the fingerprint, or a value is NaN, infinite or, in float16, too
                large to be stored.
            StoreError: writing failed; nothing half-written is left.
        """
        self.put([self.encode(clip_id, representation, input_key=input_key)])

    def encode(
        self, clip_id: str, representation: Representation, *, input_key: str = "", partial: bool = False
    ) -> EncodedClip:
        """Pool, cast and check the representation of one clip, as `add` does, without adding it.

        Args:
            clip_id, representation, input_key: see `add`.
            partial: the clip lacks an input, so that streams may be missing.
        """
        if not clip_id:
            raise InputError("A clip id must not be empty.")
        arrays, lengths = encode_clip(clip_id, representation, self.store.fingerprint.fields, partial)
        return self.seal(clip_id, arrays, lengths, input_key=input_key)

    def seal(
        self,
        clip_id: str,
        arrays: Mapping[str, np.ndarray],
        lengths: Mapping[str, int | list[int]],
        *,
        input_key: str = "",
    ) -> EncodedClip:
        """Name the arrays of a clip, as `encode_clip` gives them, and sum them up."""
        named = {f"{clip_id}/{name}": array for name, array in arrays.items()}
        crcs = {name: zlib.crc32(tensor_bytes(array)) for name, array in named.items()}
        return EncodedClip(clip_id, input_key, named, crcs, content_crc(named, crcs), lengths)

    def put(self, clips: Sequence[EncodedClip]) -> None:
        """Add clips that stay together: they are in the store all or none, whenever this process ends."""
        if not clips:
            return
        if any(clip.id in self._clips for clip in clips):
            self.flush()
        if not self._clips:
            self._opened = time.monotonic()
        self._clips.update((clip.id, clip) for clip in clips)
        self._bytes += sum(array.nbytes for clip in clips for array in clip.arrays.values())
        too_old = time.monotonic() - self._opened > self.max_seconds
        if self._bytes >= self.max_bytes or len(self._clips) >= self.max_clips or too_old:
            self._close_shard()

    def flush(self) -> None:
        """Close the shard: what was added is in the store from now on, whatever happens to this process.

        Raises:
            StoreError: writing failed; what was not written is dropped.
        """
        self._close_shard()
        self._wait()

    def _close_shard(self) -> None:
        """Hand the shard to the thread that writes, once the one before is written: two are in memory at most."""
        clips = list(self._clips.values())
        self._clear()
        self._wait()
        if clips:
            # later than all entries that were there, even if the clock was set back
            self._last_created = max(time.time_ns(), self._last_created + 1)
            stem = f"{self.name}-{self._number:06d}"
            self._number += 1
            self._pending = self._thread.submit(_write_shard, self.store, stem, clips, self._last_created)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _clear(self) -> None:
        self._clips: dict[str, EncodedClip] = {}
        self._bytes = 0
        self._opened = 0.0


def _write_shard(store: FeatureStore, stem: str, clips: Sequence[EncodedClip], created: int) -> None:
    folder = store.folder
    shard = folder / f"shard-{stem}.safetensors"
    part = shard.with_suffix(".jsonl")
    arrays = {name: array for clip in clips for name, array in clip.arrays.items()}
    pieces, size, crc = shard_pieces(arrays, {name: crc for clip in clips for name, crc in clip.crcs.items()})
    try:
        write_atomically(shard, pieces, folder / f"tmp-{stem}.safetensors")
        store.publish(shard.name)
        entries = [Entry(c.id, shard.name, c.input_key, c.crc32, c.lengths, created) for c in clips]
        write_part(part, size, crc, entries, folder / f"tmp-{stem}.jsonl")
        store.publish(part.name)
    except BaseException:
        # the index part may be there if only syncing the folder, or the upload, failed
        with contextlib.suppress(StoreError):
            store.delete(part.name)
        raise
    store.forget(shard.name)


def remove_leftovers(folder: Path, name: str) -> int:
    """Delete what a dead writer left unfinished; only its lock's holder may call this.

    Returns:
        The highest number of its shards; 0 where it has none.
    """
    highest = 0
    pattern = re.compile(rf"(tmp|shard)-{re.escape(name)}-(\d+)\.(safetensors|jsonl)")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if match[1] == "tmp" or not path.with_suffix(".jsonl").exists():
            path.unlink(missing_ok=True)
        else:
            highest = max(highest, int(match[2]))
    return highest


def encode_clip(
    clip_id: str, representation: Representation, fields: Mapping[str, Any], partial: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, int | list[int]]]:
    """Arrays to store for one clip, as the fingerprint's fields ask, and stream -> frames.

    Layers of equal width and rate become one array (L, T, D); pooled layers of equal width one (L, D). With `partial`
    the clip may lack streams, but not all.
    """
    arrays: dict[str, np.ndarray] = {}
    lengths: dict[str, int | list[int]] = {}
    for stream, declared in fields["streams"].items():
        if stream not in representation:
            if partial and any(name in representation for name in fields["streams"]):
                continue
            raise InputError(f"The upstream declares a stream {stream!r} and gave none for the clip {clip_id!r}.")
        kept = _kept_layers(clip_id, stream, representation[stream], declared)
        counts = [len(h) for h in kept]
        equal_widths, equal_counts = len(set(declared["hidden_sizes"])) == 1, len(set(counts)) == 1
        stacked = equal_widths and equal_counts and len(set(declared["hop_lengths"])) == 1
        lengths[stream] = counts[0] if stacked else counts
        if not all(counts):
            raise InputError(f"The clip {clip_id!r} has no frame: it is shorter than one window of the upstream.")
        if fields["frames"]:
            # copies: the upstream may use its buffers again, and a view would keep the whole batch in memory
            thin = [every(h, fields.get("stride", 1), declared["tokens_per_frame"]) for h in kept]
            if stacked:
                arrays[f"{stream}/frames"] = _stack(clip_id, thin, fields["dtype"])
                groups = {}
            else:
                groups = {f"{stream}/frames/{k}": h.clone() for k, h in enumerate(thin)}
            counts = [len(h) for h in thin]
            lengths[stream] = counts[0] if stacked else counts
            arrays |= {name: _to_array(clip_id, group, fields["dtype"]) for name, group in groups.items()}
        # layer by layer, because one layer in float64 fits into the cache
        pooled = [pool_frames(h, fields["pooled"]) for h in kept]
        for stat in fields["pooled"]:
            rows = [layer[stat] for layer in pooled]
            if equal_widths:
                arrays[f"{stream}/{stat}"] = _to_array(clip_id, torch.stack(rows), "float32")
            else:
                arrays |= {f"{stream}/{stat}/{k}": _to_array(clip_id, row, "float32") for k, row in enumerate(rows)}
    return arrays, lengths


def every(frames: Tensor, stride: int, tokens: int = 1) -> Tensor:
    """Every `stride`-th time step of frames (T, D), the first included; a step has `tokens` rows, in order."""
    if stride == 1:
        return frames
    return frames[::stride] if tokens == 1 else frames.unflatten(0, (-1, tokens))[::stride].flatten(0, 1)


def _kept_layers(clip_id: str, stream: str, layers: Layers, declared: Mapping[str, Any]) -> list[Tensor]:
    shapes = [tuple(h.shape) for h in layers.hidden_states]
    kept = [layers.hidden_states[k].detach() for k in declared["layers"] if k < len(layers)]
    widths = [h.shape[-1] for h in kept]
    if (
        len(layers) != declared["num_layers"]
        or widths != list(declared["hidden_sizes"])
        or any(h.dim() != 2 for h in kept)
    ):
        raise InputError(
            f"The stream {stream!r} of the clip {clip_id!r} has {len(shapes)} layers of shapes {shapes[:3]}...; "
            f"the upstream declares {declared['num_layers']} layers of widths {declared['hidden_sizes'][:3]}..."
        )
    return kept


def _stack(clip_id: str, layers: Sequence[Tensor], dtype: str) -> np.ndarray:
    """Layers (T, D) -> (L, T, D), cast one by one while they are in the cache."""
    kind: torch.dtype = getattr(torch, dtype)
    stacked = torch.empty(len(layers), *layers[0].shape, dtype=kind)
    for place, layer in zip(stacked, layers, strict=True):
        _check_range(clip_id, layer, kind)
        place.copy_(layer)
    return stacked.numpy()


def _to_array(clip_id: str, tensor: Tensor, dtype: str) -> np.ndarray:
    kind: torch.dtype = getattr(torch, dtype)
    _check_range(clip_id, tensor, kind)
    return tensor.to(kind).cpu().numpy()


def _check_range(clip_id: str, tensor: Tensor, kind: torch.dtype) -> None:
    # the extremes carry NaN along, and take a twentieth of the time of a test of every value
    low, high = (float(value) for value in torch.aminmax(tensor))
    if not max(-low, high) <= torch.finfo(kind).max:
        half = kind == torch.float16
        remedy = ' or exceeds 65,504, the largest float16: extract with dtype="float32"' if half else ""
        raise InputError(f"A feature of the clip {clip_id!r} is NaN or infinite{remedy}.")
