"""Open a container and describe it: streams, size, rates, color tags, rotation, HDR metadata."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
from av.container import Flags, InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tubelet.errors import InputError
from tubelet.video.info import ColorTags, HdrMetadata, Orientation, StreamInfo, VideoInfo

__all__ = [
    "clock_origin",
    "describe",
    "open_container",
    "orientation_of",
    "pick_video_stream",
    "read_siting",
]

_SITINGS = ("unspecified", "left", "center", "topleft", "top", "bottomleft", "bottom")
_FREE_CLOCKS = ("mpegts", "mpeg")  # formats whose clock starts anywhere
_LIBAV_DEFAULT_LEVEL = 32  # AV_LOG_INFO
_TURNS = (  # counter-clockwise by 0, 90, 180, 270 degrees
    Orientation(),
    Orientation(transpose=True, flip_y=True),
    Orientation(flip_x=True, flip_y=True),
    Orientation(transpose=True, flip_x=True),
)
_dump_lock = threading.Lock()


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a decoded frame (right angles and mirrors; others go to the nearest)."""
    data = _side_data(frame, SideDataType.DISPLAYMATRIX)
    if data is None or len(data) < 36:
        return _TURNS[round(frame.rotation / 90) % 4]
    a, b, _, c, d = struct.unpack_from(
        "=5i", data
    )  # x' = a·x + c·y, y' = b·x + d·y, 16.16 fixed point
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def open_container(path: Path) -> InputContainer:
    """Open a local file for reading.

    Args:
        path: of the file.

    Returns:
        The container; no local file makes FFmpeg open a network address.

    Raises:
        InputError: missing, empty, unreadable, or not a media file.
    """
    _check_file(path)
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
        raise InputError(
            f"{path} is not a video that can be read: {_reason(path, error)}"
        ) from error
    container.flags &= ~int(
        Flags.gen_pts.value
    )  # PyAV asks for guessed pts; wrong where B-frames have none
    if container.format.name == "tty":  # FFmpeg would draw the letters
        container.close()
        raise InputError(f"{path} is a text file, not a video")
    return container


def pick_video_stream(container: InputContainer, source: str) -> VideoStream:
    """Choose the video: the default one, else the first; cover images do not count.

    Raises:
        InputError: there is none, or nothing here can decode it.
    """
    streams = [s for s in container.streams.video if "attached_pic" not in _flags(s)]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams})
        raise InputError(f"{source} has no video stream, only {', '.join(kinds) or 'nothing'}")
    stream = next((s for s in streams if "default" in _flags(s)), streams[0])
    context: Any = stream.codec_context
    if context is None:
        raise InputError(
            f"{source} has a video that no decoder here can read (codec tag {_codec(stream)!r})"
        )
    return stream


def read_siting(container: InputContainer, stream: VideoStream) -> int:
    """Read the chroma siting (AVCHROMA_LOC_*), before the first packet is decoded.

    PyAV shows it only in FFmpeg's dump of the format, at a verbose level. While that level is set, whoever logs
    waits for the interpreter; a decoder's thread that does so as its decoder is freed would wait for ever.
    """
    pix_fmt: str | None = stream.codec_context.pix_fmt
    with _dump_lock:
        before = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        av.logging.set_libav_level(av.logging.VERBOSE)
        try:
            untyped: Any = container  # dumps_format is missing from the stubs
            dump = str(untyped.dumps_format())
        finally:
            av.logging.set_libav_level(_LIBAV_DEFAULT_LEVEL)
            av.logging.set_level(before)
    for line in dump.splitlines():
        if line.strip().startswith(f"Stream #0:{stream.index}") and f"{pix_fmt}(" in line:
            words = line.split(f"{pix_fmt}(", 1)[1].split(")", 1)[0].replace("/", ", ").split(", ")
            return next((_SITINGS.index(word) for word in words if word in _SITINGS), 0)
    return 0


def clock_origin(container: InputContainer) -> Fraction:
    """Give the time from which an output counts, before the first packet is decoded.

    Returns:
        Seconds: 0, or the first timestamp where the clock of the format has no meaning of its own.
    """
    if container.format.name not in _FREE_CLOCKS:
        return Fraction(0)
    starts: list[Fraction] = []
    for stream in container.streams:
        if stream.start_time is not None and stream.time_base:
            starts.append(stream.start_time * stream.time_base)
    return min(starts, default=Fraction(0))


def describe(
    container: InputContainer,
    stream: VideoStream,
    frame: VideoFrame,
    source: str,
    *,
    siting: int,
    origin_s: Fraction = Fraction(0),
) -> VideoInfo:
    """Put together what the container, the stream and its first decoded frame say.

    Args:
        container: that holds the stream.
        stream: the video.
        frame: its first decoded frame.
        source: name of the input.
        siting: as `read_siting` gives it.
        origin_s: as `clock_origin` gives it.
    """
    turn = orientation_of(frame)
    width, height = (frame.height, frame.width) if turn.transpose else (frame.width, frame.height)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if aspect <= 0:
        aspect = Fraction(1)
    layout = frame.format
    rate = (
        stream.guessed_rate if _is_avi(container) else stream.average_rate
    ) or stream.guessed_rate
    duration_s = _duration_s(container, stream)
    return VideoInfo(
        source=source,
        width=width,
        height=height,
        rotation_deg=turn.rotation_deg,
        sample_aspect=1 / aspect if turn.transpose else aspect,
        pix_fmt=layout.name,
        bit_depth=max((c.bits for c in layout.components), default=8),
        has_alpha=_has_alpha(frame, stream),
        is_rgb=layout.is_rgb or layout.has_palette,
        color=_color(stream, frame, siting),
        time_base=stream.time_base or Fraction(1, 90000),
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


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a video file")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")


def _reason(path: Path, error: Exception) -> str:
    """Say in a few words why FFmpeg refused a file."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        return "the file is cut off or damaged before its index (no moov box)"
    text = head.decode("utf-8", errors="replace")
    if "\0" not in text and "\ufffd" not in text[:-1]:
        return "it looks like a text file"
    return getattr(error, "strerror", None) or str(error)


def _flags(stream: Any) -> tuple[str, ...]:
    disposition: Iterator[Any] = iter(stream.disposition)
    return tuple(str(flag.name) for flag in disposition)


def _codec(stream: Any) -> str:
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    return str(getattr(stream, "name", None) or getattr(stream, "codec_tag", None) or "")


def _stream_info(stream: Any) -> StreamInfo:
    return StreamInfo(
        index=stream.index,
        kind=str(stream.type),
        codec="" if str(stream.type) == "attachment" else _codec(stream),
        language=stream.language,
        title=stream.metadata.get("title"),
        disposition=_flags(stream),
    )


def _side_data(frame: VideoFrame, kind: SideDataType) -> bytes | None:
    try:
        items: Any = frame.side_data  # the stubs call it a mapping; it iterates over values
    except ValueError:  # PyAV refuses the lot if there is one kind it does not know, such as EXIF
        return None
    return next((bytes(item) for item in items if item.type == kind), None)


def _hdr(frame: VideoFrame) -> HdrMetadata | None:
    fields: dict[str, Any] = {}
    mastering = _side_data(frame, SideDataType.MASTERING_DISPLAY_METADATA)
    if mastering is not None and len(mastering) >= 88:
        ints = struct.unpack_from("=22i", mastering)  # ten rationals, has_primaries, has_luminance
        value = [Fraction(ints[i], ints[i + 1] or 1) for i in range(0, 20, 2)]
        if ints[20]:
            fields["primaries"] = tuple((value[i], value[i + 1]) for i in (0, 2, 4))
            fields["white_point"] = (value[6], value[7])
        if ints[21]:
            fields["min_luminance"], fields["max_luminance"] = value[8], value[9]
    light = _side_data(frame, SideDataType.CONTENT_LIGHT_LEVEL)
    if light is not None and len(light) >= 8:
        fields["max_cll"], fields["max_fall"] = struct.unpack_from("=2I", light)
    return HdrMetadata(**fields) if fields else None


def _color(stream: VideoStream, frame: VideoFrame, siting: int) -> ColorTags:
    """Read the tags: those of the frame (its decoder knows best), else those of the stream."""

    def tag(ours: int, theirs: int) -> int:
        return int(theirs) if int(ours) == 2 else int(ours)

    value = int(frame.color_range) or int(stream.color_range)
    full_range = None if value == 0 else value == 2
    if full_range is None and frame.format.name.startswith("yuvj"):
        full_range = True
    return ColorTags(
        matrix=tag(frame.colorspace, stream.colorspace),
        primaries=tag(frame.color_primaries, stream.color_primaries),
        transfer=tag(frame.color_trc, stream.color_trc),
        full_range=full_range,
        siting=siting,
    )


def _has_alpha(frame: VideoFrame, stream: VideoStream) -> bool:
    layout = frame.format
    alpha = layout.has_palette or any(c.is_alpha for c in layout.components)
    if alpha and _codec(stream) == "gif":  # the decoder always gives bgra; most GIFs are opaque
        return bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())
    return alpha


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if _is_avi(container) and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # also counts frames that were dropped
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tagged = _tagged_duration_s(stream)
    if tagged is not None:
        return tagged
    duration: int | None = container.duration
    return duration / av.time_base if duration else None


def _tagged_duration_s(stream: VideoStream) -> float | None:
    """Read Matroska's DURATION tag of a stream: "00:01:02.345000000"."""
    text = stream.metadata.get("DURATION") or stream.metadata.get("DURATION-eng")
    parts = text.split(":") if text else []
    if len(parts) != 3:
        return None
    try:
        return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
    except ValueError:
        return None


def _is_avi(container: InputContainer) -> bool:
    return container.format.name == "avi"


def _frames_hint(
    container: InputContainer, stream: VideoStream, duration_s: float | None, rate: Fraction | None
) -> int | None:
    if stream.frames and not _is_avi(container):
        return stream.frames
    tagged = (
        stream.metadata.get("NUMBER_OF_FRAMES") or stream.metadata.get("NUMBER_OF_FRAMES-eng") or ""
    )
    if tagged.isdigit():
        return int(tagged)
    return round(duration_s * rate) if duration_s and rate else None
