"""One stream on its way from the source to the output: copied, or converted."""

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
_BITS_PER_CHANNEL = {"aac": 128_000, "libopus": 96_000, "libmp3lame": 128_000}


class Track(Protocol):
    """What happens to the packets of one stream."""

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Turn a packet of the source, already in the time of the output, into packets to be muxed."""
        ...

    def flush(self) -> Iterator[Packet[Any]]:
        """Give what is left at the end."""
        ...


class CopiedTrack:
    """Packets go through untouched; only their times may be made exact."""

    def __init__(self, source: Any, target: Any, *, smooth: bool) -> None:
        """Prepare.

        Args:
            source: stream that is read.
            target: stream that is written.
            smooth: audio with coarse times (milliseconds in Matroska) gets those of its samples.
        """
        self._target = target
        context = source.codec_context
        self._samples = int(getattr(context, "frame_size", 0) or 0)
        self._rate = int(getattr(context, "sample_rate", 0) or 0)
        self._smooth = smooth and self._samples > 0 and self._rate > 0
        self._expected: int | None = None

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Hand the packet over."""
        packet.stream = self._target
        if self._smooth and packet.pts is not None:
            self._snap(packet)
        yield packet

    def flush(self) -> Iterator[Packet[Any]]:
        """Give nothing: nothing is held."""
        yield from ()

    def _snap(self, packet: Packet[Any]) -> None:
        """Replace a rounded time by the count of samples while both agree within one tick."""
        tick = Fraction(packet.time_base)
        if tick * self._rate <= 1:
            return
        exact = round(cast(int, packet.pts) * tick * self._rate)
        if self._expected is None or abs(exact - self._expected) > tick * self._rate:
            self._expected = exact
        packet.time_base = Fraction(1, self._rate)
        packet.pts = packet.dts = self._expected
        packet.duration = self._samples
        self._expected += self._samples


class RecodedAudio:
    """Audio whose codec does not fit the container."""

    def __init__(self, source: Any, container: OutputContainer, encoder: str) -> None:
        """Add a stream to `container` with layout and rate of `source`, as far as the encoder has them.

        Raises:
            ValueError: the encoder takes none of the layouts that would do.
        """
        rates = Codec(encoder, "w").audio_rates
        rate = int(source.codec_context.sample_rate)
        if rates and rate not in rates:
            rate = 48000 if 48000 in rates else max(rates)
        layout = source.codec_context.layout
        usual = _USUAL_LAYOUTS.get(layout.nb_channels, "stereo")
        names = [name for name in (layout.name, usual, "stereo") if _encodes(encoder, rate, name)]
        if not names:
            raise ValueError(f"{encoder} takes neither {layout.name} nor stereo")
        self._stream: Any = container.add_stream(encoder, rate=rate)
        _configure(self._stream.codec_context, encoder, rate, names[0])
        self._source = source
        self.damaged = 0

    @property
    def stream(self) -> Any:
        """The stream that is written."""
        return self._stream

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Decode and encode; packets that cannot be decoded are counted in `damaged`."""
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            self.damaged += 1
            return
        for frame in frames:
            yield from self._stream.encode(frame)

    def flush(self) -> Iterator[Packet[Any]]:
        """Give what decoder and encoder hold."""
        with contextlib.suppress(av.EOFError):
            for frame in self._source.codec_context.decode(None):
                yield from self._stream.encode(frame)
        yield from self._stream.encode(None)


class ConvertedSubtitle:
    """Text subtitles in the form that the container has; FFmpeg knows all of them as ASS events."""

    def __init__(self, source: Any, container: OutputContainer, encoder: str) -> None:
        """Add a stream to `container`; styles go over in the ASS header."""
        self._source = source
        source.codec_context.open(strict=False)
        self._stream: Any = container.add_stream(encoder)
        self._encoder: Any = self._stream.codec_context
        self._encoder.subtitle_header = source.codec_context.subtitle_header
        self._encoder.time_base = self._stream.time_base = Fraction(1, 1000)
        self._encoder.open(strict=False)

    @property
    def stream(self) -> Any:
        """The stream that is written."""
        return self._stream

    def convert(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Convert one event; empty ones, which only end the last, are left out."""
        rects: list[Any] = list(packet.decode())
        events = [rect.ass for rect in rects if isinstance(rect, AssSubtitle) and rect.ass]
        if not events:
            return
        texts = [event.split(b",", 8)[-1] for event in events]
        merged = events[0][: len(events[0]) - len(texts[0])] + rb"\N".join(texts)
        converted = self._encoder.encode_subtitle(SubtitleSet.create(merged, 0, 1))
        converted.pts = converted.dts = packet.pts
        converted.duration = packet.duration
        converted.time_base = packet.time_base
        converted.stream = self._stream
        yield converted

    def flush(self) -> Iterator[Packet[Any]]:
        """Give nothing: nothing is held."""
        yield from ()


def _configure(context: Any, encoder: str, rate: int, layout: str) -> None:
    """Set up and open an audio encoder."""
    context.sample_rate, context.layout = rate, layout
    if encoder in _BITS_PER_CHANNEL:
        channels = cast(Any, context.layout).nb_channels
        context.bit_rate = min(channels, 6) * _BITS_PER_CHANNEL[encoder]
    context.open()


def _encodes(encoder: str, rate: int, layout: str) -> bool:
    """Try an encoder apart from any container: a stream that was added cannot be taken back."""
    context: Any = av.CodecContext.create(encoder, "w")
    formats = Codec(encoder, "w").audio_formats
    if formats:
        context.format = formats[0]
    try:
        _configure(context, encoder, rate, layout)
    except (ValueError, av.FFmpegError):
        return False
    return True


def codec_name(stream: Any) -> str:
    """Name the codec of a stream as FFmpeg does."""
    context = stream.codec_context
    if context is None:
        return str(getattr(stream, "name", None) or "unknown")
    return str(context.codec.canonical_name)


def is_text_subtitle(stream: Any) -> bool:
    """Say whether a subtitle stream is text rather than images."""
    return codec_name(stream) in _TEXT_SUBTITLES


def can_hold(spec: ContainerSpec, stream: Any) -> bool:
    """Find out whether a container takes a stream as it is, by writing a header into memory.

    Args:
        spec: the container.
        stream: of the source.
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
