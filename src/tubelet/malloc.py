"""Let the process keep freed memory for its next tensors, and return it between larger works."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

__all__ = ["retain_freed_memory", "return_freed_memory"]

# Parameters of mallopt, from malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_RETAINED_BYTES = 1 << 30


@functools.cache
def retain_freed_memory() -> None:
    """Let this process keep the memory of freed blocks; without glibc, do nothing.

    By default, large blocks return to the operating system when they are freed, and every layer of
    a network pays for fresh pages: about a tenth of the time of a convolution, a similar share for
    the buffers of a frame, and half of the time where the features of a layer exceed 32 MiB.

    The setting holds until the process ends. It is for programs that allocate the same sizes again
    and again; others may hold more memory than they use, until `return_freed_memory`.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return
    # No block gets a mapping of its own, and up to a gibibyte stays at the end of the heap.
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _RETAINED_BYTES)


def return_freed_memory() -> None:
    """Return all freed memory to the operating system; without glibc, do nothing."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any:
    """Find a function of glibc; None with another C library: musl, macOS, Windows."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
