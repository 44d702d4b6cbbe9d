"""Cut the frames of a stream: into scenes, neighborhoods and windows, holding no more than needed.

scene         frames between two cuts
neighborhood  a frame with those around it (window and online models)
window        consecutive frames that a clip model sees at once; a Span in time
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Generic, TypeVar

from tubelet.restore.tiles import TileSpan

__all__ = ["WindowCutter", "cut_windows", "neighborhoods", "scenes"]

T = TypeVar("T")


def scenes(frames: Iterable[T], starts_scene: Callable[[T], bool]) -> Iterator[Iterator[T]]:
    """Split a stream at its cuts, lazily: use each scene up before asking for the next.

    Args:
        frames: the stream.
        starts_scene: called once for each frame in order; true if a new scene starts with it.
    """
    number = 0

    def scene_number(frame: T) -> int:
        nonlocal number
        number += starts_scene(frame)
        return number

    for _, scene in groupby(frames, key=scene_number):
        yield scene


def neighborhoods(scene: Iterable[T], *, before: int, after: int) -> Iterator[tuple[T, ...]]:
    """Yield each frame of a scene with those around it; the ends repeat the first or last frame.

    Args:
        scene: frames in order.
        before: neighbors before the frame.
        after: neighbors after the frame.

    Yields:
        `before + 1 + after` frames; the one at `before` is the frame itself.
    """
    size = before + 1 + after
    around: deque[T] = deque(maxlen=size)
    seen = 0
    for frame in scene:
        # The first frame fills the whole neighborhood: it stands for those before it.
        around.extend([frame] * (1 if seen else size))
        seen += 1
        if seen > after:
            yield tuple(around)
    if not seen:
        return
    for behind in range(1, after + 1):
        around.append(around[-1])
        if seen + behind > after:
            yield tuple(around)


class WindowCutter(Generic[T]):
    """Cuts a scene of unknown length into overlapping windows, whose size may change on the way.

    It holds the frames of one window and the next frame, never the scene.

    Args:
        frames: of the scene, in order.
    """

    def __init__(self, frames: Iterable[T]) -> None:
        self._frames = iter(frames)
        self._held: deque[T] = deque()
        self._first = 0  # number of the first frame that is held
        self._ended = False

    def cut(self, done: int, *, size: int, overlap: int) -> tuple[list[T], TileSpan] | None:
        """Cut the window that gives the frames from `done` on.

        Args:
            done: frames whose results are there already; never less than in the last call.
            size: frames of a window.
            overlap: frames that consecutive windows share, below `size`. The seam lies in their
                middle. The last window begins earlier, so that it has `size` frames too.

        Returns:
            The frames of the window, and where they lie in the scene; None where all are done.
        """
        start = max(0, done - overlap // 2)
        self._read_until(start + size + 1, start=start, size=size)
        end = self._first + len(self._held)
        if done >= end:
            return None
        stop, keep_stop = start + size, start + size - (overlap + 1) // 2
        if end <= stop:
            # The scene ends within this window.
            stop = keep_stop = end
            start = max(self._first, min(start, end - size))
        window = [self._held[t - self._first] for t in range(start, stop)]
        return window, TileSpan(start, stop, done, keep_stop)

    def _read_until(self, end: int, *, start: int, size: int) -> None:
        """Read frames up to number `end`: one more than the window, to know whether the scene goes on."""
        while not self._ended and self._first + len(self._held) < end:
            frame = next(self._frames, None)
            if frame is None:
                self._ended = True
                return
            self._held.append(frame)
            # A last window begins earlier, so the frames of a window are held whatever comes.
            while len(self._held) > size + 1 and self._first < start:
                self._held.popleft()
                self._first += 1


def cut_windows(
    frames: Iterable[T], *, size: int, overlap: int
) -> Iterator[tuple[list[T], TileSpan]]:
    """Yield all windows of a scene; see `WindowCutter.cut`."""
    cutter = WindowCutter(frames)
    done = 0
    while (cut := cutter.cut(done, size=size, overlap=overlap)) is not None:
        yield cut
        done = cut[1].keep_stop
