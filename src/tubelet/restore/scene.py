"""Frames scene by scene: a scene, a part of one with its context, and the segments into which a stream is cut.

stream ── FrameTape ── SegmentStream ── SegmentFrames ── SceneFrames ── engine
by number    ends segments    ends scenes      wanted, or context
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial

from torch import Tensor

from tubelet.models.architecture import Contract
from tubelet.restore.plan import Plan
from tubelet.types import Frame
from tubelet.video.scenes import CutDetector

__all__ = ["FrameTape", "SceneFrames", "SegmentFrames", "SegmentStream", "scene_detector"]


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


class SegmentFrames:
    """Frames of one segment with their context, scene by scene.

    Args:
        tape: the frames, by number.
        scene_start: first frame of the scene in which the segment starts.
        read_start: first frame that is read.
        start: first wanted frame.
        ends_before: tells whether the segment ends before a frame that was read.
        after: frames of context behind the segment, within the scene.

    Attributes:
        start: as given.
        stop: frame behind the last wanted one; known when the frames were read, as all that follows.
        cuts: frames inside the segment with which a scene starts.
        last_scene_start: first frame of the scene in which it ends.
        reaches_scene_end: whether the frames that were read reach to the end of that scene.
        next_pts: time of frame `stop`, in ticks of `time_base`; None at the end of the video.
        read_stop_pts: time of the frame behind those that were read.
        time_base: seconds per tick.
        problems: damage of the video that came to light, a line each.
    """

    def __init__(
        self,
        tape: FrameTape,
        *,
        scene_start: int,
        read_start: int,
        start: int,
        ends_before: Callable[[int], bool],
        after: int,
    ) -> None:
        self.start = start
        self.stop: int | None = None
        self.cuts: list[int] = []
        self.last_scene_start = scene_start
        self.reaches_scene_end = True
        self.next_pts: int | None = None
        self.read_stop_pts: int | None = None
        self.time_base = Fraction(1)
        self.problems: list[str] = []
        self.read_start = read_start
        self._tape = tape
        self._ends_before = ends_before
        self._after = after
        self._position = read_start

    @property
    def continues_scene(self) -> bool:
        """Whether the segment starts inside a scene; ask before its frames are read."""
        return self.start > self.last_scene_start

    def scenes(self) -> Iterator[SceneFrames]:
        """Yield the scenes, the first and the last perhaps in part; use each up before asking for the next."""
        while True:
            scene_start = self.last_scene_start
            scene = SceneFrames(
                (),
                first=self._position - scene_start,
                start=max(self.start, scene_start) - scene_start,
            )
            scene.frames = self._read(scene)
            yield scene
            if self.stop is not None:
                return
            self.last_scene_start = self._position
            self.cuts.append(self._position)

    def _read(self, scene: SceneFrames) -> Iterator[Frame]:
        """Yield the frames of a scene, and tell it before the first unwanted one where the wanted ones stop."""
        while True:
            position = self._position
            frame = self._tape.frame(position)
            is_cut = (
                frame is not None
                and position > self.last_scene_start
                and self._tape.is_cut(position)
            )
            if self.stop is None and self._is_end(position, frame):
                self._end_at(position, frame)
            if self.stop is not None:
                scene.stop = self.stop - self.last_scene_start
            if frame is None or is_cut or self._is_behind_context(position):
                scene.reaches_end = is_cut or (frame is None and self._tape.ends_scene)
                self.reaches_scene_end = scene.reaches_end
                self.read_stop_pts = None if frame is None else frame.pts
                return
            yield frame
            self._position += 1
            self._tape.forget(self._position)

    def _is_end(self, position: int, frame: Frame | None) -> bool:
        return frame is None or (position > self.start and self._ends_before(position))

    def _end_at(self, position: int, frame: Frame | None) -> None:
        """End the segment before a frame; context may follow."""
        self.stop = position
        if frame is not None:
            self.next_pts = frame.pts
            self.time_base = frame.time_base

    def _is_behind_context(self, position: int) -> bool:
        return self.stop is not None and position >= self.stop + self._after


class SegmentStream:
    """Cuts a stream into segments while it passes: for pipes, and for one process that reads once.

    Args:
        frames: of the whole video, in order.
        plan: says how long segments are and which context they get.
        keeps_state: whether the state of an online model goes from one segment to the next, so that no warm-up is
            needed.
        starts_scene: given each frame's rgb in order, tells whether a new scene starts with it.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        plan: Plan,
        *,
        keeps_state: bool,
        starts_scene: Callable[[Tensor], bool],
    ) -> None:
        self._plan = plan
        self._before, self._after = plan.context_frames
        if keeps_state and plan.contract.temporal.kind == "online":
            self._before = 0
        keep = self._before + self._after
        self._tape = FrameTape(frames, lambda frame: starts_scene(frame.rgb), keep=keep)

    def first_s(self) -> Fraction | None:
        """Read the first frame and tell its time in seconds; None where there is none."""
        frame = self._tape.frame(0)
        return None if frame is None else frame.pts * frame.time_base

    def __iter__(self) -> Iterator[SegmentFrames]:
        """Yield the segments; each must be used up before the next is asked for."""
        start = 0
        scene_start = 0
        while self._tape.frame(start) is not None:
            if self._tape.is_cut(start):
                scene_start = start
            segment = SegmentFrames(
                self._tape,
                scene_start=scene_start,
                read_start=max(scene_start, start - self._before),
                start=start,
                ends_before=partial(self._ends, start),
                after=self._after,
            )
            yield segment
            assert segment.stop is not None, "a segment must be used up before the next"
            start = segment.stop
            scene_start = segment.last_scene_start

    def _ends(self, start: int, number: int) -> bool:
        """Tell whether the segment that starts with one frame ends before another."""
        num_frames = number - start
        is_cut = self._tape.is_cut(number)
        if is_cut and num_frames >= self._plan.min_segment_frames:
            return True
        return num_frames >= self._plan.segment_frames


class FrameTape:
    """A stream of which the last frames can be read again, by number.

    Args:
        frames: in order.
        starts_scene: called once for each frame, in order.
        first: number of the first frame.
        keep: frames before the one that is read next that stay.
        ends_scene: whether the last frame ends its scene.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        starts_scene: Callable[[Frame], bool],
        *,
        first: int = 0,
        keep: int = 0,
        ends_scene: bool = True,
    ) -> None:
        self.ends_scene = ends_scene
        self._frames = iter(frames)
        self._starts_scene = starts_scene
        self._held: deque[tuple[Frame, bool]] = deque()
        self._first = first
        self._keep = keep
        self._ended = False

    def frame(self, number: int) -> Frame | None:
        """Return a frame, reading up to it; None behind the last one."""
        while not self._ended and number >= self._first + len(self._held):
            frame = next(self._frames, None)
            if frame is None:
                self._ended = True
                break
            self._held.append((frame, self._starts_scene(frame)))
        place = number - self._first
        return self._held[place][0] if place < len(self._held) else None

    def is_cut(self, number: int) -> bool:
        """Tell whether a scene starts with a frame that was read."""
        return self._held[number - self._first][1]

    def forget(self, number: int) -> None:
        """Let go of the frames that are further before this one than `keep`."""
        while self._first < number - self._keep and self._held:
            self._held.popleft()
            self._first += 1


def scene_detector(contract: Contract) -> Callable[[Tensor], bool]:
    """Make what finds the scenes for a model; those that see single frames need none."""
    if contract.temporal.kind == "frame":
        return lambda _: False
    return CutDetector().is_cut
