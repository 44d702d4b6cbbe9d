"""Segments: the unit of work below a video. Each is restored by itself, in any order, by any process.

    video     |-- scene --|- scene -|----------------- long scene -----------------|-- scene --|
    segments  |--------- 0 ---------|----------- 1 -----------|--------- 2 --------|---- 3 ----|
                                    reads         ... context |--------- 2 --------|

A segment ends at a cut, once it has the plan's `min_segment_frames`, or inside a scene when it has `segment_frames`.
There it is read with the context that the contract asks for: neighbors of a window model, warm-up frames of a recurrent
one. An online model needs no warm-up where the state of the segment before is at hand.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tubelet.restore.engine import Engine
from tubelet.restore.plan import Plan
from tubelet.restore.rate import double_rate
from tubelet.restore.scene import SceneFrames
from tubelet.restore.tiling import Hidden
from tubelet.types import Frame
from tubelet.video.reader import Span, open_reader
from tubelet.video.scenes import CutDetector

__all__ = [
    "FrameSink",
    "Part",
    "Segment",
    "SegmentFrames",
    "SegmentStream",
    "find_segments",
    "open_segment",
    "restore_segment",
    "scene_detector",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A span of the input that is restored by itself. Frames are numbered from the first that is read of the video."""

    index: int
    """Number of the segment, from 0."""
    scene_start: int
    """First frame of the scene in which it starts."""
    start: int
    """First frame of the segment."""
    stop: int
    """First frame after the segment."""
    read_start: int
    """First frame that is read: context comes before `start`."""
    read_start_pts: int
    """Time of that frame, in ticks of the input."""
    read_stop_pts: int | None
    """Time of the first frame behind the context that comes after `stop`; None reads to the end."""
    cuts: tuple[int, ...]
    """Frames inside the segment with which a scene starts."""
    reaches_scene_end: bool
    """Whether the frames that are read reach to the end of the last scene."""
    stop_pts: int | None
    """Time of frame `stop`; None at the end of the video."""
    may_seek: bool
    """Whether the reader may seek to the segment; otherwise it decodes from the beginning of the video."""


@dataclass(frozen=True, slots=True)
class Part:
    """What `restore_segment` leaves behind: the frames are with the sink."""

    frames: int
    """Frames given to the sink."""
    hidden: Hidden
    """State of an online model after the last frame; None for other kinds."""


class FrameSink(Protocol):
    """Takes the restored frames of one segment: a `VideoEncoder`, or what hands them to one."""

    def write(self, frame: Frame) -> None:
        """Take the next frame."""
        ...

    def finish(self, next_s: Fraction | None = None) -> None:
        """End the segment; `next_s` is the time of the first frame of the next one, None at the end of the video."""
        ...


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
        tape: _Tape,
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
            is_cut = frame is not None and position > self.last_scene_start and self._tape.is_cut(position)
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


def restore_segment(
    frames: SegmentFrames,
    engine: Engine,
    sink: FrameSink,
    *,
    hidden: Hidden = None,
    on_frame: Callable[[Frame], None] | None = None,
) -> Part:
    """Restore one segment under the plan that the engine follows.

    Args:
        frames: of the segment.
        engine: with its model; `engine.follow(plan)` comes first.
        sink: gets the restored frames.
        hidden: state of an online model after the frame before the first one, where that is inside the same scene.
        on_frame: called after each frame that the sink took.

    Raises:
        ResourceError: memory does not suffice for the smallest tile on the CPU.
    """
    states = [hidden]

    def restored() -> Iterator[Frame]:
        for scene in frames.scenes():
            states.append((yield from engine.restore_scene(scene, states[0])))
            # Only the first scene goes on from a state.
            states[0] = None

    output: Iterable[Frame] = restored()
    if engine.current_plan.doubles_rate:
        first = 2 * frames.start
        output = double_rate(output, first=first, next_pts=lambda: frames.next_pts)
    count = 0
    for frame in output:
        sink.write(frame)
        count += 1
        if on_frame is not None:
            on_frame(frame)
    next_pts = frames.next_pts
    sink.finish(None if next_pts is None else next_pts * frames.time_base)
    return Part(count, states[-1])


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
        self._tape = _Tape(frames, lambda frame: starts_scene(frame.rgb), keep=keep)

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


class _Tape:
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


def find_segments(
    src: str | Path,
    plan: Plan,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    starts_scene: Callable[[Tensor], bool] | None = None,
) -> list[Segment]:
    """Read a video once and cut it into segments, without restoring anything.

    Args:
        src: as in `open_reader`, but no pipe.
        plan: of its restoration.
        start_s: as in `open_reader`.
        duration_s: as in `open_reader`.
        starts_scene: given each frame's rgb in order, tells whether a new scene starts with it. Default: a
            `CutDetector`.

    Raises:
        InputError: there is nothing that can be decoded.
    """
    detect = starts_scene or scene_detector(plan)
    found: list[tuple[SegmentFrames, int, int]] = []
    with open_reader(src, start_s=start_s, duration_s=duration_s, gamut="keep") as reader:
        for segment in SegmentStream(reader, plan, keeps_state=False, starts_scene=detect):
            scene_start = segment.last_scene_start
            times = [frame.pts for scene in segment.scenes() for frame in scene]
            found.append((segment, scene_start, times[0]))
        may_seek = reader.may_seek
    segments: list[Segment] = []
    for index, (frames, scene_start, read_start_pts) in enumerate(found):
        assert frames.stop is not None
        segments.append(
            Segment(
                index=index,
                scene_start=scene_start,
                start=frames.start,
                stop=frames.stop,
                cuts=tuple(frames.cuts),
                read_start=frames.read_start,
                read_start_pts=read_start_pts,
                read_stop_pts=frames.read_stop_pts,
                reaches_scene_end=frames.reaches_scene_end,
                stop_pts=frames.next_pts,
                may_seek=may_seek,
            )
        )
    return segments


def scene_detector(plan: Plan) -> Callable[[Tensor], bool]:
    """Make what finds the scenes; models that see single frames need none."""
    if plan.contract.temporal.kind == "frame":
        return lambda _: False
    return CutDetector().is_cut


@contextmanager
def open_segment(
    src: str | Path,
    segment: Segment,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Generator[SegmentFrames]:
    """Open the frames of a segment.

    Args:
        src: as for `find_segments`.
        segment: as `find_segments` gave it.
        start_s: as for `find_segments`.
        duration_s: as for `find_segments`.
    """
    span = Span(
        start=segment.read_start_pts,
        stop=segment.read_stop_pts,
        first_index=segment.read_start,
        may_seek=segment.may_seek,
    )
    with open_reader(src, start_s=start_s, duration_s=duration_s, gamut="keep", span=span) as reader:
        tape = _Tape(
            reader,
            lambda frame: frame.index in segment.cuts,
            first=segment.read_start,
            ends_scene=segment.reaches_scene_end,
        )
        frames = SegmentFrames(
            tape,
            scene_start=segment.scene_start,
            read_start=segment.read_start,
            start=segment.start,
            ends_before=lambda number: number == segment.stop,
            after=sys.maxsize,  # the span ends with the context
        )
        frames.next_pts = segment.stop_pts
        frames.time_base = reader.info.time_base
        if segment.stop_pts is None:
            # Other segments whose context reaches to the end find the same damage.
            frames.problems = reader.problems
        yield frames
