"""Decoding the video stream of a container: seek, damage, truncation. Frames as FFmpeg gives them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame

from tubelet.errors import InputError
from tubelet.video.container import clock_origin, describe, pick_video_stream, read_siting
from tubelet.video.declared import declared_bytes
from tubelet.video.holes import HoleFinder
from tubelet.video.y4m import ForwardOnly

__all__ = ["ContainerFrames"]

_MOST_THREADS = 4  # frame threads hold a picture each
_SEEK_BACK_S = (0, 2, 10)  # a keyframe may be shown later than the index, in decoding order, says
_TRUST_DURATION = {"matroska,webm", "avi", "flv", "asf"}  # the header tells the length of the stream
_MOST_READ_ERRORS = 100
_EXACT_CONTAINERS = ("mov,", "matroska")  # have an index of keyframes, and a pts for every packet
_EXACT_CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg2video", "mpeg4", "ffv1", "prores", "mjpeg", "dnxhd")
)


class ContainerFrames:
    """Decodes one video stream, skips what is damaged, and can say what was missing.

    Attributes:
        info: description of the video; the first frame was decoded for it.
        seeks_exactly: the container finds keyframes by their times, and nothing before one matters behind it.
    """

    def __init__(self, open_container: Callable[[], InputContainer], source: str, *, seekable: bool) -> None:
        self._open = open_container
        self._source = source
        self._seekable = seekable
        self._threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._reset_counts()
        self._container: InputContainer = self._start(self._threads)
        try:
            siting = read_siting(self._container, self._stream)
            origin_s = clock_origin(self._container)
            self._pass = self._decode()
            first = next(self._pass, None)
            if first is None:
                raise InputError(f"{source}: no frame of its {self._name()} video can be decoded{self._why()}")
            self._first = first
            self.info = describe(self._container, self._stream, first, source, siting=siting, origin_s=origin_s)
        except BaseException:
            self._container.close()
            raise
        is_indexed = self.info.container.startswith(_EXACT_CONTAINERS)
        self.seeks_exactly = seekable and is_indexed and self.info.codec in _EXACT_CODECS

    def frames(self, start_tick: int | None) -> Iterator[VideoFrame]:
        """Yield frames in presentation order.

        Args:
            start_tick: pts from which frames are wanted; begins at a keyframe at or before it. None: all.
        """
        begin = chain([self._first], self._pass)
        if start_tick is not None and self._seekable:
            begin = self._sought(start_tick)
        yield from self._with_tail(begin)

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame] | None:
        """Yield the frames of a keyframe at or before `start_tick` and all after it, in presentation order.

        Args:
            start_tick: pts of the first frame that is wanted.

        Returns:
            The frames that a decoding from the beginning gives, to the bit; None where that is not sure, and
            then the file is as it was when it was opened.
        """
        if not self.seeks_exactly:
            return None
        for back_s in _SEEK_BACK_S:
            begin = self._begin_at_keyframe(start_tick, start_tick - int(back_s / self.info.time_base))
            if begin is not None:
                return self._with_tail(begin)
        self._restart(self._threads)
        self._pass = self._decode()
        first = next(self._pass, None)
        if first is None:
            raise InputError(f"{self._source}: no frame can be decoded any more; was it changed?")
        self._first = first
        return None

    def problems(self, decoded: int, end_tick: int | None) -> list[str]:
        """Say what was damaged or missing, a line each, once the frames are used up.

        Args:
            decoded: frames that were handed out.
            end_tick: pts at which the caller stopped, None where it went on to the end of the file.
        """
        found: list[str] = []
        missing = self._missing_frames(end_tick)
        if missing:
            found.append(
                f"the file ends early: {decoded} of about {decoded + missing} frames could be decoded" + self._why()
            )
        elif self._has_rest(end_tick):
            found.append(f"the stream ends early, in the middle of a frame, after {decoded} whole ones")
        elif cut_bytes := self._cut_bytes(end_tick):
            found.append(f"the file is {cut_bytes} bytes shorter than it says, so its end is missing")
        at_the_end = len(found)  # where a file was cut, its last packet is damaged too: said already
        hole = self._lost_inside(end_tick)
        found += [hole] if hole else []
        if self._damaged > at_the_end:
            found.append(f"damaged packets that could not be decoded: {self._damaged}{self._why()}")
        if self._corrupt > max(self._damaged, at_the_end):
            found.append(f"damaged packets that the container marks: {self._corrupt}")
        if self._concealed > at_the_end:
            found.append(f"damaged frames that the decoder patched: {self._concealed}")
        if self._read_errors > at_the_end:
            found.append(f"places where the file could not be read: {self._read_errors}{self._why()}")
        return found

    def close(self) -> None:
        """Close the file."""
        self._pass.close()
        self._container.close()

    def _reset_counts(self) -> None:
        self._packets = self._frames = self._corrupt = self._damaged = self._concealed = 0
        self._read_errors = self._end_byte = 0
        self._reason = ""
        self._last_dts: int | None = None
        self._end_tick: int | None = None
        self._holes: HoleFinder | None = None

    def _start(self, threads: int) -> InputContainer:
        container = self._open()
        try:
            self._stream = pick_video_stream(container, self._source)
        except InputError:
            container.close()
            raise
        context = self._stream.codec_context
        context.thread_type = "AUTO" if threads > 1 else "SLICE"
        context.thread_count = threads
        context.flags |= int(Flags.output_corrupt)  # a picture with a missing reference is patched, not left out
        return container

    def _restart(self, threads: int) -> None:
        self._pass.close()
        self._container.close()
        self._reset_counts()
        self._container = self._start(threads)

    def _name(self) -> str:
        return str(self._stream.codec_context.codec.canonical_name)

    def _why(self) -> str:
        return f" ({self._reason})" if self._reason else ""

    def _read(self) -> Iterator[Packet[Any] | None]:
        """Yield packets of the video; None at last, for the decoder to give out what it holds."""
        rate = self._stream.average_rate
        if self._container.format.name == "matroska,webm" and rate:
            self._holes = HoleFinder(self._stream.index, rate)
        streams = [] if self._holes else [self._stream]  # none named means all
        while True:
            progress = False
            try:
                for packet in self._container.demux(*streams):
                    if not packet.size:
                        continue
                    if self._holes:
                        self._holes.note(packet)
                    progress = True
                    if packet.stream_index == self._stream.index:
                        yield packet
                break
            except av.FFmpegError as error:
                self._read_errors += 1
                self._reason = str(error.strerror)
                if not progress or self._read_errors >= _MOST_READ_ERRORS:
                    break
        yield None

    def _decode(
        self, packets: Iterator[Packet[Any] | None] | None = None, *, count_after: int | None = None
    ) -> Generator[VideoFrame]:
        """Decode packets; count damage, in the second pass only behind the last frame of the first."""
        context = self._stream.codec_context
        clean = False
        for packet in self._read() if packets is None else packets:
            self._note(packet)
            try:
                frames = context.decode(packet)
            except EOFError:
                return
            except av.FFmpegError as error:
                self._damaged += self._is_counted(packet, count_after)
                self._reason = str(error.strerror)
                continue
            for frame in frames:
                self._frames += 1
                if not clean and frame.is_corrupt and not frame.key_frame:
                    continue  # a stream that begins between keyframes: there is no picture yet
                clean = True
                self._concealed += frame.is_corrupt and (count_after is None or (frame.pts or 0) > count_after)
                shown = frame.pts if frame.pts is not None else frame.dts  # AVI has no pts
                if shown is not None:
                    self._end_tick = shown + (frame.duration or 0)
                yield frame

    def _sought(self, start_tick: int) -> Iterator[VideoFrame]:
        """Begin at a keyframe at or before `start_tick`, or at the start of the file where seeking fails."""
        context: Any = self._stream.codec_context
        depth = context.reorder_depth
        tick_s = self.info.time_base
        for back_s in _SEEK_BACK_S:
            self._pass.close()
            self._reset_counts()
            try:
                self._container.seek(start_tick - int(back_s / tick_s), stream=self._stream)
            except av.FFmpegError:
                break
            context.reorder_depth = depth  # flushing may forget it, which would lose B-frames
            self._pass = self._decode()
            first = next(self._pass, None)
            if first is not None and first.pts is not None and first.pts <= start_tick:
                return chain([first], self._pass)
        self._restart(self._threads)
        self._pass = self._decode()
        return self._pass

    def _begin_at_keyframe(self, start_tick: int, seek_tick: int) -> Iterator[VideoFrame] | None:
        """Seek to `seek_tick`; give the frames from a keyframe on if it is shown at or before `start_tick`."""
        context: Any = self._stream.codec_context
        depth = context.reorder_depth
        self._pass.close()
        self._reset_counts()
        try:
            self._container.seek(seek_tick, stream=self._stream)
        except av.FFmpegError:
            return None
        context.reorder_depth = depth  # flushing may forget it, which would lose B-frames
        packets = self._read()
        key = next(packets, None)
        if key is None or not key.is_keyframe or key.pts is None or key.pts > start_tick:
            return None
        self._pass = self._decode(chain([key], packets))
        first = next(self._pass, None)
        # Not so where a stream has no keyframes, only places from which it becomes whole by and by.
        if first is None or not first.key_frame or first.pts != key.pts:
            return None
        return chain([first], self._pass)

    def _with_tail(self, begin: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield frames, and at the end of the file those that frame threads have swallowed."""
        last: VideoFrame | None = None
        for last in begin:
            yield last
        if self._seekable and self._threads > 1 and self._frames < self._packets and last is not None:
            yield from self._tail(last.pts)

    def _tail(self, after_tick: int | None) -> Iterator[VideoFrame]:
        """Decode the end again on one thread: PyAV drops what frame threads hold when one meets an error."""
        if after_tick is None:
            return
        damaged, concealed, reason, end_tick = self._damaged, self._concealed, self._reason, self._end_tick
        holes = self._holes
        self._restart(threads=1)
        self._damaged, self._concealed, self._reason = damaged, concealed, reason
        try:
            self._container.seek(after_tick, stream=self._stream)
        except av.FFmpegError:
            return
        self._pass = self._decode(count_after=after_tick)
        for frame in self._pass:
            if frame.pts is not None and frame.pts > after_tick:
                yield frame
        self._end_tick = max(self._end_tick or 0, end_tick or 0)
        self._holes = holes  # the first pass saw the whole file

    def _note(self, packet: Packet[Any] | None) -> None:
        if packet is None:
            return
        if not self._packets and packet.has_sidedata("encryption_info"):
            raise InputError(f"{self._source} is encrypted and cannot be decoded")
        self._packets += not packet.is_discard
        self._corrupt += packet.is_corrupt
        self._last_dts = packet.dts if packet.dts is not None else self._last_dts
        self._end_byte = (packet.pos or 0) + packet.size

    def _is_counted(self, packet: Packet[Any] | None, count_after: int | None) -> bool:
        if packet is None:  # flushing: the second pass counts
            return not self._seekable or self._threads == 1
        return count_after is None or packet.pts is None or packet.pts > count_after

    def _has_rest(self, end_tick: int | None) -> bool:
        """Tell whether a y4m stream was cut within a frame, which FFmpeg leaves out without a word."""
        if self.info.container != "yuv4mpegpipe" or self._has_reached(end_tick):
            return False
        pipe = getattr(self._container.file, "file", None)
        total = pipe.total_bytes if isinstance(pipe, ForwardOnly) else self._container.size
        return total > self._end_byte

    def _lost_inside(self, end_tick: int | None) -> str:
        end_s = math.inf if end_tick is None else float(end_tick * self.info.time_base)
        return self._holes.report(self.info.start_s, end_s) if self._holes else ""

    def _cut_bytes(self, end_tick: int | None) -> int:
        """Count the bytes that the file says it has and that are not there."""
        if not self._seekable or self._has_reached(end_tick):
            return 0
        declared = declared_bytes(Path(self._source))
        return 0 if declared is None else max(0, declared - self._container.size)

    def _has_reached(self, end_tick: int | None) -> bool:
        return end_tick is not None and self._end_tick is not None and self._end_tick >= end_tick

    def _missing_frames(self, end_tick: int | None) -> int:
        """Estimate how many frames the header promises after the last that was read."""
        if self._has_reached(end_tick):
            return 0
        if self.info.container.startswith("mov") and self._last_dts is not None:
            times = [entry.timestamp for entry in self._stream.index_entries]
            return sum(self._last_dts < t and (end_tick is None or t < end_tick) for t in times)
        rate, duration_s = self.info.average_rate, self.info.duration_s
        if self.info.container not in _TRUST_DURATION or not rate or not duration_s or self._end_tick is None:
            return 0
        promised = Fraction(duration_s) + Fraction(self.info.start_s)
        if end_tick is not None:
            promised = min(promised, end_tick * self.info.time_base)
        gap_s = promised - self._end_tick * self.info.time_base
        is_sure = gap_s > max(Fraction(1, 2), 3 / rate) or self._cut_bytes(end_tick) > 0
        return max(0, round(gap_s * rate)) if is_sure else 0
