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
from tubelet.restore.scene import FrameTape, SegmentFrames, SegmentStream, scene_detector
from tubelet.restore.tiling import Hidden
from tubelet.types import Frame
from tubelet.video.reader import Span, open_reader

__all__ = [
    "FrameSink",
    "Part",
    "Segment",
    "find_segments",
    "open_segment",
    "restore_segment",
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
    detect = starts_scene or scene_detector(plan.contract)
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
    with open_reader(
        src, start_s=start_s, duration_s=duration_s, gamut="keep", span=span
    ) as reader:
        tape = FrameTape(
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
