"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Write a file under a hidden name, and give it its own name when the block ends.

    Whoever opens `path` meanwhile sees what was there before. Where the block fails, nothing new is left.

    Args:
        path: of the file; its folder must exist. An existing file is replaced.

    Yields:
        The hidden path beside it, to be written in the block.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
