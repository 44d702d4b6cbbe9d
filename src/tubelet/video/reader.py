"""A video as an iterator of frames: exact pts, presentation order, R'G'B' float, upright."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Some of the frames of a video: those whose pts lie in [start, stop).

    The pts are those that a reader of the whole video gives its frames. Spans that follow one
    another hold every frame of the whole once, the same to the bit.

    Attributes:
        start: pts in ticks, None for the first frame.
        stop: pts in ticks, None for the end. The span without a stop alone reports problems: it has
            seen all.
        first_index: index of its first frame in the whole video.
        may_seek: `Reader.may_seek` of a reader that has read the whole video. False decodes from
            the beginning.
    """

    start: int | None = None
    stop: int | None = None
    first_index: int = 0
    may_seek: bool = False


_WHOLE = Span()


class FrameSource(Protocol):
    """Where decoded frames come from: a container or a list of images.

    Attributes:
        info: description of the video.
        seeks_exactly: `frames_from_keyframe` may find one.
    """

    info: VideoInfo
    seeks_exactly: bool

    def frames(self, start_tick: int | None) -> Iterator[VideoFrame]:
        """Yield frames in presentation order, from `start_tick` or somewhat before."""
        ...

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame] | None:
        """Yield all frames from a keyframe at or before `start_tick` on.

        They are those of a reading from the beginning, to the bit. None where that is not sure.
        """
        ...

    def problems(self, decoded: int, end_tick: int | None) -> list[str]:
        """Say what was damaged or missing."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


class Reader:
    """Iterates once over the frames of a video; a context manager.

    Attributes:
        info: description of the video.
        problems: what could not be decoded or was missing, a line each; complete when the frames
            are used up.
        may_seek: a `Span` of the video may begin at a keyframe: the format allows it, and the whole
            video was read without a problem, each frame with its own pts.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        start_s: float,
        duration_s: float | None,
        gamut: Gamut,
        span: Span = _WHOLE,
    ) -> None:
        """Wrap an open source; `open_reader` does it."""
        self.info = source.info
        self.problems: list[str] = []
        self.may_seek = False
        self._source = source
        self._gamut: Gamut = gamut
        self._span = span
        time_base = source.info.time_base
        begin_s = Fraction(source.info.start_s) + Fraction(start_s)
        self._start_tick = _tick(begin_s, time_base) if start_s > 0 else None
        self._end_tick: int | None = None
        if duration_s is not None:
            self._end_tick = _tick(begin_s + Fraction(duration_s), time_base)
        self._clock = _Clock(source.info)
        self._color = resolve_matrix(source.info.color, source.info.width, source.info.height)
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
        """Close the file; a second time does nothing.

        While another thread is inside it, stuck in a pipe, it stays open: closing it would crash.
        """
        if inspect.getgeneratorstate(self._frames) == inspect.GEN_RUNNING:
            return
        self._frames.close()
        self._source.close()

    def _read(self) -> Generator[Frame]:
        """Yield the frames of the span, and say at the end of the video what was wrong with it."""
        count = index = odd_sizes = 0
        size = (self.info.width, self.info.height)
        turn: Orientation | None = None
        for raw, pts in self._stamped():
            if turn is None:
                turn = orientation_of(raw)
                # Of a decoded frame, which is not turned upright yet.
                size = size[::-1] if turn.transpose else size
            is_odd = (raw.width, raw.height) != size
            odd_sizes += is_odd
            count += 1
            if self._span.start is not None and pts < self._span.start:
                continue
            if self._span.stop is not None and pts >= self._span.stop:
                return
            if is_odd:
                raw = raw.reformat(width=size[0], height=size[1])
            yield self._convert(raw, pts, turn, self._span.first_index + index)
            index += 1
        if self._span.stop is not None:
            return
        self.problems += self._source.problems(count, self._end_tick)
        if odd_sizes:
            usual = f"{size[0]}x{size[1]}"
            self.problems.append(f"{odd_sizes} frames have another size and were scaled to {usual}")
        if self._clock.moved:
            self.problems.append(f"{self._clock.moved} timestamps did not increase and were moved")
        self.may_seek = self._source.seeks_exactly and self._clock.is_own and not self.problems

    def _stamped(self) -> Iterator[tuple[VideoFrame, int]]:
        """Yield frames with their pts, from the beginning or from a keyframe before the span."""
        raws: Iterator[VideoFrame] | None = None
        if self._span.may_seek and self._span.start is not None:
            raws = self._source.frames_from_keyframe(self._span.start)
        if raws is None:
            raws = self._source.frames(self._start_tick)
        for raw in raws:
            pts = self._clock.stamp(raw)
            if self._end_tick is not None and pts >= self._end_tick:
                return
            if self._start_tick is None or pts >= self._start_tick:
                yield raw, pts

    def _convert(self, raw: VideoFrame, pts: int, turn: Orientation, index: int) -> Frame:
        rgb, alpha = frame_to_rgb(raw, self._color, gamut=self._gamut)
        if not self.info.has_alpha:
            alpha = None
        return Frame(
            rgb=_upright(rgb, turn),
            pts=pts,
            time_base=self.info.time_base,
            duration=raw.duration or 0,
            index=index,
            alpha=None if alpha is None else _upright(alpha, turn),
        )


def open_reader(
    src: str | Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    gamut: Gamut = "clip",
    span: Span = _WHOLE,
) -> Reader:
    """Open a video for reading.

    Args:
        src: a video file, an image folder, a printf pattern (frames/%05d.png), or "-" for y4m on
            stdin.
        start_s: leave out frames before this time, counted from the file's first timestamp (as
            `ffmpeg -ss`).
        duration_s: leave out frames from `start_s + duration_s` on.
        gamut: "clip" gives rgb in [0, 1]; "keep" leaves codes of colors outside it a little
            outside, so that frames that are written again as they are lose nothing.
        span: leave out all other frames of what start_s and duration_s leave.

    Returns:
        A reader. Frames without a timestamp get the one that follows from the frame rate;
        timestamps that do not increase are moved behind the one before.

    Raises:
        InputError: there is nothing that can be decoded.
    """
    source = _open_source(str(src))
    return Reader(source, start_s=start_s, duration_s=duration_s, gamut=gamut, span=span)


def _open_source(src: str) -> FrameSource:
    if not src:
        raise InputError(
            "the input has no name; give a video file, a folder of images, or - for y4m on a pipe"
        )
    if src == "-":
        return ContainerFrames(open_y4m_pipe, src, seekable=False)
    images = list_images(src)
    if images is not None:
        return ImageFrames(src, images)
    return ContainerFrames(lambda: open_container(Path(src)), src, seekable=True)


class _Clock:
    """Gives every frame a pts, strictly increasing: its own where that does.

    Where a container has no pts (AVI), or has wrong ones, the dts that comes with each frame in
    presentation order is as good; whichever went wrong less often counts, as in FFmpeg's
    best-effort timestamp.
    """

    def __init__(self, info: VideoInfo) -> None:
        rate = info.average_rate or Fraction(25)
        self._step = max(1, round(1 / (rate * info.time_base)))
        self._tick_s = info.time_base
        self._last: int | None = None
        self._shift = 0
        self._faults = {"pts": 0, "dts": 0}
        self._seen: dict[str, int] = {}
        self.moved = 0
        self.is_own = True  # every pts was that of the frame

    def stamp(self, frame: VideoFrame) -> int:
        """Give the next frame in presentation order its pts."""
        pts = self._own(frame)
        if pts is None:
            pts = 0 if self._last is None else self._last + self._step
        else:
            pts += self._shift
        if self._last is not None and pts <= self._last:
            self.moved += 1
            if (self._last - pts) * self._tick_s > 1:  # the clock was set back: go on from here
                self._shift += self._last + self._step - pts
                pts = self._last + self._step
            else:
                pts = self._last + 1
        self._last = pts
        self.is_own &= pts == frame.pts
        return pts

    def _own(self, frame: VideoFrame) -> int | None:
        for name, value in (("pts", frame.pts), ("dts", frame.dts)):
            if value is not None:
                self._faults[name] += name in self._seen and value <= self._seen[name]
                self._seen[name] = value
        is_pts_better = frame.dts is None or self._faults["pts"] <= self._faults["dts"]
        return frame.pts if frame.pts is not None and is_pts_better else frame.dts


def _tick(time_s: Fraction, tick_s: Fraction) -> int:
    """Give the first tick at or after a time; 0.1 ticks allow for times written with few digits."""
    return math.ceil(time_s / tick_s - Fraction(1, 10))


def _upright(image: Tensor, turn: Orientation) -> Tensor:
    if turn == Orientation():
        return image
    if turn.transpose:
        image = image.transpose(-1, -2)
    flips = [dim for dim, flip in ((-1, turn.flip_x), (-2, turn.flip_y)) if flip]
    return torch.flip(image, flips).contiguous()
