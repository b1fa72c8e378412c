"""Files of a feature store: safetensors shards, and one index part (JSONL) beside each.

A shard counts only once its index part exists. Both are written under a temporary name, synced and renamed, the index
part last, so that a process killed at any moment leaves whole shards or files that nobody looks at.

    tmp-<writer>-<n>.safetensors      being written
    shard-<writer>-<n>.safetensors    tensors, named <clip id>/<stream>/<what>
    shard-<writer>-<n>.jsonl          a header line, then one line per clip
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.errors import StoreError

_TYPES = {"float32": "F32", "float16": "F16"}
_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file size limit is reached",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One clip in the index.

    Attributes:
        id: of the clip.
        shard: file name of the shard that holds it.
        input: key of what it was computed from (`fingerprint.input_key`).
        crc32: of its tensors, see `content_crc`.
        lengths: stream -> frames; a list where layers differ.
        created: time of the shard in ns; of two entries with the same id the later one counts.
    """

    id: str
    shard: str
    input: str
    crc32: int
    lengths: Mapping[str, int | list[int]]
    created: int


@dataclass(frozen=True)
class Part:
    """What an index part says of its shard: size and crc32 of the file, and the clips in it."""

    shard: str
    size: int
    crc32: int
    entries: tuple[Entry, ...]


@contextlib.contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into a StoreError that names cause and remedy."""
    try:
        yield
    except OSError as error:
        cause = _NO_SPACE.get(error.errno or 0)
        if cause is None:
            raise StoreError(
                f"Cannot write into {folder}: {error}. Check that the folder exists and is writable."
            ) from error
        raise StoreError(
            f"Cannot write into {folder}: {cause} ({error}). Everything written before is whole; "
            f"make room and run the same command again to go on."
        ) from error


def write_atomically(path: Path, pieces: Sequence[bytes | memoryview], temporary: Path | None = None) -> int:
    """Write a file so that it appears whole or not at all.

    Args:
        path: where it appears.
        pieces: its content.
        temporary: name to write under, in the same folder.

    Returns:
        crc32 of the content.
    """
    temporary = temporary or path.with_name(f"tmp-{path.name}")
    crc = 0
    with explain_write_errors(path.parent):
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                    crc = zlib.crc32(piece, crc)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    return crc


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tensor_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def content_crc(tensors: Mapping[str, np.ndarray]) -> int:
    """crc32 over name, type, shape and bytes of tensors in the order of their names."""
    crc = 0
    for name in sorted(tensors):
        array = tensors[name]
        crc = zlib.crc32(f"{name}:{array.dtype}:{array.shape}".encode(), crc)
        crc = zlib.crc32(tensor_bytes(array), crc)
    return crc


def shard_pieces(tensors: Mapping[str, np.ndarray]) -> list[bytes | memoryview]:
    """Content of a safetensors file: length of the header, the header in JSON, then the tensors' bytes.

    The format is written here, not by the safetensors package, so that a failing disk is seen as the OSError it is and
    tensors are neither copied nor joined in memory.
    """
    header: dict[str, Any] = {}
    # float32 before float16 keeps every tensor aligned
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    offset = 0
    for name in names:
        array = tensors[name]
        end = offset + array.nbytes
        header[name] = {"dtype": _TYPES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(tensor_bytes(tensors[name]) for name in names)]


def write_part(path: Path, size: int, crc32: int, entries: Sequence[Entry], temporary: Path | None = None) -> None:
    """Write the index part of a shard: from this moment on its clips are in the store."""
    lines = []
    for entry in entries:
        record = asdict(entry)
        del record["shard"], record["created"]
        lines.append(json.dumps(record, separators=(",", ":")))
    body = "".join(f"{line}\n" for line in lines).encode()
    header = {
        "shard": path.with_suffix(".safetensors").name,
        "bytes": size,
        "crc32": crc32,
        "created": entries[0].created if entries else 0,
        "clips": len(entries),
        "lines_crc32": zlib.crc32(body),
    }
    write_atomically(path, [f"{json.dumps(header)}\n".encode(), body], temporary)


def read_part(path: Path) -> Part:
    """Read an index part.

    Raises:
        StoreError: it is damaged.
    """
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(first)
        shard, created = str(header["shard"]), int(header["created"])
        if zlib.crc32(body) != header["lines_crc32"] or shard != path.with_suffix(".safetensors").name:
            raise ValueError("its checksum does not fit its lines")
        records = [json.loads(line) for line in body.splitlines()]
        entries = tuple(Entry(shard=shard, created=created, **record) for record in records)
        return Part(shard, int(header["bytes"]), int(header["crc32"]), entries)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StoreError(f"The index part {path} is damaged: {error}. Its clips count as missing.") from error


def file_crc(path: Path) -> tuple[int, int]:
    """Size and crc32 of a file, read piece by piece."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return size, crc
