"""Decode the video stream of a container: seek, damage, truncation. Frames as FFmpeg gives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame

from tubelet.errors import InputError
from tubelet.video.container import clock_origin, describe, pick_video_stream, read_siting
from tubelet.video.damage import DecodeReport, describe_ending
from tubelet.video.gaps import GapDetector

__all__ = ["ContainerFrames"]

_MAX_THREADS = 4  # frame threads hold a frame each
_SEEK_BACK_S = (0, 2, 10)  # a keyframe may be shown later than the index, in decoding order, says
_MAX_READ_ERRORS = 100
_EXACT_CONTAINERS = ("mov,", "matroska")  # have an index of keyframes, and a pts for every packet
_EXACT_CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg2video", "mpeg4", "ffv1", "prores", "mjpeg", "dnxhd")
)


class ContainerFrames:
    """Decodes one video stream, skips what is damaged, and can say what was missing.

    Attributes:
        info: description of the video; the first frame was decoded for it.
        seeks_exactly: the container finds keyframes by their times, and nothing before one matters
            behind it.
    """

    def __init__(
        self,
        open_container: Callable[[], InputContainer],
        source: str,
        *,
        seekable: bool,
    ) -> None:
        self._open = open_container
        self._source = source
        self._seekable = seekable
        self._threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._report = DecodeReport()
        self._container: InputContainer = self._start(self._threads)
        try:
            siting = read_siting(self._container, self._stream)
            origin_s = clock_origin(self._container)
            self._pass = self._decode()
            first = next(self._pass, None)
            if first is None:
                video = f"no frame of its {self._name()} video can be decoded"
                raise InputError(f"{source}: {video}{self._report.why}")
            self._first = first
            self.info = describe(
                self._container,
                self._stream,
                first,
                source,
                siting=siting,
                origin_s=origin_s,
            )
        except BaseException:
            self._container.close()
            raise
        is_indexed = self.info.container.startswith(_EXACT_CONTAINERS)
        self.seeks_exactly = seekable and is_indexed and self.info.codec in _EXACT_CODECS

    def frames(self, start_tick: int | None) -> Iterator[VideoFrame]:
        """Yield frames in presentation order.

        Args:
            start_tick: pts from which frames are wanted; begins at a keyframe at or before it.
                None: all.
        """
        begin = chain([self._first], self._pass)
        if start_tick is not None and self._seekable:
            begin = self._sought(start_tick)
        yield from self._with_tail(begin)

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame] | None:
        """Yield the frames from a keyframe at or before `start_tick` on, as they are shown.

        Args:
            start_tick: pts of the first frame that is wanted.

        Returns:
            The frames that a decoding from the beginning gives, to the bit; None where that is not
            sure, and then the file is as it was when it was opened.
        """
        if not self.seeks_exactly:
            return None
        for back_s in _SEEK_BACK_S:
            seek_tick = start_tick - int(back_s / self.info.time_base)
            begin = self._begin_at_keyframe(start_tick, seek_tick)
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
        ending = describe_ending(
            self._report,
            self.info,
            self._container,
            self._stream,
            is_file=self._seekable,
            decoded=decoded,
            end_tick=end_tick,
        )
        lines = [ending] if ending else []
        return lines + self._report.describe_damage(self.info, end_tick, at_the_end=len(lines))

    def close(self) -> None:
        """Close the file."""
        self._pass.close()
        self._container.close()

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
        # A frame with a missing reference is patched, not left out.
        context.flags |= int(Flags.output_corrupt)
        return container

    def _restart(self, threads: int) -> None:
        self._pass.close()
        self._container.close()
        self._report = DecodeReport()
        self._container = self._start(threads)

    def _name(self) -> str:
        return str(self._stream.codec_context.codec.canonical_name)

    def _read(self) -> Iterator[Packet[Any] | None]:
        """Yield packets of the video; None at last, for the decoder to give out what it holds."""
        report = self._report
        rate = self._stream.average_rate
        if self._container.format.name == "matroska,webm" and rate:
            report.holes = GapDetector(self._stream.index, rate)
        streams = [] if report.holes else [self._stream]  # none named means all
        while True:
            progress = False
            try:
                for packet in self._container.demux(*streams):
                    if not packet.size:
                        continue
                    if report.holes:
                        report.holes.note(packet)
                    progress = True
                    if packet.stream_index == self._stream.index:
                        yield packet
                break
            except av.FFmpegError as error:
                report.read_errors += 1
                report.reason = str(error.strerror)
                if not progress or report.read_errors >= _MAX_READ_ERRORS:
                    break
        yield None

    def _decode(
        self, packets: Iterator[Packet[Any] | None] | None = None, *, count_after: int | None = None
    ) -> Generator[VideoFrame]:
        """Decode packets; count damage, in a second pass only behind the last frame of the first."""
        context = self._stream.codec_context
        report = self._report
        is_clean = False
        for packet in self._read() if packets is None else packets:
            self._count(packet)
            try:
                frames = context.decode(packet)
            except EOFError:
                return
            except av.FFmpegError as error:
                report.damaged += self._is_counted(packet, count_after)
                report.reason = str(error.strerror)
                continue
            for frame in frames:
                report.frames += 1
                if not is_clean and frame.is_corrupt and not frame.key_frame:
                    continue  # a stream that begins between keyframes: there is no image yet
                is_clean = True
                is_behind = count_after is None or (frame.pts or 0) > count_after
                report.concealed += frame.is_corrupt and is_behind
                report.count_shown(frame)
                yield frame

    def _sought(self, start_tick: int) -> Iterator[VideoFrame]:
        """Begin at a keyframe at or before `start_tick`, or where seeking fails at the start."""
        context: Any = self._stream.codec_context
        depth = context.reorder_depth
        tick_s = self.info.time_base
        for back_s in _SEEK_BACK_S:
            self._pass.close()
            self._report = DecodeReport()
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
        """Seek; give the frames from the keyframe there on if it is shown by `start_tick`."""
        context: Any = self._stream.codec_context
        depth = context.reorder_depth
        self._pass.close()
        self._report = DecodeReport()
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
        is_short = self._report.frames < self._report.packets
        if self._seekable and self._threads > 1 and is_short and last is not None:
            yield from self._tail(last.pts)

    def _tail(self, after_tick: int | None) -> Iterator[VideoFrame]:
        """Decode the end again on one thread: PyAV drops what frame threads hold at an error."""
        if after_tick is None:
            return
        first_pass = self._report
        self._restart(threads=1)
        self._report.damaged = first_pass.damaged
        self._report.concealed = first_pass.concealed
        self._report.reason = first_pass.reason
        try:
            self._container.seek(after_tick, stream=self._stream)
        except av.FFmpegError:
            return
        self._pass = self._decode(count_after=after_tick)
        for frame in self._pass:
            if frame.pts is not None and frame.pts > after_tick:
                yield frame
        self._report.end_tick = max(self._report.end_tick or 0, first_pass.end_tick or 0)
        self._report.holes = first_pass.holes  # it saw the whole file

    def _count(self, packet: Packet[Any] | None) -> None:
        if packet is None:
            return
        if not self._report.packets and packet.has_sidedata("encryption_info"):
            raise InputError(f"{self._source} is encrypted and cannot be decoded")
        self._report.count_packet(packet)

    def _is_counted(self, packet: Packet[Any] | None, count_after: int | None) -> bool:
        if packet is None:  # flushing: the second pass counts
            return not self._seekable or self._threads == 1
        return count_after is None or packet.pts is None or packet.pts > count_after
