"""Decode the video stream of a container: seeking, damaged packets, truncated files.

Frames are returned as FFmpeg decodes them; `reader` assigns exact times and converts colors.
"""

from __future__ import annotations

import math
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

# Each frame thread holds one frame in memory.
_MAX_THREADS = 4
# The container's index is in decoding order: a keyframe may be shown later than its entry suggests.
# Then the seek is repeated from further back.
_SEEK_BACK_S = (0, 2, 10)
_MAX_READ_ERRORS = 100
# Formats that have an index of keyframes and a pts for every packet.
_EXACT_CONTAINERS = ("mov,", "matroska")
_EXACT_CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg2video", "mpeg4", "ffv1", "prores", "mjpeg", "dnxhd")
)


class ContainerFrames:
    """Decoder of one video stream that skips damaged packets and reports missing frames.

    Attributes:
        info: Description of the video. The first frame is decoded for it.
        seeks_exactly: The container finds keyframes by time, and the frames after a keyframe do not
            depend on those before it.
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
        # A pipe cannot be read again; a single thread drops no frames.
        self._may_redecode_tail = seekable and self._threads > 1
        self._report = DecodeReport()
        self._container: InputContainer = self._open_stream(self._threads)
        try:
            # Both must be read before the first packet is decoded.
            siting = read_siting(self._container, self._stream)
            origin_s = clock_origin(self._container)
            self._decoding = self._decode(self._read())
            first = next(self._decoding, None)
            if first is None:
                codec = self._stream.codec_context.codec.canonical_name
                raise InputError(
                    f"{source}: no frame of its {codec} video can be decoded{self._report.why}"
                )
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
            start_tick: pts of the first frame that the caller needs. Decoding starts at a keyframe
                at or before it. None decodes the whole video.
        """
        frames = chain([self._first], self._decoding)
        if start_tick is not None and self._seekable:
            frames = self._seek_to(start_tick)
        yield from self._with_redecoded_tail(frames)

    def frames_from_keyframe(self, start_tick: int) -> Iterator[VideoFrame] | None:
        """Yield all frames from a keyframe at or before `start_tick`, in presentation order.

        Args:
            start_tick: pts of the first frame that the caller needs.

        Returns:
            Frames bit-identical to those decoded from the beginning. None where that cannot be
            guaranteed; the decoder is then back at the first frame.

        Raises:
            InputError: The file can no longer be decoded from the beginning.
        """
        if not self.seeks_exactly:
            return None
        for back_s in _SEEK_BACK_S:
            seek_tick = start_tick - int(back_s / self.info.time_base)
            frames = self._begin_at_keyframe(start_tick, seek_tick)
            if frames is not None:
                return self._with_redecoded_tail(frames)

        # No keyframe can be trusted: go back to the first frame.
        self._restart(self._threads)
        self._decoding = self._decode(self._read())
        first = next(self._decoding, None)
        if first is None:
            raise InputError(
                f"{self._source}: no frame can be decoded any more; check whether the file was "
                "changed meanwhile"
            )
        self._first = first
        return None

    def problems(self, decoded: int, end_tick: int | None) -> list[str]:
        """Describe damaged and missing frames, one line each, after the last frame was read.

        Args:
            decoded: Number of frames that were returned.
            end_tick: pts at which the caller stopped; None where it read to the end of the file.
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
        lines: list[str] = []
        if ending:
            lines.append(ending)
        lines += self._report.describe_damage(self.info, end_tick, at_the_end=len(lines))
        return lines

    def close(self) -> None:
        """Close the file."""
        self._decoding.close()
        self._container.close()

    def _open_stream(self, threads: int) -> InputContainer:
        """Open the container and set up the decoder of its video stream."""
        container = self._open()
        try:
            self._stream = pick_video_stream(container, self._source)
        except InputError:
            container.close()
            raise
        context = self._stream.codec_context
        context.thread_type = "SLICE"
        if threads > 1:
            # Frame threads too.
            context.thread_type = "AUTO"
        context.thread_count = threads
        # A frame with a missing reference is concealed, not dropped.
        context.flags |= int(Flags.output_corrupt)
        return container

    def _restart(self, threads: int) -> None:
        """Open the file again at its beginning, with fresh counts."""
        self._decoding.close()
        self._container.close()
        self._report = DecodeReport()
        self._container = self._open_stream(threads)

    def _read(self) -> Iterator[Packet[Any] | None]:
        """Yield the packets of the video, then None, which flushes the decoder."""
        report = self._report
        rate = self._stream.average_rate
        if self._container.format.name == "matroska,webm" and rate:
            report.gaps = GapDetector(self._stream.index, rate)
        # The gap detector needs the packets of all streams: `demux()` without arguments reads all.
        streams = [] if report.gaps else [self._stream]
        while True:
            has_progress = False
            try:
                for packet in self._container.demux(*streams):
                    if not packet.size:
                        # It only marks the end of a stream.
                        continue
                    if report.gaps:
                        report.gaps.add_packet(packet)
                    has_progress = True
                    if packet.stream_index == self._stream.index:
                        yield packet
                break
            except av.FFmpegError as error:
                report.read_errors += 1
                report.reason = str(error.strerror)
                # Read on behind the damage, unless nothing more can be read.
                has_errors_left = report.read_errors < _MAX_READ_ERRORS
                if not has_progress or not has_errors_left:
                    break
        yield None

    def _decode(
        self,
        packets: Iterator[Packet[Any] | None],
        *,
        count_after: float = -math.inf,
    ) -> Generator[VideoFrame]:
        """Decode packets and count damage.

        Args:
            packets: Packets to decode; the last is None, which flushes the decoder.
            count_after: pts up to which an earlier pass has counted the damage already.
        """
        context = self._stream.codec_context
        report = self._report
        has_image = False
        for packet in packets:
            self._count(packet)
            try:
                frames = context.decode(packet)
            except EOFError:
                return
            except av.FFmpegError as error:
                if packet is None:
                    # An error while several threads are flushed is counted in `_redecode_tail`.
                    report.damaged += not self._may_redecode_tail
                else:
                    is_uncounted = packet.pts is None or packet.pts > count_after
                    report.damaged += is_uncounted
                report.reason = str(error.strerror)
                continue
            for frame in frames:
                report.frames += 1
                # A stream that begins between two keyframes: there is no complete image yet.
                lacks_reference = frame.is_corrupt and not frame.key_frame
                if lacks_reference and not has_image:
                    continue
                has_image = True
                frame_tick = frame.pts or 0
                is_uncounted = frame_tick > count_after
                report.concealed += frame.is_corrupt and is_uncounted
                report.count_frame(frame)
                yield frame

    def _seek(self, seek_tick: int) -> None:
        """Seek in the container and start new counts.

        Raises:
            av.FFmpegError: The container cannot seek there.
        """
        context: Any = self._stream.codec_context
        depth = context.reorder_depth
        self._decoding.close()
        self._report = DecodeReport()
        self._container.seek(seek_tick, stream=self._stream)
        # Flushing the decoder may reset the depth, which would lose B-frames.
        context.reorder_depth = depth

    def _seek_to(self, start_tick: int) -> Iterator[VideoFrame]:
        """Decode from a keyframe at or before `start_tick`, or from the start if seeking fails."""
        for back_s in _SEEK_BACK_S:
            try:
                back_ticks = int(back_s / self.info.time_base)
                self._seek(start_tick - back_ticks)
            except av.FFmpegError:
                break
            self._decoding = self._decode(self._read())
            first = next(self._decoding, None)
            if first is None or first.pts is None:
                continue
            if first.pts <= start_tick:
                return chain([first], self._decoding)
        self._restart(self._threads)
        self._decoding = self._decode(self._read())
        return self._decoding

    def _begin_at_keyframe(self, start_tick: int, seek_tick: int) -> Iterator[VideoFrame] | None:
        """Decode from the keyframe at `seek_tick`; None if it is not shown by `start_tick`."""
        try:
            self._seek(seek_tick)
        except av.FFmpegError:
            return None
        packets = self._read()
        key = next(packets, None)
        if key is None or not key.is_keyframe:
            return None
        if key.pts is None or key.pts > start_tick:
            return None
        self._decoding = self._decode(chain([key], packets))
        first = next(self._decoding, None)
        if first is None:
            return None
        # This fails for streams with intra refresh: they have no keyframes, only recovery points
        # from which the image becomes complete over several frames.
        is_shown_first = first.pts == key.pts
        if not first.key_frame or not is_shown_first:
            return None
        return chain([first], self._decoding)

    def _with_redecoded_tail(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield frames, and at the end of the file those that frame threads dropped."""
        last: VideoFrame | None = None
        for last in frames:
            yield last
        if last is None or last.pts is None:
            return
        # Every packet that is shown should have become a frame.
        is_short = self._report.frames < self._report.packets
        if is_short and self._may_redecode_tail:
            yield from self._redecode_tail(last.pts)

    def _redecode_tail(self, after_tick: int) -> Iterator[VideoFrame]:
        """Decode the end again on one thread: after an error, PyAV drops frames of its threads."""
        first_pass = self._report
        self._restart(threads=1)
        self._report.damaged = first_pass.damaged
        self._report.concealed = first_pass.concealed
        self._report.reason = first_pass.reason
        try:
            self._container.seek(after_tick, stream=self._stream)
        except av.FFmpegError:
            return
        self._decoding = self._decode(self._read(), count_after=after_tick)
        for frame in self._decoding:
            if frame.pts is not None and frame.pts > after_tick:
                yield frame
        first_end = first_pass.end_tick or 0
        second_end = self._report.end_tick or 0
        self._report.end_tick = max(second_end, first_end)
        # Only the first pass has seen the packets of the whole file.
        self._report.gaps = first_pass.gaps

    def _count(self, packet: Packet[Any] | None) -> None:
        """Count a packet that was read, and refuse an encrypted video at its first."""
        if packet is None:
            return
        is_first = self._report.packets == 0
        if is_first and packet.has_sidedata("encryption_info"):
            raise InputError(f"{self._source} is encrypted and cannot be decoded")
        self._report.count_packet(packet)
