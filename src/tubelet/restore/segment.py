"""Segments: the unit of work within a video. Each can be restored in any order, by any process.

    video     |-- scene --|- scene -|----------------- long scene -----------------|-- scene --|
    segments  |--------- 0 ---------|----------- 1 -----------|--------- 2 --------|---- 3 ----|
                                    reads         ... context |--------- 2 --------|

A segment ends at the first cut after the plan's `min_segment_frames`, or inside a scene once it has
`segment_frames`. In the second case it is read with the context that the contract requires:
neighbors of a window model, warm-up frames of a recurrent model. An online model needs no warm-up
if the state after the segment before is available.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tubelet.restore.engine import Engine
from tubelet.restore.plan import Plan
from tubelet.restore.rate import double_rate
from tubelet.restore.scene import FrameBuffer, SegmentFrames, SegmentStream, scene_detector
from tubelet.restore.tiling import Hidden
from tubelet.types import Frame
from tubelet.video.reader import Span, open_reader

__all__ = [
    "FrameSink",
    "Segment",
    "SegmentResult",
    "find_segments",
    "open_segment",
    "restore_segment",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A span of the input that is restored independently of the others.

    Frames are numbered from the first frame that is read of the video.
    """

    index: int
    """Number of the segment, from 0."""
    scene_start: int
    """First frame of the scene in which the segment starts."""
    start: int
    """First frame of the segment."""
    stop: int
    """First frame after the segment."""
    read_start: int
    """First frame to read: the context before `start` begins with it."""
    read_start_pts: int
    """Time of that frame, in ticks of the input."""
    read_stop_pts: int | None
    """Time of the first frame after the context that follows `stop`; None reads to the end."""
    cuts: tuple[int, ...]
    """Frames inside the segment that start a scene."""
    reaches_scene_end: bool
    """Whether the frames to read reach to the end of the last scene."""
    stop_pts: int | None
    """Time of frame `stop`; None at the end of the video."""
    may_seek: bool
    """Whether the reader may seek to the segment; otherwise it decodes from the start of the
    video."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """Outcome of `restore_segment`, which writes the frames to its sink."""

    num_frames: int
    """Number of frames written to the sink."""
    hidden: Hidden
    """State of an online model after the last frame; None for other kinds."""


class FrameSink(Protocol):
    """Takes the restored frames of one segment: a `VideoEncoder`, or a queue in front of one."""

    def write(self, frame: Frame) -> None:
        """Take the next frame."""
        ...

    def finish(self, next_s: Fraction | None = None) -> None:
        """End the segment.

        Args:
            next_s: Time of the first frame of the next segment; None at the end of the video.
        """
        ...


def restore_segment(
    frames: SegmentFrames,
    engine: Engine,
    sink: FrameSink,
    *,
    hidden: Hidden = None,
    on_frame: Callable[[Frame], None] | None = None,
) -> SegmentResult:
    """Restore one segment under the plan that the engine follows.

    Args:
        frames: Frames of the segment.
        engine: Engine with its model, after `engine.follow(plan)`.
        sink: Takes the restored frames.
        hidden: State of an online model after the frame before the segment, if that frame is in the
            same scene.
        on_frame: Called after each frame that was written to the sink.

    Raises:
        ResourceError: Memory does not suffice for the smallest tile on the CPU.
    """
    last_hidden = hidden

    # A generator has no other way to return the state than a variable of the function around it.
    def restored() -> Iterator[Frame]:
        nonlocal last_hidden
        # Only the first scene continues from a state.
        first_hidden = hidden
        for scene in frames.scenes():
            last_hidden = yield from engine.restore_scene(scene, first_hidden)
            first_hidden = None

    output: Iterable[Frame] = restored()
    if engine.current_plan.doubles_rate:
        output = double_rate(
            output,
            first=2 * frames.start,
            # Valid only after the frames were read.
            next_pts=lambda: frames.next_pts,
        )
    num_frames = 0
    for frame in output:
        sink.write(frame)
        num_frames += 1
        if on_frame is not None:
            on_frame(frame)
    next_s = None
    if frames.next_pts is not None:
        next_s = frames.next_pts * frames.time_base
    sink.finish(next_s)
    return SegmentResult(num_frames, last_hidden)


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
        src: Source as in `open_reader`, but not a pipe.
        plan: Plan of the restoration.
        start_s: Start time as in `open_reader`.
        duration_s: Duration as in `open_reader`.
        starts_scene: Called with the rgb of each frame in order; returns True if the frame starts
            a new scene. Default: `scene_detector`.

    Raises:
        InputError: The source cannot be decoded.
    """
    detect_cut = starts_scene or scene_detector(plan.contract)
    segments: list[Segment] = []
    with open_reader(src, start_s=start_s, duration_s=duration_s, gamut="keep") as reader:
        stream = SegmentStream(reader, plan, keeps_state=False, starts_scene=detect_cut)
        for index, frames in enumerate(stream):
            segments.append(_read_segment(index, frames))
        # Only the reader of the whole video knows whether seeking is safe.
        may_seek = reader.may_seek
    return [replace(segment, may_seek=may_seek) for segment in segments]


def _read_segment(index: int, frames: SegmentFrames) -> Segment:
    """Read the frames of a segment, and describe it."""
    # This attribute moves on while the frames are read.
    scene_start = frames.last_scene_start
    read_start_pts: int | None = None
    for scene in frames.scenes():
        for frame in scene:
            if read_start_pts is None:
                read_start_pts = frame.pts
    assert read_start_pts is not None
    assert frames.stop is not None
    return Segment(
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
        may_seek=False,
    )


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
        src: Source as for `find_segments`.
        segment: Segment that `find_segments` returned.
        start_s: Start time as for `find_segments`.
        duration_s: Duration as for `find_segments`.
    """
    span = Span(
        start=segment.read_start_pts,
        stop=segment.read_stop_pts,
        first_index=segment.read_start,
        may_seek=segment.may_seek,
    )
    with open_reader(
        src,
        start_s=start_s,
        duration_s=duration_s,
        gamut="keep",
        span=span,
    ) as reader:
        buffer = FrameBuffer(
            reader,
            lambda frame: frame.index in segment.cuts,
            first=segment.read_start,
            ends_scene=segment.reaches_scene_end,
        )
        frames = SegmentFrames(
            buffer,
            scene_start=segment.scene_start,
            read_start=segment.read_start,
            start=segment.start,
            ends_before=lambda number: number == segment.stop,
            # The span of the reader ends with the context.
            context_after=sys.maxsize,
        )
        frames.next_pts = segment.stop_pts
        frames.time_base = reader.info.time_base
        if segment.stop_pts is None:
            # Other segments whose context reaches to the end find the same damage.
            frames.problems = reader.problems
        yield frames
