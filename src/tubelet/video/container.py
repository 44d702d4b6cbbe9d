"""Open a container and describe it: streams, size, rates, color tags, rotation, HDR metadata."""

from __future__ import annotations

import re
import struct
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
from av.container import Flags, InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tubelet.errors import InputError, error_text
from tubelet.video.info import ColorTags, HdrMetadata, Orientation, StreamInfo, VideoInfo

__all__ = [
    "clock_origin",
    "describe",
    "open_container",
    "orientation_of",
    "pick_video_stream",
    "read_siting",
]

# FFmpeg's names of AVCHROMA_LOC_*, by value.
_SITINGS = ("unspecified", "left", "center", "topleft", "top", "bottomleft", "bottom")
# Formats whose clock may start anywhere.
_FREE_CLOCKS = ("mpegts", "mpeg")
_AV_LOG_INFO = 32
_UNSPECIFIED = 2
# AVCOL_RANGE_*: 0 unspecified, 1 limited, 2 full.
_FULL_RANGE_TAGS = {0: None, 1: False, 2: True}
_DEFAULT_TIME_BASE = Fraction(1, 90000)
# Sizes of FFmpeg's structures in bytes.
_DISPLAY_MATRIX_BYTES = 36
_MASTERING_DISPLAY_BYTES = 88
_LIGHT_LEVEL_BYTES = 8
# First boxes of an MP4 or MOV file.
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide")
# Counter-clockwise by 0, 90, 180, 270 degrees.
_ROTATIONS = (
    Orientation(),
    Orientation(transpose=True, flip_y=True),
    Orientation(flip_x=True, flip_y=True),
    Orientation(transpose=True, flip_x=True),
)
_dump_lock = threading.Lock()


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a decoded frame.

    Right angles and mirrors are exact; other rotations are rounded to the nearest of them.
    """
    data = _side_data(frame, SideDataType.DISPLAYMATRIX, _DISPLAY_MATRIX_BYTES)
    if data is None:
        return _ROTATIONS[round(frame.rotation / 90) % 4]
    # x' = a·x + c·y, y' = b·x + d·y, in 16.16 fixed point.
    a, b, _, c, d = struct.unpack_from("=5i", data)
    is_transposed = abs(b) + abs(c) > abs(a) + abs(d)
    if is_transposed:
        return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(flip_x=a < 0, flip_y=d < 0)


def open_container(path: Path) -> InputContainer:
    """Open a local file for reading.

    Args:
        path: Path of the file.

    Returns:
        The container. A local file cannot make FFmpeg open a network address.

    Raises:
        InputError: The file is missing, empty, unreadable, or not a media file.
    """
    # Report common mistakes by their cause.
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a video file")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")

    try:
        container = av.open(
            f"file:{path}",
            mode="r",
            options={"protocol_whitelist": "file,data,crypto"},
            metadata_errors="replace",
        )
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = _failure_reason(path, error)
        raise InputError(f"{path} is not a video that can be read: {reason}") from error
    # PyAV lets FFmpeg guess missing pts, which is wrong where B-frames have none.
    container.flags &= ~int(Flags.gen_pts.value)
    if container.format.name == "tty":
        # FFmpeg would render the letters as a video.
        container.close()
        raise InputError(f"{path} is a text file, not a video")
    return container


def pick_video_stream(container: InputContainer, source: str) -> VideoStream:
    """Choose the video: the default one, else the first; cover images are ignored.

    Raises:
        InputError: There is none, or no decoder for it.
    """
    streams: list[VideoStream] = []
    for candidate in container.streams.video:
        is_cover_image = "attached_pic" in _flags(candidate)
        if not is_cover_image:
            streams.append(candidate)
    if not streams:
        kinds = {str(stream.type) for stream in container.streams}
        kinds_text = ", ".join(sorted(kinds)) or "nothing"
        raise InputError(f"{source} has no video stream, only {kinds_text}")
    # `max` returns the first of equals: the first default stream, else the first stream.
    stream = max(streams, key=lambda candidate: "default" in _flags(candidate))
    context: Any = stream.codec_context
    if context is None:
        raise InputError(
            f"{source} has a video that no decoder here can read (codec tag {_codec(stream)!r})"
        )
    return stream


def read_siting(container: InputContainer, stream: VideoStream) -> int:
    """Read the chroma siting (AVCHROMA_LOC_*), before the first packet is decoded.

    PyAV exposes it only in FFmpeg's dump of the format, at a verbose log level. While that level is
    set, every thread that logs waits for the interpreter; a decoder thread that logs while its
    decoder is freed would wait forever.
    """
    pix_fmt = re.escape(str(stream.codec_context.pix_fmt))
    # For example: Stream #0:0: Video: h264 (High), yuv420p(tv, bt709/bt709/smpte170m, topleft), ...
    tags = re.search(
        rf"^\s*Stream #0:{stream.index}\b.*?{pix_fmt}\(([^)\n]*)",
        _dump_format(container),
        re.MULTILINE,
    )
    if tags is None:
        return 0
    for word in tags.group(1).replace("/", ", ").split(", "):
        if word in _SITINGS:
            return _SITINGS.index(word)
    return 0


def _dump_format(container: InputContainer) -> str:
    """Return FFmpeg's description of a container, at a verbose log level."""
    with _dump_lock:
        previous_level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        av.logging.set_libav_level(av.logging.VERBOSE)
        try:
            # dumps_format is missing from the stubs.
            untyped: Any = container
            return str(untyped.dumps_format())
        finally:
            av.logging.set_libav_level(_AV_LOG_INFO)
            av.logging.set_level(previous_level)


def clock_origin(container: InputContainer) -> Fraction:
    """Return the time from which an output counts, before the first packet is decoded.

    Returns:
        Seconds: 0, or the first timestamp if the clock of the format may start anywhere.
    """
    if container.format.name not in _FREE_CLOCKS:
        return Fraction(0)
    starts_s: list[Fraction] = []
    for stream in container.streams:
        if stream.start_time is not None and stream.time_base:
            starts_s.append(stream.start_time * stream.time_base)
    return min(starts_s, default=Fraction(0))


def describe(
    container: InputContainer,
    stream: VideoStream,
    frame: VideoFrame,
    source: str,
    *,
    siting: int,
    origin_s: Fraction = Fraction(0),
) -> VideoInfo:
    """Describe a video by its container, its stream and its first decoded frame.

    Args:
        container: Container of the stream.
        stream: Video stream.
        frame: Its first decoded frame.
        source: Name of the input.
        siting: Result of `read_siting`.
        origin_s: Result of `clock_origin`.
    """
    orientation = orientation_of(frame)
    width = frame.width
    height = frame.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect <= 0:
        aspect = Fraction(1)
    if orientation.transpose:
        width, height = height, width
        aspect = 1 / aspect

    rate = stream.average_rate or stream.guessed_rate
    if container.format.name == "avi":
        # The average rate of AVI also counts dropped frames.
        rate = stream.guessed_rate
    duration_s = _duration_s(container, stream)
    pix_fmt = frame.format
    bits = [component.bits for component in pix_fmt.components]
    return VideoInfo(
        source=source,
        width=width,
        height=height,
        rotation_deg=orientation.rotation_deg,
        sample_aspect=aspect,
        pix_fmt=pix_fmt.name,
        bit_depth=max(bits, default=8),
        has_alpha=_has_alpha(frame, stream),
        is_rgb=pix_fmt.is_rgb or pix_fmt.has_palette,
        color=_color(stream, frame, siting),
        time_base=stream.time_base or _DEFAULT_TIME_BASE,
        average_rate=rate or None,
        duration_s=duration_s,
        frames_hint=_frames_hint(container, stream, duration_s, rate),
        hdr=_hdr(frame),
        container=container.format.name,
        codec=_codec(stream),
        streams=tuple(_stream_info(s) for s in container.streams),
        video_index=stream.index,
        start_s=float(Fraction(container.start_time or 0, av.time_base)),
        origin_s=origin_s,
    )


def _failure_reason(path: Path, error: Exception) -> str:
    """Explain in a few words why FFmpeg refused a file."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[4:8] in _MOV_BOXES:
        return "the file is cut off or damaged before its index (no moov box)"
    text = head.decode("utf-8", errors="replace")
    # The last character may be cut in the middle.
    is_text = "\0" not in text and "\ufffd" not in text[:-1]
    if is_text:
        return "it looks like a text file"
    return error_text(error)


def _flags(stream: Any) -> tuple[str, ...]:
    """Return the names of a stream's disposition flags that are set."""
    return tuple(str(flag.name) for flag in stream.disposition)


def _codec(stream: Any) -> str:
    """Return FFmpeg's name of a stream's codec; its tag or "" if there is no decoder."""
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    name = getattr(stream, "name", None)
    if not name:
        name = getattr(stream, "codec_tag", None)
    return str(name or "")


def _stream_info(stream: Any) -> StreamInfo:
    kind = str(stream.type)
    codec = ""
    # An attachment is a file, such as a font: it has no codec.
    if kind != "attachment":
        codec = _codec(stream)
    return StreamInfo(
        index=stream.index,
        kind=kind,
        codec=codec,
        language=stream.language,
        title=stream.metadata.get("title"),
        disposition=_flags(stream),
    )


def _side_data(frame: VideoFrame, kind: SideDataType, min_bytes: int) -> bytes | None:
    """Return a structure attached to a frame; None if it is missing or truncated."""
    try:
        # The stubs declare a mapping, but it iterates over values.
        items: Any = frame.side_data
    except ValueError:
        # PyAV raises if the frame has a single kind that it does not know, such as EXIF.
        return None
    for item in items:
        if item.type != kind:
            continue
        data = bytes(item)
        # A truncated structure cannot be unpacked.
        if len(data) >= min_bytes:
            return data
    return None


def _hdr(frame: VideoFrame) -> HdrMetadata | None:
    """Read the static HDR metadata of a frame from FFmpeg's structures."""
    fields: dict[str, Any] = {}
    mastering = _side_data(
        frame,
        SideDataType.MASTERING_DISPLAY_METADATA,
        _MASTERING_DISPLAY_BYTES,
    )
    if mastering is not None:
        # AVMasteringDisplayMetadata: ten rationals, has_primaries, has_luminance.
        *ints, has_primaries, has_luminance = struct.unpack_from("=22i", mastering)
        values: list[Fraction] = []
        for numerator, denominator in zip(ints[0::2], ints[1::2], strict=True):
            values.append(Fraction(numerator, denominator or 1))
        # x and y of red, green, blue and white, then minimum and maximum luminance.
        points = list(zip(values[0:8:2], values[1:8:2], strict=True))
        if has_primaries:
            fields["primaries"] = tuple(points[:3])
            fields["white_point"] = points[3]
        if has_luminance:
            fields["min_luminance"] = values[8]
            fields["max_luminance"] = values[9]
    light = _side_data(frame, SideDataType.CONTENT_LIGHT_LEVEL, _LIGHT_LEVEL_BYTES)
    if light is not None:
        max_cll, max_fall = struct.unpack_from("=2I", light)
        fields["max_cll"] = max_cll
        fields["max_fall"] = max_fall
    if not fields:
        return None
    return HdrMetadata(**fields)


def _color(stream: VideoStream, frame: VideoFrame, siting: int) -> ColorTags:
    """Read the tags of the frame, since its decoder knows best; missing ones from the stream."""
    color_range = int(frame.color_range) or int(stream.color_range)
    full_range = _FULL_RANGE_TAGS.get(color_range, False)
    if full_range is None and frame.format.name.startswith("yuvj"):
        full_range = True
    return ColorTags(
        matrix=_first_specified(frame.colorspace, stream.colorspace),
        primaries=_first_specified(frame.color_primaries, stream.color_primaries),
        transfer=_first_specified(frame.color_trc, stream.color_trc),
        full_range=full_range,
        siting=siting,
    )


def _first_specified(of_frame: int, of_stream: int) -> int:
    if int(of_frame) == _UNSPECIFIED:
        return int(of_stream)
    return int(of_frame)


def _has_alpha(frame: VideoFrame, stream: VideoStream) -> bool:
    if _codec(stream) == "gif":
        # The decoder always returns bgra, but most GIFs are opaque.
        alpha = frame.to_ndarray(format="rgba")[..., 3]
        return bool((alpha < 255).any())
    pix_fmt = frame.format
    if pix_fmt.has_palette:
        # An entry of the palette may be transparent.
        return True
    return any(component.is_alpha for component in pix_fmt.components)


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    """Read the duration of the video stream, else of the container, in seconds."""
    is_avi = container.format.name == "avi"
    if is_avi and stream.frames and stream.average_rate:
        # This count includes dropped frames.
        return float(stream.frames / stream.average_rate)
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tagged_s = _tagged_duration_s(stream)
    if tagged_s is not None:
        return tagged_s
    duration: int | None = container.duration
    if not duration:
        return None
    return duration / av.time_base


def _tagged_duration_s(stream: VideoStream) -> float | None:
    """Read Matroska's DURATION tag of a stream: "00:01:02.345000000"."""
    fields = _statistics_tag(stream, "DURATION").split(":")
    if len(fields) != 3:
        return None
    hours, minutes, seconds = fields
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _statistics_tag(stream: VideoStream, name: str) -> str:
    """Read a tag of Matroska that some muxers write with a language; "" if it is missing."""
    tags = stream.metadata
    return tags.get(name) or tags.get(f"{name}-eng", "")


def _frames_hint(
    container: InputContainer,
    stream: VideoStream,
    duration_s: float | None,
    rate: Fraction | None,
) -> int | None:
    """Read the number of frames from the header or a tag, or estimate it."""
    # The count of an AVI includes dropped frames.
    is_avi = container.format.name == "avi"
    if stream.frames and not is_avi:
        return stream.frames
    tagged = _statistics_tag(stream, "NUMBER_OF_FRAMES")
    if tagged.isdigit():
        return int(tagged)
    if not duration_s or not rate:
        return None
    return round(duration_s * rate)
