"""The memory that a process keeps when it is freed."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["retain_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_RETAINED_BYTES = 1 << 30
_HEAP_BLOCK_BYTES = 32 << 20  # larger blocks are mapped anew each time; the most that glibc accepts


@functools.cache
def retain_freed_memory() -> None:
    """Let this process keep up to a gibibyte of freed memory for its next tensors; without glibc, do nothing.

    By default large blocks go back to the system when they are freed, and every layer of a network pays for fresh
    pages: around a tenth of the time of a convolution, and as much of a frame's buffers.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: musl, macOS, Windows
        return
    mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _RETAINED_BYTES)
