"""Packets of segments and the other streams of the source, into one container."""

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

# Options that make an encoder small which never encodes: 0.2 GB less at 3840x2160.
_IDLE_OPTIONS = {"libsvtav1": ("svtav1-params", "lp=1")}


class VideoMuxer:
    """A `PacketSink` that writes a container: the video, and in step with it the other streams.

    Segments come in the order of the video, from an encoder or from a part file. Their joints do
    not show.

    Attributes:
        notes: what a user should know, a line each.
    """

    def __init__(
        self,
        path: Path | None,
        form: OutputFormat,
        *,
        like: VideoInfo,
        name: str,
    ) -> None:
        """Open the container; nothing is written before the first packet.

        Args:
            path: file to write; None writes to stdout.
            form: how the video is encoded.
            like: the input.
            name: of the output, for messages.

        Raises:
            RequestError: the encoder refuses what the format says.
            ResourceError: the encoder needs a device that is absent.
        """
        spec = form.container
        assert spec is not None, "images have a muxer of their own"
        self.notes: list[str] = list(form.encoding.notes)
        self._form = form
        self._spec: ContainerSpec = spec
        self._name = name
        self._container = av.open(
            f"file:{path}" if path else "pipe:1",
            "w",
            format=spec.muxer,
            container_options=_muxer_options(form, spec),
        )
        self._stream = self._add_stream()
        self._remuxer = open_remuxer(
            like,
            self._container,
            self._stream,
            suffix=form.suffix,
            notes=self.notes,
        )
        self._parts = PartOrder(form.fingerprint)
        self._depth = reorder_depth(form)
        self._order = DecodingOrder(self._depth)
        self._clock: OutputClock | None = None
        self._is_new_segment = True
        self._shift = 0  # ticks by which the packets of this segment are moved
        self._last_pts: int | None = None
        self._first_delay: int | None = None  # pts after dts of the first packet
        self._held: Packet[Any] | None = None  # the last packet may have to last longer
        self._end = 0

    def begin(self, head: PartHead) -> None:
        """Start a segment.

        Raises:
            InputError: it is not the one that is due, or is encoded in another way.
        """
        self._parts.begin(head)
        self._is_new_segment = True
        self._shift = 0
        if self._clock is not None:
            return
        self._clock = head.clock
        if self._remuxer:
            duration_s = self._form.duration_s
            span = None if duration_s is None else Fraction(duration_s)
            with write_errors(self._name):
                self._remuxer.begin(head.clock.origin_s, span, is_cut=self._form.is_cut)

    def put(self, packet: Packet[Any]) -> None:
        """Take the next packet of the segment."""
        self._place(packet)
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
        """Write what is held, the rest of the other streams, and the index.

        Raises:
            InputError: no frame came.
            ResourceError: the disk is full, or the pipe was closed.
        """
        self._parts.finish()
        for ready in self._order.flush():
            self._mux(ready)
        if self._held is not None:
            self._lengthen(self._held)
            self._write(self._held)
        with write_errors(self._name):
            if self._remuxer:
                end_s = self._end * self._form.tick_s
                self._remuxer.finish(None if self._form.duration_s is None else end_s)
            self._container.close()

    def abort(self) -> None:
        """Let go of the file without caring for its content."""
        if self._remuxer:
            self._remuxer.close()
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()

    def _add_stream(self) -> Any:
        """Add the video; an encoder that stays idle gives all that the header says of it."""
        form = self._form
        stream: Any = self._container.add_stream(form.encoding.encoder, rate=form.frame_rate)
        stream.time_base = form.tick_s
        open_encoder(_idle(form), context=stream.codec_context)
        return stream

    def _place(self, packet: Packet[Any]) -> None:
        """Keep times increasing over a joint, where the segment before moved some to the next tick.

        Where packets come in order, each moves as far as it must, as in one encoder for the whole
        video. Where they are reordered, all of the segment move as far as its first.
        """
        if packet.pts is None:
            return
        pts = packet.pts + self._shift
        is_movable = self._depth == 0 or self._is_new_segment
        if self._last_pts is not None and pts <= self._last_pts and is_movable:
            late = self._last_pts + 1 - pts
            self._note("times of frames that did not increase were moved to the next tick")
            pts += late
            self._shift += late if self._depth else 0
        self._is_new_segment = False
        self._last_pts = pts if self._last_pts is None else max(self._last_pts, pts)
        packet.pts = pts

    def _mux(self, packet: Packet[Any]) -> None:
        """Write the packet before this one, now that it is not the last."""
        if self._held is not None:
            self._write(self._held)
        elif packet.pts is not None and packet.dts is not None:
            self._first_delay = packet.pts - packet.dts
        self._held = packet

    def _write(self, packet: Packet[Any]) -> None:
        with write_errors(self._name):
            if self._remuxer and packet.dts is not None:
                self._remuxer.advance(packet.dts * self._form.tick_s)
            self._container.mux(packet)

    def _lengthen(self, packet: Packet[Any]) -> None:
        """Let the last packet last to the end: MP4 adds up durations in the order of decoding."""
        if not self._spec.is_mov_family or packet.dts is None or self._first_delay is None:
            return
        rest = min(self._end - (packet.dts + self._first_delay), self._end - (packet.pts or 0))
        packet.duration = max(packet.duration or 0, rest)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _muxer_options(form: OutputFormat, spec: ContainerSpec) -> dict[str, str]:
    options = dict(spec.options)
    if spec.is_mov_family:  # offsets between streams are kept in these ticks
        ticks = form.tick_s.denominator
        options["movie_timescale"] = str(ticks * -(-1000 // ticks))
    return options


def _idle(form: OutputFormat) -> OutputFormat:
    """Give the format with options that do not show in the header of a stream."""
    encoding = form.encoding
    if encoding.encoder not in _IDLE_OPTIONS:
        return form
    name, value = _IDLE_OPTIONS[encoding.encoder]
    given = encoding.options.get(name)
    options = {**encoding.options, name: f"{given}:{value}" if given else value}
    return dataclasses.replace(form, encoding=dataclasses.replace(encoding, options=options))
