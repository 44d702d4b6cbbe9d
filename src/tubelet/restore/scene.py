"""Frames scene by scene: the scenes of a segment, and the segments of a stream.

    stream ── FrameBuffer ── SegmentStream ── SegmentFrames ── SceneFrames ── engine
              by number      ends segments    ends scenes      output or context

An output frame is restored and written. A context frame is only seen by the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from torch import Tensor

from tubelet.models.architecture import Contract
from tubelet.restore.plan import Plan
from tubelet.types import Frame
from tubelet.video.scenes import CutDetector

__all__ = ["FrameBuffer", "SceneFrames", "SegmentFrames", "SegmentStream", "scene_detector"]


class SceneFrames:
    """Frames that are restored together: a scene, or a section of one with its context.

    Frames have positions in their scene, from 0. Positions in [start, stop) are output frames, the
    others are context: the model sees them, and their results are dropped.

    Args:
        frames: Frames in order. Their source may set `stop` during the iteration, before it yields
            the first frame after the output.
        first: Position of the first frame.
        start: Position of the first output frame.
        stop: Position after the last output frame; None if the output reaches to the end.

    Attributes:
        frames, first, start, stop: See the arguments.
        reaches_end: Whether the scene ends with the last of the frames; valid after the iteration.
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

    def is_past_output(self, position: int) -> bool:
        """Return whether a position is after the last output frame."""
        if self.stop is None:
            return False
        return position >= self.stop

    def is_output(self, position: int) -> bool:
        """Return whether the frame at a position is an output frame."""
        return position >= self.start and not self.is_past_output(position)


class SegmentFrames:
    """Frames of one segment with their context, scene by scene.

    Frames are numbered in the whole stream.

    Args:
        buffer: Frames of the stream by number.
        scene_start: First frame of the scene in which the segment starts.
        read_start: First frame to read, context included.
        start: First output frame.
        ends_before: Called with the segment and the number of a frame that was read; returns
            whether the segment ends before it.
        context_after: Maximum number of context frames after the segment, within the scene.

    Attributes:
        start: First output frame.
        stop: Frame after the last output frame. This and all following attributes are valid after
            the frames were read.
        cuts: Frames inside the segment that start a scene.
        last_scene_start: First frame of the scene in which the segment ends.
        reaches_scene_end: Whether the frames that were read reach to the end of that scene.
        next_pts: Time of frame `stop` in units of `time_base`; None at the end of the video.
        read_stop_pts: Time of the frame after the last one that was read; None at the end.
        time_base: Unit of these times, seconds.
        problems: Damage of the video that was detected, one line each.
    """

    def __init__(
        self,
        buffer: FrameBuffer,
        *,
        scene_start: int,
        read_start: int,
        start: int,
        ends_before: Callable[[SegmentFrames, int], bool],
        context_after: int,
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
        self._buffer = buffer
        self._ends_before = ends_before
        self._context_after = context_after
        self._position = read_start

    @property
    def continues_scene(self) -> bool:
        """Whether the segment starts inside a scene; valid before its frames are read."""
        return self.start > self.last_scene_start

    def scenes(self) -> Iterator[SceneFrames]:
        """Yield the scenes of the segment; the first and the last one may be incomplete.

        Exhaust each scene before the next one is requested.
        """
        while True:
            scene_start = self.last_scene_start
            output_start = max(self.start, scene_start)
            scene = SceneFrames(
                (),
                first=self._position - scene_start,
                start=output_start - scene_start,
            )
            scene.frames = self._read_scene(scene)
            yield scene

            if self.stop is not None:
                return
            # The segment goes on after the cut that ended the scene.
            self.last_scene_start = self._position
            self.cuts.append(self._position)

    def _read_scene(self, scene: SceneFrames) -> Iterator[Frame]:
        """Yield the frames of a scene; set `scene.stop` before the first frame after the output."""
        while True:
            number = self._position
            frame = self._buffer.frame(number)
            is_cut = self._is_next_scene(number, frame)

            # `scene.stop` has to be set before the engine sees a frame after the output.
            if self.stop is None and self._is_segment_end(number, frame):
                self._end_before(number, frame)
            if self.stop is not None:
                scene.stop = self.stop - self.last_scene_start

            # The scene ends with the stream or at a cut, or is left incomplete because no context
            # is needed any more.
            if frame is None:
                self._end_scene(scene, reaches_end=self._buffer.ends_scene, next_pts=None)
                return
            if is_cut or self._is_past_context(number):
                self._end_scene(scene, reaches_end=is_cut, next_pts=frame.pts)
                return

            yield frame
            self._position += 1
            self._buffer.discard_before(self._position)

    def _end_scene(
        self,
        scene: SceneFrames,
        *,
        reaches_end: bool,
        next_pts: int | None,
    ) -> None:
        """Note how a scene ends, and the time of the frame after it (None at the stream's end)."""
        scene.reaches_end = reaches_end
        self.reaches_scene_end = reaches_end
        self.read_stop_pts = next_pts

    def _is_next_scene(self, number: int, frame: Frame | None) -> bool:
        if frame is None or number <= self.last_scene_start:
            return False
        return self._buffer.is_cut(number)

    def _is_segment_end(self, number: int, frame: Frame | None) -> bool:
        if frame is None:
            return True
        return number > self.start and self._ends_before(self, number)

    def _end_before(self, number: int, frame: Frame | None) -> None:
        """End the segment before a frame; context frames may follow."""
        self.stop = number
        if frame is not None:
            self.next_pts = frame.pts
            self.time_base = frame.time_base

    def _is_past_context(self, number: int) -> bool:
        if self.stop is None:
            return False
        return number >= self.stop + self._context_after


class SegmentStream:
    """Divides a stream into segments in one pass, as needed for pipes and for a single process.

    Args:
        frames: Frames of the whole video in order.
        plan: Plan that determines the length and the context of the segments.
        keeps_state: Whether the state of a recurrent model passes from segment to segment, so that
            no warm-up frames are needed.
        starts_scene: Called with the rgb of each frame in order; returns True if the frame starts
            a new scene.
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
        context = plan.context_frames
        if keeps_state and plan.carries_state:
            context = plan.context_frames_with_state
        self._context_before, self._context_after = context
        # A segment reads `context_after` frames past its end, and the next one then starts to read
        # `context_before` frames before that end.
        num_previous = self._context_before + self._context_after
        self._buffer = FrameBuffer(
            frames,
            lambda frame: starts_scene(frame.rgb),
            num_previous=num_previous,
        )

    def first_s(self) -> Fraction | None:
        """Read the first frame and return its time in seconds; None if the stream is empty."""
        frame = self._buffer.frame(0)
        if frame is None:
            return None
        return frame.pts * frame.time_base

    def __iter__(self) -> Iterator[SegmentFrames]:
        """Yield the segments; exhaust each before the next one is requested."""
        start = 0
        scene_start = 0
        while self._buffer.frame(start) is not None:
            # The segment before may have ended at a cut.
            if self._buffer.is_cut(start):
                scene_start = start
            segment = SegmentFrames(
                self._buffer,
                scene_start=scene_start,
                # Context never reaches into the scene before.
                read_start=max(scene_start, start - self._context_before),
                start=start,
                ends_before=self._ends_before,
                context_after=self._context_after,
            )
            yield segment
            assert segment.stop is not None, "a segment must be used up before the next"
            start = segment.stop
            scene_start = segment.last_scene_start

    def _ends_before(self, segment: SegmentFrames, number: int) -> bool:
        """Return whether a segment ends before frame `number`."""
        plan = self._plan
        num_frames = number - segment.start
        # Short scenes share a segment.
        if self._buffer.is_cut(number):
            return num_frames >= plan.min_segment_frames
        # Inside a scene, where a window ends, so that the windows do not depend on the segments.
        num_scene_frames = number - segment.last_scene_start
        step = plan.segment_step
        return num_scene_frames % step == 0 and num_frames + step > plan.segment_frames


class FrameBuffer:
    """Gives access by number to a stream of frames, of which it holds the last ones.

    Args:
        frames: Frames in order.
        starts_scene: Called once with each frame, in order; returns whether it starts a scene.
        first: Number of the first frame.
        num_previous: Number of frames to hold before the current one.
        ends_scene: Whether the last frame ends its scene.
    """

    def __init__(
        self,
        frames: Iterable[Frame],
        starts_scene: Callable[[Frame], bool],
        *,
        first: int = 0,
        num_previous: int = 0,
        ends_scene: bool = True,
    ) -> None:
        self.ends_scene = ends_scene
        self._stream = iter(frames)
        self._starts_scene = starts_scene
        # Frames from number `_first` on, each with whether it starts a scene.
        self._entries: deque[tuple[Frame, bool]] = deque()
        self._first = first
        self._num_previous = num_previous
        self._ended = False

    def frame(self, number: int) -> Frame | None:
        """Return a frame, reading up to it if necessary; None after the last one."""
        index = number - self._first
        while index >= len(self._entries):
            # An iterator must not be called again after its end.
            if self._ended:
                return None
            frame = next(self._stream, None)
            if frame is None:
                self._ended = True
                return None
            starts_scene = self._starts_scene(frame)
            self._entries.append((frame, starts_scene))
        frame, _ = self._entries[index]
        return frame

    def is_cut(self, number: int) -> bool:
        """Return whether a frame that was read starts a scene."""
        index = number - self._first
        _, starts_scene = self._entries[index]
        return starts_scene

    def discard_before(self, number: int) -> None:
        """Drop the frames before a number, except the `num_previous` last of them."""
        first = number - self._num_previous
        while self._first < first and self._entries:
            self._entries.popleft()
            self._first += 1


def scene_detector(contract: Contract) -> Callable[[Tensor], bool]:
    """Build the cut detector for a model; a model of single frames needs no cuts."""
    if contract.temporal.kind == "frame":
        return lambda _: False
    return CutDetector().is_cut
