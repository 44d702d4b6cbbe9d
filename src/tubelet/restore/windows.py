"""Cut a stream of frames into scenes, neighborhoods and windows, holding no more than necessary.

scene         frames between two cuts
neighborhood  a frame with its neighbors on both sides (window and online models)
window        consecutive frames that a clip model sees at once; a TileSpan in time
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Generic, TypeVar

from tubelet.restore.tiles import TileSpan
from tubelet.restore.window_plan import WindowPlan

__all__ = ["WindowCutter", "cut_windows", "neighborhoods", "scenes"]

T = TypeVar("T")


def scenes(frames: Iterable[T], starts_scene: Callable[[T], bool]) -> Iterator[Iterator[T]]:
    """Split a stream at its cuts, lazily: exhaust each scene before the next one is requested.

    Args:
        frames: Frames of the stream in order.
        starts_scene: Called once with each frame, in order; returns whether it starts a scene.
    """
    scene_number = 0

    def number_of(frame: T) -> int:
        nonlocal scene_number
        if starts_scene(frame):
            scene_number += 1
        return scene_number

    for _, scene in groupby(frames, key=number_of):
        yield scene


def neighborhoods(
    scene: Iterable[T],
    *,
    before: int,
    after: int,
) -> Iterator[tuple[T, ...]]:
    """Yield each frame of a scene with its neighbors; the first and last frames are repeated.

    Args:
        scene: Frames in order.
        before: Number of neighbors before the frame.
        after: Number of neighbors after the frame.

    Yields:
        `before + 1 + after` frames; the one at index `before` is the frame itself.
    """
    size = before + 1 + after
    window: deque[T] = deque(maxlen=size)
    num_read = 0
    for frame in scene:
        if num_read == 0:
            # The first frame also takes the places of the frames before it.
            window.extend([frame] * size)
        else:
            window.append(frame)
        num_read += 1
        # The neighborhood of a frame is complete once `after` more frames were read.
        if num_read > after:
            yield tuple(window)
    if num_read == 0:
        return
    # The last frames have no successors: the last frame takes their places.
    for num_repeats in range(1, after + 1):
        window.append(window[-1])
        if num_read + num_repeats > after:
            yield tuple(window)


class WindowCutter(Generic[T]):
    """Cuts a scene of unknown length into windows whose size may change.

    It holds the frames of one window and the next frame, never the scene.

    Args:
        frames: Frames of the scene in order.
    """

    def __init__(self, frames: Iterable[T]) -> None:
        self._frames = iter(frames)
        # Frames of the scene from number `_first` on.
        self._buffer: deque[T] = deque()
        self._first = 0
        self._ended = False

    def cut(self, done: int, window: WindowPlan) -> tuple[list[T], TileSpan] | None:
        """Cut the window whose results start at frame `done`.

        Args:
            done: Number of frames that have results; it never decreases from call to call.
            window: Size of the window, and how it is joined to the next. At the end of the scene,
                a window with look-ahead becomes shorter; one that overlaps starts earlier, so that
                it has all its frames.

        Returns:
            The frames of the window, and its position in the scene; None if all frames have
            results.
        """
        size = window.frames
        before, after = window.context_frames
        start = max(0, done - before)
        # One frame more than the window shows whether the scene continues.
        self._read_until(start + size + 1, start=start, size=size)
        end = self._first + len(self._buffer)
        if done >= end:
            return None

        stop = start + size
        keep_stop = stop - after
        if end <= stop:
            # The scene ends in this window, so there is no seam after it.
            stop = keep_stop = end
            if not window.continues:
                start = max(self._first, min(start, end - size))
        frames = [self._buffer[t - self._first] for t in range(start, stop)]
        return frames, TileSpan(start, stop, done, keep_stop)

    def _read_until(
        self,
        end: int,
        *,
        start: int,
        size: int,
    ) -> None:
        """Read the frames before number `end`, and drop those that no window needs any more."""
        while not self._ended and self._first + len(self._buffer) < end:
            frame = next(self._frames, None)
            if frame is None:
                self._ended = True
                return
            self._buffer.append(frame)
            # The last window starts earlier, so the frames of a whole window stay in any case.
            while len(self._buffer) > size + 1 and self._first < start:
                self._buffer.popleft()
                self._first += 1


def cut_windows(frames: Iterable[T], window: WindowPlan) -> Iterator[tuple[list[T], TileSpan]]:
    """Yield all windows of a scene; see `WindowCutter.cut`."""
    cutter = WindowCutter(frames)
    cut = cutter.cut(0, window)
    while cut is not None:
        yield cut
        _, span = cut
        cut = cutter.cut(span.keep_stop, window)
