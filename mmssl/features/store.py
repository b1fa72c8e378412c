"""Feature stores: frames and pooled statistics of all layers of many clips, in one folder or behind one URL.

store.json                        see `mmssl.features.header`
shard-<writer>-<n>.safetensors    see `mmssl.features.shards`
shard-<writer>-<n>.jsonl
.lock-<name>                      held by whoever writes
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmssl.errors import StoreError, did_you_mean
from mmssl.features.fingerprint import Fingerprint
from mmssl.features.header import HEADER, read_header, write_header
from mmssl.features.remote import RemoteFolder, open_folder
from mmssl.features.shards import Entry, Part, explain_write_errors, read_part
from mmssl.types import Layers, Representation

if TYPE_CHECKING:
    from mmssl.features.writer import StoreWriter

_OPEN_SHARDS = 64


class FeatureStore:
    """A folder of features, opened for reading; `create` makes one or opens it for writing.

    Reading maps files into memory: what is not looked at is not read. Clips that are added by others after opening are
    seen after `refresh()`.

    Behind a URL (s3://, gs://, memory:// ...) the index is fetched when the store is opened, and a shard when a clip of
    it is read.

    Args:
        folder: of the store, or a URL that fsspec knows.

    Attributes:
        folder: where its files lie; for a URL, the working copy.
        remote: what stands behind a URL; None for a folder.

    Raises:
        StoreError: it is no store, one with another layout, or cannot be reached.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.remote = open_folder(folder)
        if self.remote is not None:
            with contextlib.suppress(FileNotFoundError):
                self.remote.get(HEADER)
        self.fingerprint, self.notes = read_header(self.folder, self.location)
        self.parts: dict[str, Part] = {}
        self.damaged_parts: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._shards: OrderedDict[str, Any] = OrderedDict()
        self.refresh()

    @classmethod
    def create(cls, folder: str | Path, fingerprint: Fingerprint) -> FeatureStore:
        """Open a store to add to it; make it where there is none.

        Raises:
            StoreError: the folder holds features of another fingerprint (the differences are listed) or other files.
        """
        place, remote = open_folder(folder)
        with explain_write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in place.iterdir()] if remote is None else remote.names()
        others = [name for name in names if not name.startswith((".lock-", "tmp-"))]
        if HEADER not in others:
            if others:
                raise StoreError(
                    f"{folder} is not empty and no feature store ({others[0]} is in it, {HEADER} is not): "
                    f"name a new or an empty folder."
                )
            write_header(place, fingerprint)
            if remote is not None:
                remote.put(HEADER)
        store = cls(folder)
        differences = store.fingerprint.differences(fingerprint)
        if differences:
            listed = "\n  ".join(differences)
            raise StoreError(
                f"{folder} holds features of another configuration (in the store -> asked for):\n  {listed}\n"
                f"Write into another folder, or delete this one if its features are no longer wanted."
            )
        return store

    def writer(self, name: str = "main", **limits: float) -> StoreWriter:
        """A writer to use as a context manager; `limits` are those of `mmssl.features.writer.StoreWriter`.

        Two writers of one name exclude each other; writers of different names may work at the same time.
        """
        from mmssl.features.writer import StoreWriter

        return StoreWriter(self, name, **limits)  # type: ignore[arg-type]

    def refresh(self) -> None:
        """Look again at what is in the folder."""
        if self.remote is not None:
            self._fetch_index(self.remote)
        names = {path.name for path in self.folder.glob("shard-*.jsonl")}
        for name in names - self.parts.keys():
            try:
                self.parts[name] = read_part(self.folder / name)
                self.damaged_parts.pop(name, None)
            except StoreError as error:
                if (self.folder / name).exists():
                    self.damaged_parts[name] = str(error)
        gone = self.parts.keys() - names
        for name in gone:
            del self.parts[name]
        self.damaged_parts = {name: text for name, text in self.damaged_parts.items() if name in names}
        entries = sorted(
            (entry for part in self.parts.values() for entry in part.entries), key=lambda e: (e.created, e.shard)
        )
        self._entries = {entry.id: entry for entry in entries}

    @property
    def location(self) -> Path | str:
        """Folder or URL, for people to read."""
        return self.folder if self.remote is None else self.remote.url

    @property
    def address(self) -> str:
        """Absolute path or URL, for other processes."""
        return str(self.folder.absolute()) if self.remote is None else self.remote.url

    @property
    def lock_folder(self) -> Path:
        """Where those who write lock each other out."""
        return self.folder if self.remote is None else self.remote.lock_folder

    def fetch(self, name: str, *, fresh: bool = False) -> Path:
        """Path of a file of the store, fetched where it lies elsewhere; `fresh` also where a copy is there.

        Raises:
            FileNotFoundError: behind a URL, there is no such file.
            StoreError: it cannot be fetched.
        """
        return self.folder / name if self.remote is None else self.remote.get(name, fresh=fresh)

    def publish(self, name: str) -> None:
        """Upload a file that was written into `folder`, where the store lies behind a URL.

        Raises:
            StoreError: it cannot be uploaded.
        """
        if self.remote is not None:
            self.remote.put(name)

    def forget(self, name: str) -> None:
        """Delete the working copy of a shard behind a URL."""
        self._shards.pop(name, None)
        if self.remote is not None:
            (self.folder / name).unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete an index part and its shard."""
        shard = f"{name.removesuffix('.jsonl')}.safetensors"
        # the index part first: a shard without one is not looked at
        for file in (name, shard):
            if self.remote is not None:
                self.remote.delete(file)
            (self.folder / file).unlink(missing_ok=True)

    def _fetch_index(self, remote: RemoteFolder) -> None:
        names = {name for name in remote.names() if name.startswith("shard-") and name.endswith(".jsonl")}
        for name in names:
            # another process may have deleted it in the meantime
            with contextlib.suppress(FileNotFoundError):
                remote.get(name)
        for path in self.folder.glob("shard-*.jsonl"):
            if path.name not in names:
                path.unlink()

    @property
    def ids(self) -> list[str]:
        """Ids of all clips, sorted."""
        return sorted(self._entries)

    @property
    def streams(self) -> Mapping[str, Mapping[str, Any]]:
        """Stream -> num_layers of the upstream, and layers kept, their hidden_sizes, hop_lengths, tokens_per_frame."""
        return self.fingerprint.fields["streams"]

    @property
    def sample_rate(self) -> int | None:
        """Of the waveforms that the features were computed from, in Hz."""
        return self.fingerprint.fields["sample_rate"]

    def input_rate(self, stream: str) -> float | None:
        """Of what a stream's hop lengths count, in Hz: video frames for "video", else samples."""
        fields = self.fingerprint.fields
        return fields.get("video_fps") if stream == "video" or self.sample_rate is None else self.sample_rate

    @property
    def has_frames(self) -> bool:
        """Whether frames were kept."""
        return bool(self.fingerprint.fields["frames"])

    @property
    def stats(self) -> tuple[str, ...]:
        """Pooled statistics that were kept."""
        return tuple(self.fingerprint.fields["pooled"])

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, clip_id: str) -> Representation:
        return {stream: self.read(clip_id, stream) for stream in self.streams_of(clip_id)}

    def streams_of(self, clip_id: str) -> list[str]:
        """Streams of a clip: those of the store, but for what a clip without audio or video lacks.

        Raises:
            StoreError: the clip is not in the store.
        """
        lengths = self.entry(clip_id).lengths
        return [stream for stream in self.streams if stream in lengths]

    def entry(self, clip_id: str) -> Entry:
        """Index entry of a clip.

        Raises:
            StoreError: the clip is not in the store.
        """
        try:
            return self._entries[clip_id]
        except KeyError:
            # comparing with very many ids takes seconds
            hint = did_you_mean(str(clip_id), self._entries) if len(self) <= 5000 else ""
            raise StoreError(
                f"The clip {clip_id!r} is not in {self.location}, which holds {len(self)} clips.{hint} "
                f"Extract it, or look at the list of skipped clips of the extraction."
            ) from None

    def read(self, clip_id: str, stream: str = "audio", layers: Sequence[int] | None = None) -> Layers:
        """Frames of one clip.

        Args:
            clip_id: of the clip.
            stream: of the upstream.
            layers: numbers of layers as the upstream counts them, negative ones from its end; None gives all kept.

        Returns:
            Layers of one clip: float32 tensors (T_k, D_k) and scalar int64 lengths.

        Raises:
            StoreError: no such clip, stream or layer, no frames were kept, or a file is missing or damaged.
        """
        entry, positions = self._find(clip_id, stream, layers)
        if not self.has_frames:
            raise StoreError(
                f"{self.location} holds pooled features only ({', '.join(self.stats)}): use store.pooled(...), "
                f"or extract again with frames into another folder."
            )
        lengths = entry.lengths[stream]
        name = f"{clip_id}/{stream}/frames"
        with self._explain(entry):
            shard = self._shard(entry.shard)
            if isinstance(lengths, list):
                tensors = [shard.get_tensor(f"{name}/{k}") for k in positions]
            elif layers is None:
                tensors = list(shard.get_tensor(name))
            else:
                rows = shard.get_slice(name)
                tensors = [rows[k : k + 1][0] for k in positions]
        counts = [torch.tensor(n, dtype=torch.int64) for n in (len(t) for t in tensors)]
        return Layers(tuple(t.float() for t in tensors), tuple(counts))

    def pooled(
        self, clip_id: str, stream: str = "audio", stat: str = "mean", layers: Sequence[int] | None = None
    ) -> Layers:
        """A statistic over the frames of one clip, per layer.

        Returns:
            Layers of one frame: float32 tensors (1, D_k), all lengths 1.

        Raises:
            StoreError: no such clip, stream or layer, the statistic was not kept, or a file is missing or damaged.
        """
        entry, positions = self._find(clip_id, stream, layers)
        if stat not in self.stats:
            raise StoreError(
                f"{self.location} holds no pooled {stat!r}; it holds {', '.join(self.stats) or 'frames only'}. "
                f"Extract again with pooled={stat} into another folder."
            )
        name = f"{clip_id}/{stream}/{stat}"
        with self._explain(entry):
            shard = self._shard(entry.shard)
            if len(set(self.streams[stream]["hidden_sizes"])) > 1:
                rows: Sequence[Tensor] = [shard.get_tensor(f"{name}/{k}") for k in positions]
            else:
                table = shard.get_tensor(name)
                rows = [table[k] for k in positions]
        one = torch.tensor(1, dtype=torch.int64)
        return Layers(tuple(row[None] for row in rows), tuple(one for _ in rows))

    def _find(self, clip_id: str, stream: str, layers: Sequence[int] | None) -> tuple[Entry, list[int]]:
        """Entry of a clip that has the stream, and places of the layers."""
        entry, positions = self.entry(clip_id), self._positions(stream, layers)
        if stream not in entry.lengths:
            raise StoreError(
                f"The clip {clip_id!r} has no stream {stream!r} in {self.location}: what that is computed from was "
                f"missing when it was extracted. It has {', '.join(entry.lengths)} (`streams_of` tells)."
            )
        return entry, positions

    def _positions(self, stream: str, layers: Sequence[int] | None) -> list[int]:
        if stream not in self.streams:
            raise StoreError(f"{self.location} has no stream {stream!r}; it has {', '.join(self.streams)}.")
        kept, count = self.streams[stream]["layers"], self.streams[stream]["num_layers"]
        if layers is None:
            return list(range(len(kept)))
        numbers = [k + count if k < 0 else k for k in layers]
        missing = [k for k in numbers if k not in kept]
        if missing:
            raise StoreError(f"{self.location} has no layer {missing[0]} of the stream {stream!r}; it has {kept}.")
        return [kept.index(k) for k in numbers]

    def _shard(self, name: str) -> Any:
        """An open, memory-mapped shard; the least recently used ones are closed."""
        from safetensors import safe_open

        if name not in self._shards:
            self._shards[name] = safe_open(str(self.fetch(name)), framework="pt")
            if len(self._shards) > _OPEN_SHARDS:
                self.forget(next(iter(self._shards)))
        self._shards.move_to_end(name)
        return self._shards[name]

    @contextlib.contextmanager
    def _explain(self, entry: Entry) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (SafetensorError, OSError) as error:
            raise StoreError(
                f"The clip {entry.id!r} cannot be read from {self.location}/{entry.shard}: {error}. "
                f"`mmssl features verify {self.location}` lists all damaged clips; with --remove it takes them out, "
                f"so that the next extraction computes them again."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.remote is not None:
            # it has made a working copy for this process
            self.folder = self.remote.folder
