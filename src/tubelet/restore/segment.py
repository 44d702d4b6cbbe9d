"""Segments: the unit of work below a video. Each is restored by itself, in any order, by any process.

    video     |---- scene ----|-------------- long scene --------------|-- scene --|
    segments  |------ 0 ------|-------- 1 --------|--------- 2 --------|---- 3 ----|
                              reads   ............[context| 2 |........

A segment ends at a cut, or inside a scene that is longer than the plan's `segment_frames`. There it is read with the
context that the contract asks for: neighbors of a window model, warm-up frames of a recurrent one. An online model
needs no warm-up where the state of the segment before is at hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
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
    """First frame of its scene."""
    start: int
    """First frame of the segment."""
    stop: int
    """Frame behind its last one."""
    read_start: int
    """First frame that is read: context comes before `start`."""
    read_start_pts: int
    """Time of that frame, in ticks of the input."""
    read_stop_pts: int | None
    """Time of the first frame behind the context that comes after `stop`; None reads to the end."""
    reaches_scene_end: bool
    """Whether the frames that are read reach to the end of the scene."""
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


class SegmentFrames(SceneFrames):
    """Frames of one segment with their context.

    Args:
        frames: in order; see `SceneFrames`.
        first_frame: number of the first wanted frame in the video.
        first, start, stop: see `SceneFrames`.

    Attributes:
        next_pts: time of the frame behind the segment, which begins the next one, in ticks of `time_base`; known when
            the frames were read, None at the end of the video.
        time_base: seconds per tick.
        problems: damage of the video that came to light, a line each; complete when the frames were read.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        *,
        first_frame: int = 0,
        first: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(frames, first=first, start=start, stop=stop)
        self.first_frame = first_frame
        self.next_pts: int | None = None
        self.time_base = Fraction(1)
        self.problems: list[str] = []


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
    state: list[Hidden] = []

    def restored() -> Iterator[Frame]:
        state.append((yield from engine.restore_scene(frames, hidden)))

    output: Iterable[Frame] = restored()
    if engine.current_plan.doubles_rate:
        first = 2 * frames.first_frame
        output = double_rate(output, first=first, next_pts=lambda: frames.next_pts)
    count = 0
    for frame in output:
        sink.write(frame)
        count += 1
        if on_frame is not None:
            on_frame(frame)
    next_pts = frames.next_pts
    sink.finish(None if next_pts is None else next_pts * frames.time_base)
    return Part(count, state[0])


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
        self._tape = _Tape(frames, starts_scene)

    def first_s(self) -> Fraction | None:
        """Read the first frame and tell its time in seconds; None where there is none."""
        frame = self._tape.frame(0)
        return None if frame is None else frame.pts * frame.time_base

    def __iter__(self) -> Iterator[_StreamedSegment]:
        """Yield the segments; each must be used up before the next is asked for."""
        start = 0
        scene_start = 0
        while self._tape.frame(start) is not None:
            if self._tape.is_cut(start):
                scene_start = start
            segment = _StreamedSegment(
                self._tape,
                scene_start=scene_start,
                start=start,
                max_frames=self._plan.segment_frames,
                before=self._before,
                after=self._after,
            )
            yield segment
            start = segment.end


class _StreamedSegment(SegmentFrames):
    """A segment whose end is found while it is read."""

    def __init__(self, tape: _Tape, *, scene_start: int, start: int, max_frames: int, before: int, after: int) -> None:
        self.read_start = max(scene_start, start - before)
        super().__init__(
            self._read(),
            first_frame=start,
            first=self.read_start - scene_start,
            start=start - scene_start,
        )
        self.scene_start = scene_start
        self.end = start
        """Number of the frame behind the last one, known when all were read."""
        self.read_stop_pts: int | None = None
        self._tape = tape
        self._max_frames = max_frames
        self._margin = before + after
        self._after = after

    def _read(self) -> Iterator[Frame]:
        position = self.read_start
        while True:
            frame = self._tape.frame(position)
            is_scene_over = frame is None or (position > self.scene_start and self._tape.is_cut(position))
            is_full = position - self.first_frame >= self._max_frames
            if self.stop is None and (is_scene_over or is_full):
                self._end_at(position, frame)
            if is_scene_over or frame is None or self._is_behind_context(position):
                self.reaches_end = is_scene_over
                self.read_stop_pts = None if frame is None else frame.pts
                return
            yield frame
            position += 1
            self._tape.forget(position - self._margin)

    def _end_at(self, position: int, frame: Frame | None) -> None:
        """End the segment before a frame; context may follow."""
        self.stop = position - self.scene_start
        self.end = position
        if frame is not None:
            self.next_pts = frame.pts
            self.time_base = frame.time_base

    def _is_behind_context(self, position: int) -> bool:
        return self.stop is not None and position >= self.end + self._after


class _Tape:
    """A stream of which the last frames can be read again, by number.

    Args:
        frames: in order.
        starts_scene: called once for each frame's rgb, in order.
    """

    def __init__(self, frames: Iterable[Frame], starts_scene: Callable[[Tensor], bool]) -> None:
        self._frames = iter(frames)
        self._starts_scene = starts_scene
        self._held: deque[tuple[Frame, bool]] = deque()
        self._first = 0
        self._ended = False

    def frame(self, number: int) -> Frame | None:
        """Return a frame, reading up to it; None behind the last one."""
        while not self._ended and number >= self._first + len(self._held):
            frame = next(self._frames, None)
            if frame is None:
                self._ended = True
                break
            self._held.append((frame, self._starts_scene(frame.rgb)))
        place = number - self._first
        return self._held[place][0] if place < len(self._held) else None

    def is_cut(self, number: int) -> bool:
        """Tell whether a scene starts with a frame that was read."""
        return self._held[number - self._first][1]

    def forget(self, before: int) -> None:
        """Let go of the frames before a number."""
        while self._first < before and self._held:
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
    found: list[_Bounds] = []
    with open_reader(src, start_s=start_s, duration_s=duration_s, gamut="keep") as reader:
        for frames in SegmentStream(reader, plan, keeps_state=False, starts_scene=detect):
            first: Frame | None = None
            for frame in frames:
                first = first or frame
            assert first is not None
            found.append(_Bounds(frames, first.pts))
        may_seek = reader.may_seek
    return [bounds.segment(index, may_seek) for index, bounds in enumerate(found)]


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What is known of a streamed segment when it has passed."""

    frames: _StreamedSegment
    read_start_pts: int

    def segment(self, index: int, may_seek: bool) -> Segment:
        frames = self.frames
        return Segment(
            index=index,
            scene_start=frames.scene_start,
            start=frames.first_frame,
            stop=frames.end,
            read_start=frames.read_start,
            read_start_pts=self.read_start_pts,
            read_stop_pts=frames.read_stop_pts,
            reaches_scene_end=frames.reaches_end,
            stop_pts=frames.next_pts,
            may_seek=may_seek,
        )


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
        frames = SegmentFrames(
            reader,
            first_frame=segment.start,
            first=segment.read_start - segment.scene_start,
            start=segment.start - segment.scene_start,
            stop=segment.stop - segment.scene_start,
        )
        frames.reaches_end = segment.reaches_scene_end
        frames.next_pts = segment.stop_pts
        frames.time_base = reader.info.time_base
        if segment.stop_pts is None:
            # Other segments whose context reaches to the end find the same damage.
            frames.problems = reader.problems
        yield frames
