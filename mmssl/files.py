"""Files that appear whole or not at all, and addresses of files that lie elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mmssl.errors import MmsslError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str], *, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place when the block ends: whole, synced to the disk, or not at all.

    After an exception the temporary file is gone and an older file of that name is untouched. A process that is killed
    leaves the temporary file at most.

    Args:
        path: where the file appears; a link is replaced, not written through.
        temporary: to write under, on the same file system; None draws a hidden name beside `path`.

    Raises:
        OSError: of the file system.
    """
    target = Path(path)
    if temporary is None:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        # mkstemp gives a file to its owner alone
        os.fchmod(handle, 0o644)
        temporary = Path(name)
    else:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL ("scheme://...")."""
    return _URL.match(os.fspath(path)) is not None


def filesystem(url: str, error: type[MmsslError]) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Args:
        url: "scheme://...", as fsspec takes it.
        error: kind of the error to raise.

    Raises:
        MmsslError: of that kind; the protocol is unknown, or its package is not installed or refuses the address.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as missing:
        raise error(f"{url} needs a package that is not installed: {missing}.") from missing
    except Exception as wrong:  # every file system raises errors of its own
        raise error(
            f"{url} cannot be reached: {wrong}. The address must be one that fsspec knows, such as s3://, gs:// or "
            f"file://, or a path."
        ) from wrong
