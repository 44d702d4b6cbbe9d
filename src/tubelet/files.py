"""Write files atomically, and let processes exclude each other."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["atomic_write", "file_lock"]

_POLL_S = 0.2


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Write a file under a hidden name, and rename it when the block ends.

    Readers of `path` see its former content until then. If the block fails, no new file is left.

    Args:
        path: Path of the file, whose folder must exist. An existing file is replaced.

    Yields:
        The hidden path in the same folder, to be written in the block.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path, *, waits: bool = True) -> Generator[bool]:
    """Exclude other processes and threads until the block ends; the lock file is removed then.

    The lock of a process that dies is free again.

    Args:
        path: Path of the lock file, whose folder must exist.
        waits: Wait until the lock is free. Otherwise, if another has the lock, the block runs
            without it.

    Yields:
        Whether this has the lock; always True if it waits.
    """
    while True:
        with path.open("a+b") as handle:
            if not _lock(handle, waits=waits):
                yield False
                return
            # The process before removed its lock file, so this may be a lock on a deleted file.
            if not _is_same_file(handle, path):
                continue
            try:
                yield True
            finally:
                with suppress(OSError):
                    path.unlink()
            return


def _is_same_file(handle: IO[bytes], path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: IO[bytes], *, waits: bool) -> bool:
    """Take an exclusive lock on an open file; return whether it was taken."""
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    while True:
        with suppress(OSError):
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        if not waits:
            return False
        time.sleep(_POLL_S)
