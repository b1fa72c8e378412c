"""Locks on a store's folder that a killed process cannot leave behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from mmssl.errors import StoreError


class FolderLock:
    """An advisory lock on a file in a folder; the system releases it when its process ends, however it ends.

    Use as a context manager.

    Args:
        folder: an existing folder.
        name: what is locked; processes that lock different names do not exclude each other.
        shared: let others that also ask for a shared lock in.
        wait: seconds to wait for another process to end before refusing.
    """

    def __init__(self, folder: str | Path, name: str, *, shared: bool = False, wait: float = 0.0):
        self.path = Path(folder) / f".lock-{name}"
        self.shared = shared
        self.wait = wait
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StoreError: another process, or another object of this one, holds it.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        mode = fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX
        until = time.monotonic() + self.wait
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                os.close(descriptor)
                raise StoreError(
                    f"{self.path.parent} is being written by {self._holder()}. Wait until that run has ended, "
                    f"stop it, or write into another folder."
                ) from error
        self._descriptor = descriptor
        if not self.shared:
            self._sign(descriptor)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    @staticmethod
    def _sign(descriptor: int) -> None:
        # the text only informs whoever is refused, so a full disk must not stop the run here
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text())
            return f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
