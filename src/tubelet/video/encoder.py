"""Frames to packets: one encoder for each segment of a video, all set up alike."""

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
from tubelet.video.color import rgb_to_frame
from tubelet.video.destination import write_errors
from tubelet.video.output_format import OutputClock, OutputFormat
from tubelet.video.palette import rgb_to_palette

__all__ = ["PacketSink", "PartHead", "PartTail", "VideoEncoder", "open_encoder", "reorder_depth"]

_GLOBAL_HEADER = 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER
_FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: the encoder hands durations through
_FORMAT_GLOBAL_HEADER = 1 << 6  # AVFMT_GLOBALHEADER
_BIT_RATE_TOLERANCE = 128_000  # PyAV's default for a stream of a container
_MAX_X264_THREADS = 64
_RGB_FORMATS = {"bgr0": "rgb24", "bgra": "rgba"}  # of FFV1, and as it is filled
_GIF_HEADER_BYTES = 13  # signature and logical screen; written once for a file


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHead:
    """What is known of a segment before its first packet.

    Attributes:
        segment: number of the segment, from 0.
        fingerprint: of the `OutputFormat`.
        clock: of the whole output.
        extradata: header of the codec, empty where the packets carry it.
    """

    segment: int
    fingerprint: str
    clock: OutputClock
    extradata: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTail:
    """What is known of a segment after its last packet.

    Attributes:
        frames: number of frames.
        end: tick at which the last frame ends.
        notes: what a user should know, a line each.
    """

    frames: int
    end: int
    notes: tuple[str, ...]


class PacketSink(Protocol):
    """Where the packets of segments go: a muxer, or a file that holds them for one."""

    def begin(self, head: PartHead) -> None:
        """Start a segment."""
        ...

    def put(self, packet: Packet[Any]) -> None:
        """Take the next packet, in the order of decoding."""
        ...

    def end(self, tail: PartTail) -> None:
        """End the segment."""
        ...


class VideoEncoder:
    """Encodes the frames of one segment.

    Its first packet is a keyframe, and no frame refers to one of another segment. Open groups of
    images (x265 makes them) lie inside the segment.

    Attributes:
        notes: what a user should know, a line each.
    """

    def __init__(
        self,
        form: OutputFormat,
        clock: OutputClock,
        sink: PacketSink,
        *,
        segment: int = 0,
    ) -> None:
        """Start the encoder.

        Args:
            form: of the whole output.
            clock: of the whole output.
            sink: takes the packets.
            segment: number of the segment, from 0.

        Raises:
            RequestError: the encoder refuses size, pixel format or preset.
            ResourceError: the encoder needs a device that is absent.
        """
        self.notes: list[str] = []
        self._form = form
        self._clock = clock
        self._sink = sink
        self._name = f"the {form.encoding.encoder} stream"
        self._context: Any = open_encoder(form, segment=segment)
        self._skip_bytes = _GIF_HEADER_BYTES if form.encoding.encoder == "gif" and segment else 0
        self._held: VideoFrame | None = None  # the next frame may give its duration
        self._last_pts: int | None = None
        self._end = 0
        self._frames = 0
        head = PartHead(
            segment=segment,
            fingerprint=form.fingerprint,
            clock=clock,
            extradata=self._context.extradata or b"",
        )
        sink.begin(head)

    def write(self, frame: Frame) -> None:
        """Encode one frame; frames come in presentation order.

        Args:
            frame: rgb of the size of the output.

        Raises:
            RequestError: the frame has another size.
            ResourceError: the sink cannot take the packets.
        """
        self._check_size(frame)
        image = self._convert(frame)
        image.pts = self._next_pts(frame.pts * frame.time_base)
        image.time_base = self._form.tick_s
        image.duration = round(frame.duration * frame.time_base / self._form.tick_s)
        self._release(image.pts)
        self._held = image
        self._frames += 1

    def finish(self, next_s: Fraction | None = None) -> None:
        """Hand over what the encoder still holds.

        Args:
            next_s: time of the first frame of the next segment, in seconds of the source. The last
                frame lasts until then where its own duration is unknown. None at the end of the
                video.
        """
        self._release(None if next_s is None else round(self._clock.exact(next_s)))
        if self._frames:
            self._encode(None)
        # The next segment needs an encoder of its own: free the memory of this one.
        self._context = None
        self._sink.end(PartTail(frames=self._frames, end=self._end, notes=tuple(self.notes)))

    def _check_size(self, frame: Frame) -> None:
        height, width = frame.rgb.shape[-2:]
        if (width, height) != (self._form.width, self._form.height):
            raise RequestError(
                f"frame {frame.index} is {width}x{height}, but the output was opened for "
                f"{self._form.width}x{self._form.height}"
            )

    def _convert(self, frame: Frame) -> VideoFrame:
        pix_fmt = self._form.encoding.pix_fmt
        if pix_fmt == "pal8":
            return rgb_to_palette(frame.rgb, frame.alpha)
        planes = _RGB_FORMATS.get(pix_fmt, pix_fmt)
        return rgb_to_frame(frame.rgb, frame.alpha, pix_fmt=planes, color=self._form.matrix)

    def _next_pts(self, time_s: Fraction) -> int:
        pts = round(self._clock.exact(time_s))
        if self._clock.moved_s(time_s) > self._form.max_rounding_s:
            container = self._form.container
            name = container.muxer if container else "the output"
            self._note(f"times of frames are rounded to {self._form.tick_s} s: {name} has no finer")
        if self._last_pts is not None and pts <= self._last_pts:
            self._note("times of frames that did not increase were moved to the next tick")
            pts = self._last_pts + 1
        self._last_pts = pts
        return pts

    def _release(self, next_pts: int | None) -> None:
        """Encode the frame that waits; where its duration is unknown, it lasts until the next."""
        held, self._held = self._held, None
        if held is None:
            return
        pts = held.pts or 0
        if not held.duration and next_pts is not None:
            held.duration = max(1, next_pts - pts)
        if not held.duration:
            held.duration = self._form.usual_duration
        self._end = pts + held.duration
        self._encode(held)

    def _encode(self, image: VideoFrame | None) -> None:
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


def open_encoder(form: OutputFormat, *, context: Any = None, segment: int = 0) -> Any:
    """Set up and open an encoder.

    Args:
        form: of the output.
        context: to set up, for example that of a container's stream; None makes one.
        segment: number of the segment that will be encoded.

    Returns:
        The codec context, untyped: its properties are missing from the stubs.

    Raises:
        RequestError: the encoder refuses size, pixel format or preset.
        ResourceError: the encoder needs a device that is absent.
    """
    encoding = form.encoding
    if context is None:
        context = av.CodecContext.create(encoding.encoder, "w")
        context.framerate = form.frame_rate
        context.bit_rate = 0
        context.bit_rate_tolerance = _BIT_RATE_TOLERANCE
        if _wants_global_header(form):
            context.flags |= _GLOBAL_HEADER
    context.width = form.width
    context.height = form.height
    context.pix_fmt = encoding.pix_fmt
    context.time_base = form.tick_s
    options = dict(encoding.options)
    if form.container is not None:
        _set_tags(context, form, options)
        context.flags |= _FRAME_DURATION
        context.thread_type = "AUTO"
    if encoding.encoder == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it prints its settings on stderr otherwise
    if encoding.encoder == "libx264":
        # Its own choice, half as many again, crowds the model.
        context.thread_count = min(os.cpu_count() or 1, _MAX_X264_THREADS)
    if encoding.encoder == "gif" and segment:
        # The palette of the file is that of the first segment; later frames bring their own.
        options["global_palette"] = "0"
    context.options = options
    _start(context, form, options)
    return context


def reorder_depth(form: OutputFormat) -> int:
    """Find out by how many frames the packets of an encoder may come before their turn.

    An encoder is opened for it. x264 says so itself; x265 only in its header, which a decoder
    reads.
    """
    encoding = form.encoding
    if encoding.codec.removesuffix("_nvenc") not in ("h264", "hevc"):
        return 0
    context: Any = av.CodecContext.create(encoding.encoder, "w")
    context.framerate = form.frame_rate
    context.flags |= _GLOBAL_HEADER
    opened = open_encoder(form, context=context)
    decoder: Any = av.CodecContext.create(encoding.codec.removesuffix("_nvenc"), "r")
    decoder.extradata = opened.extradata
    decoder.open()
    return max(int(opened.reorder_depth), int(decoder.reorder_depth))


def _wants_global_header(form: OutputFormat) -> bool:
    if form.container is None:
        return False
    return bool(int(ContainerFormat(form.container.muxer, "w").flags) & _FORMAT_GLOBAL_HEADER)


def _set_tags(context: Any, form: OutputFormat, options: dict[str, str]) -> None:
    tags = form.tags
    is_rgb = form.encoding.pix_fmt.startswith(("gbr", "bgr"))
    context.color_primaries = tags.primaries
    context.color_trc = tags.transfer
    context.colorspace = 0 if is_rgb else tags.matrix
    if tags.full_range is not None:
        context.color_range = 1 + int(tags.full_range)
    if tags.siting and "420" in form.encoding.pix_fmt:
        options["chroma_sample_location"] = str(tags.siting)
    if form.sample_aspect != 1:
        context.sample_aspect_ratio = form.sample_aspect
    if form.encoding.tag:
        context.codec_tag = form.encoding.tag


def _start(context: Any, form: OutputFormat, options: dict[str, str]) -> None:
    encoder = form.encoding.encoder
    try:
        context.open()
    except av.FFmpegError as error:
        if encoder.endswith("_nvenc"):
            raise ResourceError(
                f"{encoder} needs an NVIDIA GPU with its driver, which is not there; use --codec "
                f"{encoder.removesuffix('_nvenc')}"
            ) from error
        spec = CODECS.get(form.encoding.codec)
        preset = options.get(spec.preset_option) if spec else None
        raise RequestError(
            f"{encoder} refuses {context.width}x{context.height} {form.encoding.pix_fmt} with "
            f"preset={preset}: {error.strerror}; try another preset or codec"
        ) from error


def _without_head(packet: Packet[Any], size: int) -> Packet[Any]:
    """Copy a packet without its first bytes."""
    rest: Packet[Any] = Packet(bytes(packet)[size:])
    rest.pts = packet.pts
    rest.dts = packet.dts
    rest.duration = packet.duration
    rest.time_base = packet.time_base
    rest.is_keyframe = packet.is_keyframe
    return rest
