"""The C library's allocator, set for what an encoder asks of it."""

from __future__ import annotations

import ctypes
import ctypes.util

# from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, instead of giving each large block back to the system.

    An encoder frees and asks again for the same tens of megabytes in every layer; by default glibc maps and unmaps
    them each time, and every page is cleared anew. Only for processes that do nothing but extract: what is kept is
    lost to others until the process ends.

    Returns:
        Whether the C library is glibc and took the settings.
    """
    try:
        library = ctypes.CDLL(ctypes.util.find_library("c"))
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        return bool(library.mallopt(_M_MMAP_MAX, 0)) and bool(library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (AttributeError, OSError, TypeError):
        return False
