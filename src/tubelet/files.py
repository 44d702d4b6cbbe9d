"""Write files atomically: completely, or not at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write"]


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
