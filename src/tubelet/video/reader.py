"""Read a video as an iterator of frames: exact pts, presentation order, R'G'B' float, upright."""

from __future__ import annotations

import inspect
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from av.video.frame import VideoFrame
from torch import Tensor

from tubelet.errors import InputError
from tubelet.types import Frame
from tubelet.video.color import Gamut, frame_to_rgb, resolve_matrix
from tubelet.video.container import open_container, orientation_of
from tubelet.video.decode import ContainerFrames
from tubelet.video.info import Orientation, VideoInfo
from tubelet.video.sequence import ImageFrames, list_images
from tubelet.video.y4m import open_y4m_pipe

__all__ = ["FrameSource", "Reader", "Span", "open_reader"]

# FFmpeg's default where a container states no frame rate.
_DEFAULT_RATE = Fraction(25)
# Allows for times that were typed with few digits, such as 0.33 s.
_TICK_TOLERANCE = Fraction(1, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The frames of a video whose pts are in [start, stop).

    The pts are those that a reader of the whole video assigns. Consecutive spans contain every
    frame of the video exactly once, bit-identical to those of a reader of the whole video.

    Attributes:
        start: pts in ticks; None for the first frame.
        stop: pts in ticks; None for the end. Only the span without a stop reports problems, because
            only it reads to the end.
        first_index: Index of its first frame in the whole video.
        may_seek: Value of `Reader.may_seek` after a reader has read the whole video. False decodes
            from the beginning.
    """

    start: int | None = None
    stop: int | None = None
    first_index: int = 0
    may_seek: bool = False


_WHOLE_VIDEO = Span()


class FrameSource(Protocol):
    """A source of decoded frames: a container or a list of images.

    Attributes:
        info: Description of the video.
        seeks_exactly: `frames_from_keyframe` may return frames.
    """

    info: VideoInfo
    seeks_exactly: bool

    def frames(self, start_tick: int | None) -> Iterator[VideoFrame]:
        """Yield frames in presentation order, from `start_tick` or a little before it."""
        ...

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame] | None:
        """Yield all frames from a keyframe at or before `start_tick`.

        They are bit-identical to those decoded from the beginning; None if that is not guaranteed.
        """
        ...

    def problems(self, decoded: int, end_tick: int | None) -> list[str]:
        """Describe damaged and missing frames, one line each."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class Reader:
    """Iterator over the frames of a video, to be used once; a context manager.

    Attributes:
        info: Description of the video.
        problems: Damaged and missing frames, one line each. Complete after the last frame.
        may_seek: A `Span` of the video may be decoded from a keyframe: the format allows it, and
            the whole video was read without a problem, each frame with its own pts.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        start_s: float,
        duration_s: float | None,
        gamut: Gamut,
        span: Span = _WHOLE_VIDEO,
    ) -> None:
        """Wrap an open source; see `open_reader`."""
        self.info = source.info
        self.problems: list[str] = []
        self.may_seek = False
        self._source = source
        self._gamut: Gamut = gamut
        self._span = span
        time_base = source.info.time_base
        begin_s = Fraction(source.info.start_s) + Fraction(start_s)
        self._start_tick: int | None = None
        if start_s > 0:
            self._start_tick = _tick_at_or_after(begin_s, time_base)
        self._end_tick: int | None = None
        if duration_s is not None:
            self._end_tick = _tick_at_or_after(begin_s + Fraction(duration_s), time_base)
        self._clock = _Clock(source.info)
        self._color = resolve_matrix(
            source.info.color,
            source.info.width,
            source.info.height,
        )
        self._frames = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def close(self) -> None:
        """Close the file; a second call has no effect.

        While another thread is reading, blocked in a pipe, the file stays open: closing it then
        would crash.
        """
        if inspect.getgeneratorstate(self._frames) == inspect.GEN_RUNNING:
            return
        self._frames.close()
        self._source.close()

    def _read(self) -> Generator[Frame]:
        """Yield the frames of the span; at the end of the video, collect its problems."""
        num_decoded = 0
        num_resized = 0
        index = self._span.first_index
        # Size of a decoded frame, before it is turned upright.
        size = (self.info.width, self.info.height)
        orientation: Orientation | None = None
        for raw, pts in self._timed_frames():
            if orientation is None:
                orientation = orientation_of(raw)
                if orientation.transpose:
                    size = size[::-1]
            has_other_size = (raw.width, raw.height) != size
            num_resized += has_other_size
            num_decoded += 1
            # Frames from the keyframe to the span are only decoded.
            if self._span.start is not None and pts < self._span.start:
                continue
            if self._span.stop is not None and pts >= self._span.stop:
                return
            if has_other_size:
                raw = raw.reformat(width=size[0], height=size[1])
            yield self._convert(raw, pts, orientation, index)
            index += 1
        if self._span.stop is not None:
            return

        # The whole video was read.
        self.problems += self._source.problems(num_decoded, self._end_tick)
        if num_resized:
            self.problems.append(
                f"{num_resized} frames have another size and were scaled to {size[0]}x{size[1]}"
            )
        if self._clock.moved:
            self.problems.append(f"{self._clock.moved} timestamps did not increase and were moved")
        is_flawless = self._clock.is_own and not self.problems
        self.may_seek = self._source.seeks_exactly and is_flawless

    def _timed_frames(self) -> Iterator[tuple[VideoFrame, int]]:
        """Yield frames with their pts, from the beginning or from a keyframe before the span."""
        frames: Iterator[VideoFrame] | None = None
        if self._span.may_seek and self._span.start is not None:
            frames = self._source.frames_from_keyframe(self._span.start)
        if frames is None:
            frames = self._source.frames(self._start_tick)

        # A bound that was not set excludes no frame.
        start_tick = -math.inf
        if self._start_tick is not None:
            start_tick = self._start_tick
        end_tick = math.inf
        if self._end_tick is not None:
            end_tick = self._end_tick
        for frame in frames:
            pts = self._clock.assign_pts(frame)
            if pts >= end_tick:
                return
            if pts >= start_tick:
                yield frame, pts

    def _convert(self, raw: VideoFrame, pts: int, orientation: Orientation, index: int) -> Frame:
        """Convert a decoded frame to R'G'B' and turn it upright."""
        rgb, alpha = frame_to_rgb(raw, self._color, gamut=self._gamut)
        # The decoder of an opaque GIF returns alpha too.
        if not self.info.has_alpha:
            alpha = None
        if alpha is not None:
            alpha = _turn_upright(alpha, orientation)
        return Frame(
            rgb=_turn_upright(rgb, orientation),
            pts=pts,
            time_base=self.info.time_base,
            duration=raw.duration or 0,
            index=index,
            alpha=alpha,
        )


def open_reader(
    src: str | Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    gamut: Gamut = "clip",
    span: Span = _WHOLE_VIDEO,
) -> Reader:
    """Open a video for reading.

    Args:
        src: Video file, image folder, printf pattern (frames/%05d.png), or "-" for y4m on stdin.
        start_s: Skip frames before this time, counted from the file's first timestamp (as
            `ffmpeg -ss`).
        duration_s: Skip frames from `start_s + duration_s` on.
        gamut: "clip" returns rgb in [0, 1]; "keep" returns colors outside the gamut as values
            slightly outside [0, 1], so that frames written back unchanged lose nothing.
        span: Restrict the frames that start_s and duration_s leave to this span.

    Returns:
        A reader. Frames without a timestamp get one from the frame rate; timestamps that do not
        increase are moved behind the previous one.

    Raises:
        InputError: The input is missing or cannot be decoded.
    """
    source = _open_source(str(src))
    return Reader(
        source,
        start_s=start_s,
        duration_s=duration_s,
        gamut=gamut,
        span=span,
    )


def _open_source(src: str) -> FrameSource:
    if not src:
        raise InputError(
            "the input has no name; give a video file, a folder of images, or - for y4m on stdin"
        )
    if src == "-":
        return ContainerFrames(open_y4m_pipe, src, seekable=False)
    images = list_images(src)
    if images is not None:
        return ImageFrames(src, images)
    return ContainerFrames(lambda: open_container(Path(src)), src, seekable=True)


class _Clock:
    """Assigns every frame a strictly increasing pts: its own pts wherever that increases.

    Where a container has no pts (AVI) or wrong ones, the dts of each frame in presentation order
    serves instead. The one that failed to increase less often is used, as in FFmpeg's best-effort
    timestamp.
    """

    def __init__(self, info: VideoInfo) -> None:
        rate = info.average_rate or _DEFAULT_RATE
        ticks_per_frame = 1 / (rate * info.time_base)
        self._frame_ticks = max(1, round(ticks_per_frame))
        self._tick_s = info.time_base
        self._last_pts: int | None = None
        self._shift = 0
        self._faults = {"pts": 0, "dts": 0}
        self._last_stamps: dict[str, int] = {}
        self.moved = 0
        # Every pts so far was the frame's own.
        self.is_own = True

    def assign_pts(self, frame: VideoFrame) -> int:
        """Return the pts of the next frame in presentation order."""
        pts = self._best_timestamp(frame)
        if pts is not None:
            pts += self._shift
        elif self._last_pts is not None:
            pts = self._last_pts + self._frame_ticks
        else:
            pts = 0
        if self._last_pts is None:
            # The first frame cannot be late.
            self._last_pts = pts - 1
        if pts <= self._last_pts:
            self.moved += 1
            setback_s = (self._last_pts - pts) * self._tick_s
            if setback_s > 1:
                # The clock of the file was reset: continue one frame after the last.
                self._shift += self._last_pts + self._frame_ticks - pts
                pts = self._last_pts + self._frame_ticks
            else:
                pts = self._last_pts + 1
        self._last_pts = pts
        self.is_own &= pts == frame.pts
        return pts

    def _best_timestamp(self, frame: VideoFrame) -> int | None:
        """Return the frame's pts or dts, whichever has been more reliable so far."""
        for name, value in (("pts", frame.pts), ("dts", frame.dts)):
            if value is None:
                continue
            if name in self._last_stamps:
                self._faults[name] += value <= self._last_stamps[name]
            self._last_stamps[name] = value
        preferred = frame.pts
        other = frame.dts
        if self._faults["dts"] < self._faults["pts"]:
            preferred = frame.dts
            other = frame.pts
        if preferred is None:
            return other
        return preferred


def _tick_at_or_after(time_s: Fraction, tick_s: Fraction) -> int:
    """Return the first tick at or after a time, in seconds."""
    return math.ceil(time_s / tick_s - _TICK_TOLERANCE)


def _turn_upright(image: Tensor, orientation: Orientation) -> Tensor:
    """Apply an orientation to an image (C, H, W)."""
    if orientation == Orientation():
        return image
    if orientation.transpose:
        image = image.transpose(-1, -2)
    flipped_dims: list[int] = []
    if orientation.flip_x:
        flipped_dims.append(-1)
    if orientation.flip_y:
        flipped_dims.append(-2)
    return torch.flip(image, flipped_dims).contiguous()
