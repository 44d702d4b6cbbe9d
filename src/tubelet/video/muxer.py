"""Write the packets of all segments and the other streams of the source into one container."""

from __future__ import annotations

import contextlib
import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.packet import Packet

from tubelet.video.codecs import ContainerSpec
from tubelet.video.decoding_order import DecodingOrder
from tubelet.video.destination import write_errors
from tubelet.video.encoder import PartHead, PartTail, open_encoder, reorder_depth
from tubelet.video.info import VideoInfo
from tubelet.video.output_format import OutputClock, OutputFormat
from tubelet.video.part_order import PartOrder
from tubelet.video.remux import open_remuxer

__all__ = ["VideoMuxer"]

# Options that reduce the memory of an encoder that is only opened: 0.2 GB less at 3840x2160.
_IDLE_OPTIONS = {"libsvtav1": ("svtav1-params", "lp=1")}


class VideoMuxer:
    """A `PacketSink` that writes a container: the video, and in step with it the other streams.

    Segments must be put in order, from an encoder or from a part file. Their joints are not visible
    in the container.

    Attributes:
        notes: Remarks for the user, one line each.
    """

    def __init__(
        self,
        path: Path | None,
        output_format: OutputFormat,
        *,
        like: VideoInfo,
        name: str,
    ) -> None:
        """Open the container; nothing is written before the first packet.

        Args:
            path: File to write; None writes to stdout.
            output_format: Format in which the video is encoded.
            like: Description of the input.
            name: Name of the output in messages.

        Raises:
            RequestError: The encoder refuses the size, pixel format or preset.
            ResourceError: The encoder needs a device that is absent.
        """
        spec = output_format.container
        assert spec is not None, "images are written by ImageMuxer"
        self.notes: list[str] = list(output_format.encoding.notes)
        self._format = output_format
        self._spec: ContainerSpec = spec
        self._name = name
        url = "pipe:1"
        if path:
            # The protocol is named, because FFmpeg would look for one in a name with a colon.
            url = f"file:{path}"
        self._container = av.open(
            url,
            "w",
            format=spec.muxer,
            container_options=_muxer_options(output_format, spec),
        )
        self._stream = self._add_stream()
        self._remuxer = open_remuxer(
            like,
            self._container,
            self._stream,
            suffix=output_format.suffix,
            notes=self.notes,
        )
        self._parts = PartOrder(output_format.fingerprint)
        self._depth = reorder_depth(output_format)
        self._order = DecodingOrder(self._depth)
        self._clock: OutputClock | None = None
        self._is_new_segment = True
        # Ticks by which the packets of this segment are moved.
        self._shift = 0
        self._last_pts: int | None = None
        # Ticks from dts to pts of the first packet.
        self._first_delay: int | None = None
        # The last packet waits, because it may have to last longer.
        self._pending: Packet[Any] | None = None
        self._end = 0

    def begin(self, head: PartHead) -> None:
        """Start a segment.

        Raises:
            InputError: It is not the next segment, or was encoded differently.
        """
        self._parts.begin(head)
        self._is_new_segment = True
        self._shift = 0
        if self._clock is not None:
            return
        self._clock = head.clock
        if self._remuxer:
            span: Fraction | None = None
            if self._format.duration_s is not None:
                span = Fraction(self._format.duration_s)
            with write_errors(self._name):
                self._remuxer.begin(head.clock.origin_s, span, is_cut=self._format.is_cut)

    def put(self, packet: Packet[Any]) -> None:
        """Write the next packet of the segment."""
        self._shift_over_joint(packet)
        packet.stream = self._stream
        for ready in self._order.put(packet):
            self._mux(ready)

    def end(self, tail: PartTail) -> None:
        """End the segment."""
        self._parts.end(tail)
        if tail.frames:
            self._end = max(self._end, tail.end + self._shift)
        for line in tail.notes:
            self._note(line)

    def finish(self) -> None:
        """Write the pending packets, the rest of the other streams, and the index.

        Raises:
            InputError: No frame was written.
            ResourceError: The disk is full, or the pipe was closed.
        """
        self._parts.finish()
        for ready in self._order.flush():
            self._mux(ready)
        if self._pending is not None:
            self._extend_to_end(self._pending)
            self._write(self._pending)
        with write_errors(self._name):
            if self._remuxer:
                end_s: Fraction | None = None
                if self._format.duration_s is not None:
                    end_s = self._end * self._format.tick_s
                self._remuxer.finish(end_s)
            self._container.close()

    def abort(self) -> None:
        """Close the file, whose content is of no use any more."""
        if self._remuxer:
            self._remuxer.close()
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()

    def _add_stream(self) -> Any:
        """Add the video stream; an encoder that never encodes provides its header."""
        output_format = self._format
        encoder = output_format.encoding.encoder
        stream: Any = self._container.add_stream(encoder, rate=output_format.frame_rate)
        stream.time_base = output_format.tick_s
        open_encoder(_with_idle_options(output_format), context=stream.codec_context)
        return stream

    def _shift_over_joint(self, packet: Packet[Any]) -> None:
        """Keep times increasing where the previous segment moved some of its own to the next tick.

        If packets are in presentation order, each moves as far as it must, as in one encoder for
        the whole video. If they are reordered, all packets of the segment move as far as its first.
        """
        if packet.pts is None:
            return
        pts = packet.pts + self._shift
        is_movable = self._depth == 0 or self._is_new_segment
        if self._last_pts is None:
            # The first packet cannot be late.
            self._last_pts = pts - 1
        late = self._last_pts + 1 - pts
        if late > 0 and is_movable:
            self._note("times of frames that did not increase were moved to the next tick")
            pts += late
            if self._depth:
                self._shift += late
        self._is_new_segment = False
        self._last_pts = max(self._last_pts, pts)
        packet.pts = pts

    def _mux(self, packet: Packet[Any]) -> None:
        """Write the pending packet, now that it is not the last, and hold this one back."""
        if self._pending is not None:
            self._write(self._pending)
        elif packet.pts is not None and packet.dts is not None:
            self._first_delay = packet.pts - packet.dts
        self._pending = packet

    def _write(self, packet: Packet[Any]) -> None:
        """Write a packet after those of the other streams that precede it."""
        with write_errors(self._name):
            if self._remuxer and packet.dts is not None:
                self._remuxer.advance(packet.dts * self._format.tick_s)
            self._container.mux(packet)

    def _extend_to_end(self, packet: Packet[Any]) -> None:
        """Let the last packet last to the end: MP4 adds up durations in decoding order."""
        if not self._spec.is_mov_family:
            return
        if packet.dts is None or self._first_delay is None:
            return
        decoding_time = packet.dts + self._first_delay
        presentation_time = packet.pts or 0
        remaining = min(self._end - decoding_time, self._end - presentation_time)
        duration = packet.duration or 0
        packet.duration = max(duration, remaining)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _muxer_options(output_format: OutputFormat, spec: ContainerSpec) -> dict[str, str]:
    options = dict(spec.options)
    if spec.is_mov_family:
        # MP4 stores offsets between streams in ticks of the movie: at least 1000 per second, and a
        # multiple of those of the video, so that none is rounded.
        ticks_per_s = output_format.tick_s.denominator
        options["movie_timescale"] = str(ticks_per_s * -(-1000 // ticks_per_s))
    return options


def _with_idle_options(output_format: OutputFormat) -> OutputFormat:
    """Add options that save memory and do not change the header of the stream."""
    encoding = output_format.encoding
    if encoding.encoder not in _IDLE_OPTIONS:
        return output_format
    name, value = _IDLE_OPTIONS[encoding.encoder]
    current = encoding.options.get(name)
    options = dict(encoding.options)
    options[name] = value
    if current:
        # Keep the options that are set already; a colon separates them.
        options[name] = f"{current}:{value}"
    idle_encoding = dataclasses.replace(encoding, options=options)
    return dataclasses.replace(output_format, encoding=idle_encoding)
