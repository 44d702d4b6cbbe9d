"""Import torch quickly, keep freed memory in the process, and let waiting threads block soon."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from contextlib import contextmanager

from tubelet.malloc import retain_freed_memory

__all__ = ["loading"]

_SPIN_COUNT = "3000"
"""How often a thread of GNU's OpenMP looks for work before it blocks. By default threads spin for
about as long as a layer takes, and take the core of the encoder; threads that block at once make
BasicVSR a fifth slower (docs/log/2026-11-30.md)."""


@contextmanager
def loading() -> Generator[None]:
    """Import torch and the modules that depend on it inside this context.

    The garbage collector is disabled during the import, and the imported objects are excluded from
    later collections: traversing them took a fifth of the import and two thirds of the exit. Freed
    memory stays with the process, because every frame allocates the same buffers again.
    """
    retain_freed_memory()
    # OpenMP reads the variables once, when torch loads it. A choice of the user takes precedence.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
