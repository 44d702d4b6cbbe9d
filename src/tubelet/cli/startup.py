"""Load torch quickly, and let the process keep the memory that every frame needs again."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

from tubelet.malloc import retain_freed_memory

__all__ = ["loading"]


@contextmanager
def loading() -> Generator[None]:
    """Import torch and what hangs on it inside this context.

    The garbage collector is off during the import, and the imported objects are left out of later collections:
    searching them took a fifth of the import and two thirds of the exit. Freed memory stays with the process.
    """
    retain_freed_memory()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
