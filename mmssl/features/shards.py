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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.errors import StoreError
from mmssl.files import replace_file, sync_folder

# reversed, as zlib has it
_POLYNOMIAL = 0xEDB88320
# below this reading again is faster
_WORTH_JOINING = 1 << 18
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


def write_atomically(path: Path, pieces: Sequence[bytes | memoryview], temporary: Path | None = None) -> None:
    """Write a file so that it appears whole or not at all.

    Args:
        path: where it appears.
        pieces: its content.
        temporary: name to write under, in the same folder.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    with explain_write_errors(path.parent):
        with replace_file(path, temporary=temporary or path.with_name(f"tmp-{path.name}")) as file:
            for piece in pieces:
                file.write(piece)
        sync_folder(path.parent)


def tensor_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def content_crc(tensors: Mapping[str, np.ndarray], crcs: Mapping[str, int] | None = None) -> int:
    """crc32 over name, type, shape and bytes of tensors in the order of their names.

    Args:
        tensors: by name.
        crcs: crc32 of the bytes of each, where they are known.
    """
    crc = 0
    for name in sorted(tensors):
        array = tensors[name]
        crc = zlib.crc32(f"{name}:{array.dtype}:{array.shape}".encode(), crc)
        crc = append_crc(crc, tensor_bytes(array), None if crcs is None else crcs[name])
    return crc


def append_crc(crc: int, data: bytes | memoryview, known: int | None) -> int:
    """crc32 of what has `crc`, and then `data`; a large piece whose crc32 is known is not read again."""
    return zlib.crc32(data, crc) if known is None or len(data) < _WORTH_JOINING else join_crc(crc, known, len(data))


def join_crc(first: int, second: int, length: int) -> int:
    """crc32 of two pieces laid end to end, from those of the pieces and the length of the second in bytes.

    A crc is a remainder modulo a polynomial over GF(2), so that what follows multiplies it by x^(8 length).
    """
    factor, bits, square = 1 << 31, 8 * length, 1 << 30
    while bits:
        if bits & 1:
            factor = _times(square, factor)
        square = _times(square, square)
        bits >>= 1
    return _times(factor, first) ^ second


def _times(a: int, b: int) -> int:
    """Product of two polynomials modulo that of crc32, coefficients from the highest bit (x^0) down."""
    product = 0
    for place in range(31, -1, -1):
        if a >> place & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def shard_pieces(
    tensors: Mapping[str, np.ndarray], crcs: Mapping[str, int]
) -> tuple[list[bytes | memoryview], int, int]:
    """Content of a safetensors file, its size and its crc32, from the crc32 of each tensor's bytes.

    It is the length of the header, the header in JSON, then the tensors' bytes.

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
    pieces: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    crc = zlib.crc32(text, zlib.crc32(pieces[0]))
    for name in names:
        pieces.append(tensor_bytes(tensors[name]))
        crc = append_crc(crc, pieces[-1], crcs[name])
    return pieces, 8 + len(text) + offset, crc


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
