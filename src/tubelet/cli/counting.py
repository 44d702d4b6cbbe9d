"""Progress of work that is counted in frames: the same bar, lines and JSON events as `tubelet upscale`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from tubelet.cli.progress import ProgressStyle, show_progress
from tubelet.progress import Ticker

__all__ = ["counting", "frames_of"]


@contextmanager
def counting(style: ProgressStyle, *, label: str, total: int | None) -> Generator[Callable[[], None]]:
    """Show how many frames are done, how fast, and how long it still takes.

    Args:
        style: as in `show_progress`.
        label: what is being made, for a person.
        total: frames to do; None where it is unknown.

    Yields:
        The function to call after each frame.
    """
    with show_progress(style, label=label, json_to=sys.stdout) as show:
        yield Ticker(show, unit="frame", total=total, label=label).tick


def frames_of(sources: Iterable[Path]) -> int | None:
    """Add up the frames of folders, pictures and videos, these by their headers; None where one does not say."""
    from tubelet.data.datasets import count_frames
    from tubelet.video.probe import probe

    total = 0
    for source in sources:
        hint = count_frames(source) or (probe(source).frames_hint if source.is_file() else None)
        if not hint:
            return None
        total += hint
    return total
