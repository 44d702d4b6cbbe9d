"""Encode frames to packets: one encoder for each segment of a video, all with the same settings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import av
from av.format import ContainerFormat
from av.packet import Packet
from av.video.frame import VideoFrame

from tubelet.errors import RequestError, ResourceError
from tubelet.types import Frame
from tubelet.video.codecs import CODECS
from tubelet.video.color import to_video_frame
from tubelet.video.destination import write_errors
from tubelet.video.output_format import OutputClock, OutputFormat
from tubelet.video.palette import rgb_to_palette

__all__ = ["PacketSink", "PartHead", "PartTail", "VideoEncoder", "open_encoder", "reorder_depth"]

# FFmpeg's flags: AV_CODEC_FLAG_* of an encoder and AVFMT_* of a format.
_GLOBAL_HEADER = 1 << 22
# The encoder passes durations from frames to packets.
_FRAME_DURATION = 1 << 8
_FORMAT_GLOBAL_HEADER = 1 << 6
# PyAV's default for a stream of a container.
_BIT_RATE_TOLERANCE = 128_000
_MAX_X264_THREADS = 64
# Pixel formats of FFV1, and those that `to_video_frame` converts to instead.
_RGB_FORMATS = {"bgr0": "rgb24", "bgra": "rgba"}
# Signature and logical screen, which occur once in a file.
_GIF_HEADER_BYTES = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHead:
    """Properties of a segment that are known before its first packet.

    Attributes:
        segment: Number of the segment, from 0.
        fingerprint: Fingerprint of the `OutputFormat`.
        clock: Clock of the whole output.
        extradata: Header of the codec; empty where the packets carry it.
    """

    segment: int
    fingerprint: str
    clock: OutputClock
    extradata: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTail:
    """Properties of a segment that are known after its last packet.

    Attributes:
        frames: Number of frames.
        end: Tick at which the last frame ends.
        notes: Remarks for the user, one line each.
    """

    frames: int
    end: int
    notes: tuple[str, ...]


class PacketSink(Protocol):
    """A destination for the packets of segments: a muxer, or a file that stores them for one."""

    def begin(self, head: PartHead) -> None:
        """Start a segment."""
        ...

    def put(self, packet: Packet[Any]) -> None:
        """Write the next packet, in decoding order."""
        ...

    def end(self, tail: PartTail) -> None:
        """End the segment."""
        ...


class VideoEncoder:
    """Encoder of the frames of one segment.

    Its first packet is a keyframe, and no frame refers to one of another segment. Open GOPs (x265
    makes them) do not cross its borders.

    Attributes:
        notes: Remarks for the user, one line each.
    """

    def __init__(
        self,
        output_format: OutputFormat,
        clock: OutputClock,
        sink: PacketSink,
        *,
        segment: int = 0,
    ) -> None:
        """Start the encoder.

        Args:
            output_format: Format of the whole output.
            clock: Clock of the whole output.
            sink: Destination of the packets.
            segment: Number of the segment, from 0.

        Raises:
            RequestError: The encoder refuses the size, pixel format or preset.
            ResourceError: The encoder needs a device that is absent.
        """
        encoder = output_format.encoding.encoder
        self.notes: list[str] = []
        self._format = output_format
        self._clock = clock
        self._sink = sink
        self._name = f"the {encoder} stream"
        self._context: Any = open_encoder(output_format, segment=segment)
        # Only the first segment of a GIF keeps the header of the file.
        has_extra_header = encoder == "gif" and segment > 0
        self._skip_bytes = _GIF_HEADER_BYTES if has_extra_header else 0
        # A frame waits until the next one, which may determine its duration.
        self._pending: VideoFrame | None = None
        self._last_pts: int | None = None
        self._end = 0
        self._num_frames = 0
        head = PartHead(
            segment=segment,
            fingerprint=output_format.fingerprint,
            clock=clock,
            extradata=self._context.extradata or b"",
        )
        sink.begin(head)

    def write(self, frame: Frame) -> None:
        """Encode one frame; frames must be in presentation order.

        Args:
            frame: Frame of the size of the output.

        Raises:
            RequestError: The frame has another size.
            ResourceError: The sink cannot take the packets.
        """
        self._check_size(frame)
        image = self._convert(frame)
        image.pts = self._next_pts(frame.pts * frame.time_base)
        image.time_base = self._format.tick_s
        duration_s = frame.duration * frame.time_base
        image.duration = round(duration_s / self._format.tick_s)
        self._encode_pending(image.pts)
        self._pending = image
        self._num_frames += 1

    def finish(self, next_s: Fraction | None = None) -> None:
        """Encode the last frame and write the packets that the encoder still holds.

        Args:
            next_s: Time of the first frame of the next segment, in seconds of the source. The last
                frame lasts until then if its own duration is unknown. None at the end of the
                video.
        """
        next_pts: int | None = None
        if next_s is not None:
            next_pts = round(self._clock.exact(next_s))
        self._encode_pending(next_pts)
        if self._num_frames:
            self._encode(None)
        # Free the memory of this encoder: the next segment opens another.
        self._context = None
        tail = PartTail(
            frames=self._num_frames,
            end=self._end,
            notes=tuple(self.notes),
        )
        self._sink.end(tail)

    def _check_size(self, frame: Frame) -> None:
        height, width = frame.size
        expected_width = self._format.width
        expected_height = self._format.height
        if (width, height) != (expected_width, expected_height):
            raise RequestError(
                f"frame {frame.index} is {width}x{height}, but the output was opened for "
                f"{expected_width}x{expected_height}"
            )

    def _convert(self, frame: Frame) -> VideoFrame:
        """Convert R'G'B' to the pixel format of the output."""
        pix_fmt = self._format.encoding.pix_fmt
        if pix_fmt == "pal8":
            return rgb_to_palette(frame.rgb, frame.alpha)
        return to_video_frame(
            frame,
            pix_fmt=_RGB_FORMATS.get(pix_fmt, pix_fmt),
            color=self._format.matrix,
        )

    def _next_pts(self, time_s: Fraction) -> int:
        """Return the tick of the next frame: its rounded time, always after the previous one."""
        pts = round(self._clock.exact(time_s))
        if self._clock.moved_s(time_s) > self._format.max_rounding_s:
            container = self._format.container
            name = container.muxer if container else "the output"
            tick = f"{self._format.tick_s} s"
            self._note(f"times of frames are rounded to {tick}: {name} has no finer unit")
        if self._last_pts is not None and pts <= self._last_pts:
            self._note("times of frames that did not increase were moved to the next tick")
            pts = self._last_pts + 1
        self._last_pts = pts
        return pts

    def _encode_pending(self, next_pts: int | None) -> None:
        """Encode the waiting frame; if its duration is unknown, it lasts until `next_pts`."""
        image = self._pending
        self._pending = None
        if image is None:
            return
        pts = image.pts or 0
        if not image.duration and next_pts is not None:
            image.duration = max(1, next_pts - pts)
        if not image.duration:
            image.duration = self._format.usual_duration
        self._end = pts + image.duration
        self._encode(image)

    def _encode(self, image: VideoFrame | None) -> None:
        """Encode an image, or flush the encoder with None, and pass the packets on."""
        with write_errors(self._name):
            packets: Iterable[Packet[Any]] = self._context.encode(image)
        for packet in packets:
            if self._skip_bytes:
                packet = _without_head(packet, self._skip_bytes)
                self._skip_bytes = 0
            self._sink.put(packet)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def open_encoder(output_format: OutputFormat, *, context: Any = None, segment: int = 0) -> Any:
    """Set up and open an encoder.

    Args:
        output_format: Format of the output.
        context: Codec context to set up, for example that of a container's stream; None creates
            one.
        segment: Number of the segment that will be encoded.

    Returns:
        The codec context, untyped: its properties are missing from the stubs.

    Raises:
        RequestError: The encoder refuses the size, pixel format or preset.
        ResourceError: The encoder needs a device that is absent.
    """
    encoding = output_format.encoding
    if context is None:
        # The same settings as PyAV makes for a stream of a container.
        context = av.CodecContext.create(encoding.encoder, "w")
        context.framerate = output_format.frame_rate
        context.bit_rate = 0
        context.bit_rate_tolerance = _BIT_RATE_TOLERANCE
        if _needs_global_header(output_format):
            context.flags |= _GLOBAL_HEADER
    context.width = output_format.width
    context.height = output_format.height
    context.pix_fmt = encoding.pix_fmt
    context.time_base = output_format.tick_s

    options = dict(encoding.options)
    if output_format.container is not None:
        _set_tags(context, output_format, options)
        context.flags |= _FRAME_DURATION
        context.thread_type = "AUTO"
    if encoding.encoder == "libsvtav1":
        # Keeps SVT-AV1 from printing its settings on stderr.
        os.environ.setdefault("SVT_LOG", "1")
    if encoding.encoder == "libx264":
        # By default x264 starts 1.5 threads per core, which slows down the network.
        context.thread_count = min(os.cpu_count() or 1, _MAX_X264_THREADS)
    if encoding.encoder == "gif" and segment:
        # The global palette is that of the first segment; later frames carry their own.
        options["global_palette"] = "0"
    context.options = options
    _open_context(context, output_format, options)
    return context


def reorder_depth(output_format: OutputFormat) -> int:
    """Return by how many frames the packets of an encoder may precede their turn.

    An encoder is opened to find out. x264 reports the depth itself; x265 writes it only into its
    header, which a decoder reads.
    """
    encoding = output_format.encoding
    codec = encoding.codec.removesuffix("_nvenc")
    if codec not in ("h264", "hevc"):
        return 0
    context: Any = av.CodecContext.create(encoding.encoder, "w")
    context.framerate = output_format.frame_rate
    context.flags |= _GLOBAL_HEADER
    encoder = open_encoder(output_format, context=context)
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.extradata = encoder.extradata
    decoder.open()
    return max(int(encoder.reorder_depth), int(decoder.reorder_depth))


def _needs_global_header(output_format: OutputFormat) -> bool:
    """Return whether the container stores the codec header instead of the packets."""
    if output_format.container is None:
        return False
    muxer = ContainerFormat(output_format.container.muxer, "w")
    return bool(int(muxer.flags) & _FORMAT_GLOBAL_HEADER)


def _set_tags(context: Any, output_format: OutputFormat, options: dict[str, str]) -> None:
    """Set color tags, sample aspect and codec tag, in the context or in the options."""
    tags = output_format.tags
    encoding = output_format.encoding
    is_rgb = encoding.pix_fmt.startswith(("gbr", "bgr"))
    context.color_primaries = tags.primaries
    context.color_trc = tags.transfer
    context.colorspace = 0 if is_rgb else tags.matrix
    if tags.full_range is not None:
        # AVCOL_RANGE_MPEG is 1 and AVCOL_RANGE_JPEG is 2.
        context.color_range = 1 + int(tags.full_range)
    if tags.siting and "420" in encoding.pix_fmt:
        options["chroma_sample_location"] = str(tags.siting)
    if output_format.sample_aspect != 1:
        context.sample_aspect_ratio = output_format.sample_aspect
    if encoding.tag:
        context.codec_tag = encoding.tag


def _open_context(context: Any, output_format: OutputFormat, options: dict[str, str]) -> None:
    """Open an encoder, and translate FFmpeg's error."""
    encoding = output_format.encoding
    encoder = encoding.encoder
    try:
        context.open()
    except av.FFmpegError as error:
        if encoder.endswith("_nvenc"):
            codec = encoder.removesuffix("_nvenc")
            raise ResourceError(
                f"{encoder} needs an NVIDIA GPU with its driver, which is not there; "
                f"use --codec {codec}"
            ) from error
        spec = CODECS.get(encoding.codec)
        preset = options.get(spec.preset_option) if spec else None
        raise RequestError(
            f"{encoder} refuses {context.width}x{context.height} {encoding.pix_fmt} with "
            f"preset={preset}: {error.strerror}; try another preset or codec"
        ) from error


def _without_head(packet: Packet[Any], size: int) -> Packet[Any]:
    """Copy a packet without its first `size` bytes."""
    copy: Packet[Any] = Packet(bytes(packet)[size:])
    copy.pts = packet.pts
    copy.dts = packet.dts
    copy.duration = packet.duration
    copy.time_base = packet.time_base
    copy.is_keyframe = packet.is_keyframe
    return copy
