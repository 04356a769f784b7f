"""Memory of the C library, kept for the next step instead of given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""What ``mallopt`` calls them, in malloc.h."""
_MIB = 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, what the process frees stays with it; afterwards it is given back to the system.

    glibc returns each large block at once, and the system clears every page of the next one before its first use: on a
    CPU a seventh of SRGAN's step at the paper's sizes. Where steps are alike the most memory stays what it was; where
    sizes differ it grows, by a quarter for a picture in tiles. Other C libraries are left as they are.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # What these are by themselves once a block of 32 MiB was freed; glibc has no way back to before.
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
