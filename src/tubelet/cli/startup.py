"""Load torch quickly, and let the process keep the memory that every frame needs again."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["loading"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 512 << 20
_MAPPED_BYTES = 32 << 20  # the most that glibc accepts


@contextmanager
def loading() -> Generator[None]:
    """Import torch and what hangs on it inside this context.

    The garbage collector rests meanwhile, and leaves those objects, all there to stay, alone for good: searching
    them took a fifth of the import and two thirds of the exit. With glibc, up to 512 MiB that are freed stay with the
    process: returning a frame's buffers to the system and asking for them again cost a tenth of the time.
    """
    _keep_freed_memory()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _keep_freed_memory() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: musl, macOS, Windows
        return
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
