"""A feature store behind a URL (s3://, gs://, memory:// ...): a working copy of its index, and shards as they are used.

A shard is written locally and uploaded whole, its index part after it, as in a folder. Object stores show an upload
when it is complete; where a file system shows it earlier, the checksum in an index part tells that it is cut, and its
clips count as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmssl.errors import StoreError
from mmssl.files import filesystem, is_url

_BROKEN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")


class RemoteFolder:
    """A folder behind a URL, and the working copy of it on this machine, which goes when this object does.

    Args:
        url: of the folder, as fsspec takes it; it need not exist.

    Attributes:
        url: of the folder.
        folder: of the working copy; a temporary one of this process.

    Raises:
        StoreError: the protocol is unknown, or its package is missing.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._system, place = filesystem(self.url, StoreError)
        self._place = place.rstrip("/")
        self.folder = Path(tempfile.mkdtemp(prefix="mmssl-store-"))
        weakref.finalize(self, _remove_folder, self.folder, os.getpid())

    @property
    def lock_folder(self) -> Path:
        """Where runs of this machine lock the URL; object stores have no locks that a kill would release."""
        name = hashlib.sha256(self.url.encode()).hexdigest()[:32]
        folder = Path(tempfile.gettempdir()) / f"mmssl-locks-{os.getuid()}" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def names(self) -> list[str]:
        """Names of the files in the folder; none where it does not exist."""
        return [Path(entry["name"]).name for entry in self._list()]

    def size(self) -> int:
        """Bytes of all files in the folder."""
        return sum(entry.get("size") or 0 for entry in self._list())

    def get(self, name: str, *, fresh: bool = False) -> Path:
        """Path of the working copy of a file, which is fetched where it is not there.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: it cannot be fetched.
        """
        path = self.folder / name
        if fresh or not path.exists():
            temporary = self.folder / f".{name}.part"
            with self._explain(f"fetch {name}"):
                self._system.get_file(f"{self._place}/{name}", str(temporary))
            temporary.replace(path)
        return path

    def put(self, name: str) -> None:
        """Upload a file of the working copy.

        Raises:
            StoreError: it cannot be uploaded, or is of another size there.
        """
        path = self.folder / name
        with self._explain(f"upload {name}"):
            self._system.makedirs(self._place, exist_ok=True)
            self._system.put_file(str(path), f"{self._place}/{name}")
            self._system.invalidate_cache()
            size = self._system.info(f"{self._place}/{name}")["size"]
        if size != path.stat().st_size:
            raise StoreError(f"{self.url}/{name} has {size} bytes after the upload instead of {path.stat().st_size}.")

    def delete(self, name: str) -> None:
        """Delete a file there and here; harmless where there is none."""
        (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError), self._explain(f"delete {name}"):
            self._system.rm_file(f"{self._place}/{name}")

    def _list(self) -> list[dict[str, Any]]:
        try:
            with self._explain("list it"):
                self._system.invalidate_cache()
                return [entry for entry in self._system.ls(self._place, detail=True) if entry["type"] == "file"]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _explain(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system raises errors of its own
            raise StoreError(
                f"{self.url}: cannot {what}: {error!r}. Check the address, the rights and the network; what was "
                f"finished is whole, and the same command goes on from there."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]


def open_folder(folder: str | os.PathLike[str]) -> tuple[Path, RemoteFolder | None]:
    """The folder to work in, and what it stands for where a URL is given; file:// is a folder.

    Raises:
        StoreError: the protocol is unknown, or its package is missing.
    """
    if not is_url(folder):
        if isinstance(folder, Path) and _BROKEN_URL.match(str(folder)):
            raise StoreError(
                f"{folder} was a URL before it became a Path, which drops a slash: hand it over as a string."
            )
        return Path(folder), None
    url = os.fspath(folder)
    if url.lower().startswith(("file://", "local://")):
        return Path(filesystem(url, StoreError)[1]), None
    remote = RemoteFolder(url)
    return remote.folder, remote


def _remove_folder(folder: Path, process: int) -> None:
    # a forked process must not delete what its parent reads
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
