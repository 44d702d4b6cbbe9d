"""Copy or convert the packets of one stream on their way from the source to the output."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol, cast

import av
from av.codec import Codec
from av.container import OutputContainer
from av.packet import Packet
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from tubelet.video.codecs import ContainerSpec

__all__ = [
    "ConvertedSubtitle",
    "CopiedTrack",
    "RecodedAudio",
    "Track",
    "can_hold",
    "codec_name",
    "is_text_subtitle",
]

_TEXT_SUBTITLES = (
    "subrip",
    "ass",
    "ssa",
    "mov_text",
    "webvtt",
    "text",
    "srt",
    "microdvd",
    "subviewer",
    "sami",
)
# The usual audio layout by the number of channels.
_USUAL_LAYOUTS = {
    1: "mono",
    2: "stereo",
    3: "2.1",
    4: "4.0",
    5: "5.0",
    6: "5.1",
    7: "6.1",
    8: "7.1",
}
_PREFERRED_SAMPLE_RATE = 48000
_BITS_PER_CHANNEL = {"aac": 128_000, "libopus": 96_000, "libmp3lame": 128_000}
# The bit rate grows with the number of channels up to this one.
_MAX_RATED_CHANNELS = 6
# Fields of an ASS event before its text: ReadOrder, Layer, Style, Name, three margins, Effect.
_ASS_FIELDS_BEFORE_TEXT = 8


class Track(Protocol):
    """Conversion of the packets of one stream."""

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Convert a packet of the source, already in the time of the output, to packets to mux."""
        ...

    def flush(self) -> Iterator[Packet[Any]]:
        """Yield the remaining packets at the end."""
        ...


class CopiedTrack:
    """A track whose packets are copied; only their times may be made exact."""

    def __init__(self, source: Any, target: Any, *, smooth: bool) -> None:
        """Create a track.

        Args:
            source: Stream to read.
            target: Stream to write.
            smooth: Replace coarse times of audio (milliseconds in Matroska) by sample counts.
        """
        self._target = target
        # Only the contexts of audio have them; 0 samples are a frame of variable size.
        context = source.codec_context
        self._frame_size = int(getattr(context, "frame_size", 0))
        self._sample_rate = int(getattr(context, "sample_rate", 0))
        self._smooth = smooth and self._frame_size > 0 and self._sample_rate > 0
        self._next_sample: int | None = None

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Yield the packet itself."""
        packet.stream = self._target
        if self._smooth and packet.pts is not None:
            self._set_sample_time(packet)
        yield packet

    def flush(self) -> Iterator[Packet[Any]]:
        """Yield nothing: no packet is held back."""
        yield from ()

    def _set_sample_time(self, packet: Packet[Any]) -> None:
        """Replace a rounded time by the count of samples while both agree within one tick."""
        samples_per_tick = Fraction(packet.time_base) * self._sample_rate
        if samples_per_tick <= 1:
            # The time is exact already.
            return
        rounded = round(cast(int, packet.pts) * samples_per_tick)
        # A larger difference is a gap in the audio: count from there.
        if self._next_sample is None or abs(rounded - self._next_sample) > samples_per_tick:
            self._next_sample = rounded
        packet.time_base = Fraction(1, self._sample_rate)
        packet.pts = self._next_sample
        packet.dts = self._next_sample
        packet.duration = self._frame_size
        self._next_sample += self._frame_size


class RecodedAudio:
    """An audio track that is decoded and encoded, because its codec does not fit the container.

    Attributes:
        damaged: Number of packets that could not be decoded.
    """

    def __init__(self, source: Any, container: OutputContainer, encoder: str) -> None:
        """Add a stream to `container` with the layout and rate of `source`, or the nearest ones.

        Args:
            source: Stream to read.
            container: Container to write.
            encoder: FFmpeg's name of the encoder.

        Raises:
            ValueError: The encoder supports neither the layout of the source nor stereo.
        """
        rates = Codec(encoder, "w").audio_rates
        rate = int(source.codec_context.sample_rate)
        if rates and rate not in rates:
            rate = max(rates)
            if _PREFERRED_SAMPLE_RATE in rates:
                rate = _PREFERRED_SAMPLE_RATE
        layout = _choose_audio_layout(encoder, rate, source.codec_context.layout)
        self._stream: Any = container.add_stream(encoder, rate=rate)
        _open_audio_encoder(self._stream.codec_context, encoder, rate, layout)
        self._source = source
        self.damaged = 0

    @property
    def stream(self) -> Any:
        """Stream that is written."""
        return self._stream

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Decode and encode a packet; those that cannot be decoded are counted in `damaged`."""
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            self.damaged += 1
            return
        for frame in frames:
            yield from self._stream.encode(frame)

    def flush(self) -> Iterator[Packet[Any]]:
        """Yield the packets that decoder and encoder hold back."""
        with contextlib.suppress(av.EOFError):
            for frame in self._source.codec_context.decode(None):
                yield from self._stream.encode(frame)
        yield from self._stream.encode(None)


class ConvertedSubtitle:
    """A track of text subtitles, converted to the format of the container.

    FFmpeg decodes every text format to ASS events and encodes from them.
    """

    def __init__(self, source: Any, container: OutputContainer, encoder: str) -> None:
        """Add a stream to `container`; the ASS header carries the styles."""
        self._source = source
        source.codec_context.open(strict=False)
        self._stream: Any = container.add_stream(encoder)
        self._encoder: Any = self._stream.codec_context
        self._encoder.subtitle_header = source.codec_context.subtitle_header
        self._encoder.time_base = self._stream.time_base = Fraction(1, 1000)
        self._encoder.open(strict=False)

    @property
    def stream(self) -> Any:
        """Stream that is written."""
        return self._stream

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Convert one event; empty ones, which only end the previous event, are left out."""
        rects: list[Any] = list(packet.decode())
        # Several texts of one time become the lines of one event, with the fields of the first.
        fields = b""
        texts: list[bytes] = []
        for rect in rects:
            if not isinstance(rect, AssSubtitle) or not rect.ass:
                continue
            *event_fields, text = rect.ass.split(b",", _ASS_FIELDS_BEFORE_TEXT)
            if not texts:
                fields = b"".join(field + b"," for field in event_fields)
            texts.append(text)
        if not texts:
            return
        subtitle_set = SubtitleSet.create(fields + rb"\N".join(texts), 0, 1)
        converted = self._encoder.encode_subtitle(subtitle_set)
        converted.pts = packet.pts
        converted.dts = packet.pts
        converted.duration = packet.duration
        converted.time_base = packet.time_base
        converted.stream = self._stream
        yield converted

    def flush(self) -> Iterator[Packet[Any]]:
        """Yield nothing: no packet is held back."""
        yield from ()


def _open_audio_encoder(context: Any, encoder: str, rate: int, layout: str) -> None:
    """Set up and open an audio encoder."""
    context.sample_rate = rate
    context.layout = layout
    if encoder in _BITS_PER_CHANNEL:
        channels = cast(Any, context.layout).nb_channels
        rated_channels = min(channels, _MAX_RATED_CHANNELS)
        context.bit_rate = rated_channels * _BITS_PER_CHANNEL[encoder]
    context.open()


def _choose_audio_layout(encoder: str, rate: int, layout: Any) -> str:
    """Name a layout that an encoder supports: that of the source, the usual one, or stereo.

    Raises:
        ValueError: The encoder supports none of them.
    """
    usual = _USUAL_LAYOUTS.get(layout.nb_channels, "stereo")
    for name in (layout.name, usual, "stereo"):
        if _encodes(encoder, rate, name):
            return name
    raise ValueError(f"{encoder} takes neither {layout.name} nor stereo")


def _encodes(encoder: str, rate: int, layout: str) -> bool:
    """Return whether an encoder supports a rate and layout.

    It is tried without a container, because a stream that was added cannot be removed.
    """
    context: Any = av.CodecContext.create(encoder, "w")
    formats = Codec(encoder, "w").audio_formats
    if formats:
        context.format = formats[0]
    try:
        _open_audio_encoder(context, encoder, rate, layout)
    except (ValueError, av.FFmpegError):
        return False
    return True


def codec_name(stream: Any) -> str:
    """Return FFmpeg's name of the codec of a stream."""
    context = stream.codec_context
    if context is None:
        name = getattr(stream, "name", None)
        return str(name or "unknown")
    return str(context.codec.canonical_name)


def is_text_subtitle(stream: Any) -> bool:
    """Return whether a subtitle stream is text, not images."""
    return codec_name(stream) in _TEXT_SUBTITLES


def can_hold(spec: ContainerSpec, stream: Any) -> bool:
    """Return whether a container accepts a stream unchanged, by writing a header to memory.

    Args:
        spec: The container.
        stream: Stream of the source.
    """
    if spec.refuses(stream.type, codec_name(stream)):
        return False
    trial = av.open(io.BytesIO(), "w", format=spec.muxer)
    try:
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    finally:
        with contextlib.suppress(av.FFmpegError):
            trial.close()
    return True
