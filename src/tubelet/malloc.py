"""Let the process keep freed memory for its next tensors."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["retain_freed_memory"]

# Parameters of mallopt, from malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_RETAINED_BYTES = 1 << 30
_HEAP_BLOCK_BYTES = 32 << 20
"""Larger blocks are mapped anew each time; it is the maximum that glibc accepts."""


@functools.cache
def retain_freed_memory() -> None:
    """Let this process keep up to one gibibyte of freed memory; without glibc, do nothing.

    By default, large blocks return to the operating system when they are freed, and every layer of
    a network pays for fresh pages: about a tenth of the time of a convolution, and a similar share
    for the buffers of a frame.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        # The C library is not glibc: musl, macOS, Windows.
        return
    mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _RETAINED_BYTES)
