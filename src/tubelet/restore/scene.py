"""Frames of a scene, or of a part of one with the frames around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tubelet.types import Frame

__all__ = ["SceneFrames"]


class SceneFrames:
    """Frames that are restored together, and which of them are wanted.

    Frames have positions in their scene, from 0. Those before `start` and from `stop` on are context: the model sees
    them, and their results are dropped.

    Args:
        frames: in order; whoever provides them may set `stop` while they are read, before the first frame behind it.
        first: position of the first frame.
        start: position of the first frame that is wanted.
        stop: position behind the last one; None: all that come are wanted.

    Attributes:
        frames, first, start, stop: as given.
        reaches_end: whether the scene ends with the last of the frames; known when they were read.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        *,
        first: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self.first = first
        self.start = start
        self.stop: int | None = stop
        self.reaches_end = True
        self.frames = frames

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def is_behind(self, position: int) -> bool:
        """Tell whether a frame comes after the last one that is wanted."""
        return self.stop is not None and position >= self.stop

    def wants(self, position: int) -> bool:
        """Tell whether the result of a frame is wanted."""
        return position >= self.start and not self.is_behind(position)
