"""Segments: the unit of work within a video.

    video     |-- scene --|- scene -|----------------- long scene -----------------|-- scene --|
    segments  |--------- 0 ---------|----------- 1 -----------|--------- 2 --------|---- 3 ----|
                                    reads         ... context |--------- 2 --------|

A segment ends at the first cut after the plan's `min_segment_frames`, or inside a scene once it has
`segment_frames`. A segment that starts or ends inside a scene is read with frames beyond that end,
its context: neighbors of a window model, warm-up frames of a recurrent model.

Segments can be restored in any order and by different processes. In order, a recurrent model can
continue from the state of the previous segment instead of reading warm-up frames. Results equal
those of the undivided video if segments end at cuts, for frame and window models, and for recurrent
models that continue from the state. Otherwise they differ slightly after the start of a segment,
and for clip models also before its end.
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

from tubelet.restore.engine import Engine, SceneState
from tubelet.restore.plan import Plan
from tubelet.restore.rate import double_rate
from tubelet.restore.scene import FrameBuffer, SegmentFrames, SegmentStream, scene_detector
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
    """First frame to read; equals `start` if there is no context before it."""
    read_start_pts: int
    """Time of that frame, in units of the time base of the input."""
    read_stop_pts: int | None
    """Time of the first frame that is no longer read; None: read to the end."""
    cuts: tuple[int, ...]
    """Numbers of frames, after `start` and before `stop`, at which a new scene begins."""
    reaches_scene_end: bool
    """Whether the last scene of the segment ends with the last frame read."""
    stop_pts: int | None
    """Time of frame `stop`; None at the end of the video."""
    may_seek: bool
    """Whether the reader may seek to the segment; otherwise it decodes from the start of the
    video."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What `restore_segment` returns, besides the frames that it writes."""

    num_frames: int
    """Number of frames written to the sink."""
    state: SceneState
    """State of a recurrent model after the last frame; None for other kinds."""


class FrameSink(Protocol):
    """Where restored frames go: the encoder, or a queue that feeds it."""

    def write(self, frame: Frame) -> None:
        """Accept the next frame."""
        ...

    def finish(self, next_s: Fraction | None = None) -> None:
        """End the segment.

        Args:
            next_s: Time of the first frame of the next segment, which sets the duration of the last
                frame; None at the end of the video.
        """
        ...


def restore_segment(
    frames: SegmentFrames,
    engine: Engine,
    sink: FrameSink,
    *,
    state: SceneState = None,
    on_frame: Callable[[Frame], None] | None = None,
) -> SegmentResult:
    """Restore one segment under the plan that the engine follows.

    Args:
        frames: Frames of the segment.
        engine: Engine, on which `follow(plan)` was called.
        sink: Accepts the restored frames.
        state: State of a recurrent model at the end of the previous segment, if this segment
            continues its scene; otherwise None.
        on_frame: Called with each frame after it was written.

    Raises:
        ResourceError: Memory does not suffice for the smallest tile on the CPU.
    """
    last_state = state

    # The loop below, and `double_rate`, discard the return value of a generator; so the state goes
    # out through `last_state`.
    def restored() -> Iterator[Frame]:
        nonlocal last_state
        first_state = state
        for scene in frames.scenes():
            last_state = yield from engine.restore_scene(scene, first_state)
            # A cut resets the state.
            first_state = None

    output: Iterable[Frame] = restored()
    if engine.current_plan.doubles_rate:
        output = double_rate(
            output,
            # Each input frame becomes two.
            first=2 * frames.start,
            # Known only after the last frame.
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
    return SegmentResult(num_frames, last_state)


def find_segments(
    src: str | Path,
    plan: Plan,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    starts_scene: Callable[[Tensor], bool] | None = None,
) -> list[Segment]:
    """Decode the whole video once to find its segments.

    Args:
        src: Source as in `open_reader`, but not a pipe.
        plan: Plan of the restoration.
        start_s: Start time as in `open_reader`.
        duration_s: Duration as in `open_reader`.
        starts_scene: Called with the rgb of each frame in order; returns True if the frame starts
            a new scene. Default: `scene_detector`.

    Returns:
        The segments in order; together they cover every frame once.

    Raises:
        InputError: The source cannot be decoded.
    """
    if starts_scene is None:
        starts_scene = scene_detector(plan.contract)
    segments: list[Segment] = []
    with open_reader(src, start_s=start_s, duration_s=duration_s, gamut="keep") as reader:
        # Segments will be restored in any order, so the state of the previous one is not available.
        stream = SegmentStream(reader, plan, keeps_state=False, starts_scene=starts_scene)
        for index, frames in enumerate(stream):
            segments.append(_describe_segment(index, frames))
        # Known only after the last frame.
        may_seek = reader.may_seek
    return [replace(segment, may_seek=may_seek) for segment in segments]


def _describe_segment(index: int, frames: SegmentFrames) -> Segment:
    """Read all frames of a segment, and return its description."""
    # Reading moves this attribute to the start of the last scene.
    scene_start = frames.last_scene_start
    # Reading all frames fills the attributes used below.
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
        # `find_segments` sets it at the end of the video.
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
    """Open the source at a segment and yield its frames, with context.

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
            ends_before=lambda _, number: number == segment.stop,
            # No limit: the reader stops at the end of the context.
            context_after=sys.maxsize,
        )
        frames.next_pts = segment.stop_pts
        frames.time_base = reader.info.time_base
        if segment.stop_pts is None:
            # Damage at the end of the file is reported once, by the last segment.
            frames.problems = reader.problems
        yield frames
