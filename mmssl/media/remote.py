"""Media files that lie elsewhere (s3://, gs://, https://, memory:// ...): local copies while they are in use."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmssl.errors import MediaError
from mmssl.files import filesystem, is_url
from mmssl.media.paths import existing_file

CACHE_BYTES = 2 << 30
"""Copies that nobody uses are kept up to this size in all, for the next segment of the same file."""


@contextlib.contextmanager
def local_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path that can be opened, of a local file or of a copy of a file behind a URL; the copy is kept for the block.

    A file that changes at its address is fetched again.

    Raises:
        MediaError: the file does not exist, is empty, or cannot be fetched. A MediaError that the block raises about
            a copy names the address instead.
    """
    address = os.fspath(path)
    if not is_url(address):
        yield existing_file(path)
        return
    copy = _COPIES.take(address)
    try:
        yield copy.path
    except MediaError as error:
        raise MediaError(str(error).replace(str(copy.path), address)) from error
    finally:
        _COPIES.give_back(copy)


@dataclass
class _Copy:
    path: Path
    users: int = 0
    size: int = 0
    whole: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Copies:
    """Copies of one process, the least recently used first."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._copies: OrderedDict[tuple[str, str], _Copy] = OrderedDict()
        self._number = 0

    def take(self, url: str) -> _Copy:
        """A whole copy, which stays until it is given back."""
        if self._process != os.getpid():
            # a forked process must not delete what its parent reads
            self._start()
        system, place = filesystem(url, MediaError)
        if "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
            return _Copy(existing_file(place), whole=True)
        with _explain(url):
            version = str(system.ukey(place))
        with self._lock:
            copy = self._copies.get((url, version))
            if copy is None:
                copy = self._copies[url, version] = _Copy(self._new_path())
            copy.users += 1
            self._copies.move_to_end((url, version))
        try:
            with copy.lock:
                if not copy.whole:
                    with _explain(url):
                        system.get_file(place, str(copy.path))
                    copy.size = copy.path.stat().st_size
                    copy.whole = True
            if not copy.size:
                raise MediaError(f"{url} is empty (0 bytes). Restore it from its source or leave the clip out.")
        except BaseException:
            self.give_back(copy)
            raise
        return copy

    def give_back(self, copy: _Copy) -> None:
        """Say that a copy is no longer used; the oldest unused ones go where all take too much room."""
        with self._lock:
            copy.users -= 1
            total = sum(c.size for c in self._copies.values())
            for key, one in list(self._copies.items()):
                if one.users == 0 and (total > CACHE_BYTES or not one.whole):
                    del self._copies[key]
                    one.path.unlink(missing_ok=True)
                    total -= one.size

    def clear(self) -> None:
        """Delete all copies."""
        if self._process == os.getpid() and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._start()

    def _new_path(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mmssl-media-"))
        self._number += 1
        return self._folder / str(self._number)


@contextlib.contextmanager
def _explain(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MediaError(f"{url} does not exist. Check the address, and whether the corpus is complete.") from error
    except Exception as error:  # every file system raises errors of its own
        raise MediaError(
            f"{url} cannot be fetched: {error!r}. Check the address, the network and the rights."
        ) from error


_COPIES = _Copies()
atexit.register(_COPIES.clear)
