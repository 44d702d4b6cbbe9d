"""Carry everything but the video from source to output: audio, subtitles, chapters, attachments.

A stream is copied if the container holds its codec, converted if it can be, and otherwise named in
a note. Its packets are written in step with the video, so no stream is held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard

from tubelet.errors import InputError
from tubelet.video.codecs import CONTAINERS, ContainerSpec
from tubelet.video.container import open_container
from tubelet.video.info import VideoInfo
from tubelet.video.metadata import copy_chapters, copy_file_metadata, copy_stream_metadata
from tubelet.video.tracks import (
    ConvertedSubtitle,
    CopiedTrack,
    RecodedAudio,
    Track,
    can_hold,
    codec_name,
    is_text_subtitle,
)

__all__ = ["Remuxer", "describe_left_out", "open_remuxer"]

# AV_DISPOSITION_*.
_ATTACHED_PIC = 1 << 10
_TIMED_THUMBNAILS = 1 << 11
# File name and MIME type of a cover image by its codec.
_COVER_TYPES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
_WITHOUT_CHAPTERS = (".gif", ".y4m", ".avi", ".ts")
# Subtitles that begin this long before a cut are still found.
_SEEK_BACK_S = 10
_COVER_TIME_BASE = Fraction(1, 90000)


class Remuxer:
    """Muxer of the other streams of a source, in step with the video."""

    def __init__(
        self, source: InputContainer, target: OutputContainer, *, notes: list[str]
    ) -> None:
        """Wrap two containers; see `open_remuxer`.

        Args:
            source: Container to read, used by nothing else.
            target: Container to write.
            notes: Remarks for the user are appended here.
        """
        self._source = source
        self._target = target
        self._notes = notes
        self._tracks: dict[int, Track] = {}
        self._covers: list[tuple[Any, bytes]] = []
        self._packets: Iterator[Packet[Any]] = iter(())
        self._next: Packet[Any] | None = None
        self._origin = Fraction(0)
        self._is_cut = False
        self._end: Fraction | None = None

    def add_track(self, index: int, track: Track) -> None:
        """Pass the packets of the source's stream `index` to a track."""
        self._tracks[index] = track

    def add_cover(self, stream: Any, data: bytes) -> None:
        """Mux an image as the only packet of a stream."""
        self._covers.append((stream, data))

    def begin(self, origin: Fraction, span: Fraction | None, *, is_cut: bool) -> None:
        """Set the times, before the first packet is muxed.

        Args:
            origin: Time of the source that becomes 0, in seconds.
            span: Duration that is written, in seconds; None writes all.
            is_cut: Skip packets before the origin and after the span.
        """
        self._origin = origin
        self._is_cut = is_cut
        self._end = span
        copy_chapters(self._source, self._target, origin, span)
        for stream, data in self._covers:
            self._target.mux(_cover_packet(stream, data))
        if not self._tracks:
            return
        seek_to = origin - _SEEK_BACK_S
        if is_cut and seek_to > 0:
            seek_ticks = int(seek_to * av.time_base)
            try:
                self._source.seek(seek_ticks)
            except av.FFmpegError:
                self._source.seek(0)
        self._packets = self._demux()
        self._next = next(self._packets, None)

    def advance(self, until: Fraction | float) -> None:
        """Mux the packets up to a time of the output, in seconds."""
        while self._next is not None and self._output_time(self._next) <= until:
            self._emit(self._next)
            self._next = next(self._packets, None)

    def finish(self, end: Fraction | None) -> None:
        """Mux the remaining packets.

        Args:
            end: End of the video if it was cut, in seconds of the output; None muxes all.
        """
        self._end = end
        last_time = math.inf
        if end is not None:
            # Streams are interleaved only roughly: look one second beyond the end.
            last_time = end + 1
        self.advance(last_time)

        damaged = 0
        for track in self._tracks.values():
            self._target.mux(list(track.flush()))
            if isinstance(track, RecodedAudio):
                damaged += track.damaged
        if damaged:
            self._notes.append(f"{damaged} packets of audio could not be decoded and are missing")
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._next = None
        self._packets = iter(())
        self._source.close()

    def _demux(self) -> Iterator[Packet[Any]]:
        """Yield the packets of all tracks; each has both a pts and a dts."""
        streams = [self._source.streams[index] for index in self._tracks]
        for stream in self._source.streams:
            if stream.index not in self._tracks:
                # FFmpeg need not read their packets.
                stream.discard = Discard.all
        try:
            for packet in self._source.demux(*streams):
                # Where one of the times is missing, the other is the best estimate.
                if packet.pts is None:
                    packet.pts = packet.dts
                if packet.dts is None:
                    packet.dts = packet.pts
                # A packet that still has no time only flushes a decoder.
                if packet.pts is not None:
                    yield packet
        except av.FFmpegError as error:
            # The video may go on: keep what was copied so far.
            self._notes.append(
                f"audio and subtitles end early, the input is damaged: {error.strerror}"
            )

    def _output_time(self, packet: Packet[Any]) -> Fraction:
        """Return the decoding time of a packet in seconds of the output."""
        return _seconds(packet.dts, packet) - self._origin

    def _emit(self, packet: Packet[Any]) -> None:
        """Move a packet to the time of the output, convert it, and mux it."""
        if self._is_cut_off(packet):
            return
        # `_demux` sets both times.
        assert packet.pts is not None
        assert packet.dts is not None
        shift = round(self._origin / Fraction(packet.time_base))
        pts = packet.pts - shift
        packet.pts = pts
        packet.dts -= shift
        is_subtitle = packet.stream.type == "subtitle"
        if self._is_cut and is_subtitle and pts < 0:
            # A subtitle that is visible at the cut starts there.
            duration = packet.duration or 0
            packet.duration = duration + pts
            packet.pts = 0
            packet.dts = 0
        track = self._tracks[packet.stream_index]
        for converted in track.convert(packet):
            self._target.mux(converted)

    def _is_cut_off(self, packet: Packet[Any]) -> bool:
        """Return whether a packet is shown only before or only after the span that is written."""
        if not self._is_cut:
            return False
        start = _seconds(packet.pts, packet) - self._origin
        end = start + _seconds(packet.duration, packet)
        is_before_start = end <= 0
        is_after_end = self._end is not None and start >= self._end
        return is_before_start or is_after_end


def open_remuxer(
    like: VideoInfo,
    target: OutputContainer,
    video: Any,
    *,
    suffix: str,
    notes: list[str],
) -> Remuxer | None:
    """Add the other streams of a source to an output.

    Args:
        like: Description of the source.
        target: Container of the output, whose header is not yet written.
        video: Stream of the output that holds the new video. It gets language, title and flags of
            the video of the source.
        suffix: Extension of the output, a key of `CONTAINERS`.
        notes: Streams that are converted or left out are appended here, one line each.

    Returns:
        A remuxer; None if the source has only images (a pipe, a folder of images).
    """
    path = Path(like.source)
    if like.source == "-" or not path.is_file():
        return None
    try:
        source = open_container(path)
    except InputError as error:
        notes.append(f"audio, subtitles and tags are left out: {error}")
        return None
    remuxer = Remuxer(source, target, notes=notes)
    mapper = _StreamMapper(remuxer, CONTAINERS[suffix], suffix, path, target, notes)
    copy_file_metadata(source, target, notes)
    dropped: set[str] = set()
    for stream in source.streams:
        if stream.index == like.video_index:
            dropped.update(copy_stream_metadata(stream, video))
        else:
            dropped.update(mapper.add(stream))
    if dropped:
        names = ", ".join(sorted(dropped))
        notes.append(f"tags of streams left out, {suffix} cannot store them: {names}")
    chapters = source.chapters()
    if chapters and suffix in _WITHOUT_CHAPTERS:
        notes.append(f"{len(chapters)} chapters left out: {suffix} has none")
    return remuxer


def describe_left_out(like: VideoInfo, reason: str) -> list[str]:
    """Name the streams that an output of images cannot hold.

    Args:
        like: Description of the source.
        reason: Start of the sentence, for example "PNG images hold".

    Returns:
        One line, or none if there are no such streams.
    """
    names: list[str] = []
    for stream in like.streams:
        if stream.index == like.video_index:
            continue
        codec = stream.codec or "unknown"
        names.append(f"{stream.kind} {stream.index} ({codec})")
    if not names:
        return []
    left_out = ", ".join(names)
    return [f"{reason} only the image; left out: {left_out}"]


class _StreamMapper:
    """Decides for each stream of a source whether it is copied, converted or left out.

    Its methods return the names of the tags of a stream that the container drops.
    """

    def __init__(
        self,
        remuxer: Remuxer,
        spec: ContainerSpec,
        suffix: str,
        path: Path,
        target: OutputContainer,
        notes: list[str],
    ) -> None:
        self._remuxer = remuxer
        self._spec = spec
        self._suffix = suffix
        self._path = path
        self._target = target
        self._notes = notes

    def add(self, stream: Any) -> list[str]:
        """Add one stream of the source to the output."""
        methods = {
            "video": self._add_image,
            "attachment": self._add_attachment,
            "data": self._add_data,
            "audio": self._add_audio,
            "subtitle": self._add_subtitle,
        }
        method = methods.get(stream.type)
        if method is None:
            return self._leave_out(stream, "its kind is unknown")
        return method(stream)

    def _add_audio(self, stream: Any) -> list[str]:
        encoder = self._spec.audio_encoder
        if encoder is None:
            return self._leave_out(stream, "it holds no audio")
        if stream.codec_context is None:
            return self._leave_out(stream, "its codec is unknown here")
        if can_hold(self._spec, stream):
            # MP4 stores the duration of each packet: rounded times would make them uneven.
            return self._copy(stream, smooth=self._spec.is_mov_family)
        try:
            track = RecodedAudio(stream, self._target, encoder)
        except (av.FFmpegError, ValueError) as error:
            return self._leave_out(stream, f"{encoder} cannot encode it ({error})")
        self._remuxer.add_track(stream.index, track)
        self._notes.append(
            f"{_label(stream)} converted with {encoder}: {self._suffix} does not hold its codec"
        )
        return copy_stream_metadata(stream, track.stream)

    def _add_subtitle(self, stream: Any) -> list[str]:
        encoder = self._spec.subtitle_encoder
        if stream.codec_context is None:
            return self._leave_out(stream, "its codec is unknown here")
        if can_hold(self._spec, stream):
            return self._copy(stream, smooth=False)
        if encoder is None:
            return self._leave_out(stream, "it holds no such subtitles")
        if not is_text_subtitle(stream):
            return self._leave_out(stream, "they are images, which it does not hold")
        track = ConvertedSubtitle(stream, self._target, encoder)
        self._remuxer.add_track(stream.index, track)
        self._notes.append(
            f"{_label(stream)} converted to {encoder}: {self._suffix} does not hold the format"
        )
        return copy_stream_metadata(stream, track.stream)

    def _copy(self, stream: Any, *, smooth: bool) -> list[str]:
        target: Any = self._target.add_stream_from_template(stream, opaque=True)
        track = CopiedTrack(stream, target, smooth=smooth)
        self._remuxer.add_track(stream.index, track)
        return copy_stream_metadata(stream, target)

    def _add_image(self, stream: Any) -> list[str]:
        """Add a cover image; leave out other video streams."""
        flags = int(stream.disposition)
        is_attached = bool(flags & _ATTACHED_PIC)
        is_timed = bool(flags & _TIMED_THUMBNAILS)
        if not is_attached:
            return self._leave_out(stream, "only one video is written")
        if is_timed:
            return self._leave_out(stream, "images of chapters are not written")
        codec = codec_name(stream)
        data = _first_packet(self._path, stream.index)
        if data is None or codec not in _COVER_TYPES:
            return self._leave_out(stream, "the cover image cannot be read")
        name, mime = _COVER_TYPES[codec]
        if self._spec.muxer == "matroska":
            name = stream.metadata.get("filename", name)
            self._target.add_attachment(name, mime, data)
            return []
        if self._spec.muxer == "mp4":
            target: Any = self._target.add_stream_from_template(stream, opaque=True)
            target.disposition = _ATTACHED_PIC
            self._remuxer.add_cover(target, data)
            return []
        return self._leave_out(stream, "it holds no cover image")

    def _add_attachment(self, stream: Any) -> list[str]:
        if self._spec.muxer != "matroska":
            return self._leave_out(stream, "it holds no attachments")
        self._target.add_stream_from_template(stream)
        return []

    def _add_data(self, stream: Any) -> list[str]:
        """Leave data out: PyAV cannot set up the muxers for it, and they fail at the end."""
        # QuickTime stores chapters in a data stream; `copy_chapters` copies them.
        is_chapter_track = stream.discard == Discard.all
        # The timecode is also a tag of the video, from which the muxer creates the stream.
        is_timecode = "timecode" in stream.metadata
        if is_chapter_track or is_timecode:
            return []
        return self._leave_out(stream, "streams of data cannot be copied yet")

    def _leave_out(self, stream: Any, reason: str) -> list[str]:
        self._notes.append(f"{_label(stream)} left out of {self._suffix}: {reason}")
        return []


def _label(stream: Any) -> str:
    """Name a stream for a user: "subtitle 3 (hdmv_pgs_subtitle, ger)"."""
    details = stream.metadata.get("filename") or codec_name(stream)
    language = stream.metadata.get("language")
    if language:
        details = f"{details}, {language}"
    return f"{stream.type} {stream.index} ({details})"


def _first_packet(path: Path, index: int) -> bytes | None:
    """Read the only packet of a cover image; opens the file again."""
    with open_container(path) as container:
        packets = container.demux(container.streams[index])
        packet = next(iter(packets), None)
        if packet is None or not packet.size:
            return None
        return bytes(packet)


def _cover_packet(stream: Any, data: bytes) -> Packet[Any]:
    """Create the only packet of a cover image."""
    packet: Packet[Any] = Packet(data)
    packet.stream = stream
    packet.pts = packet.dts = 0
    packet.time_base = _COVER_TIME_BASE
    packet.is_keyframe = True
    return packet


def _seconds(ticks: int | None, packet: Packet[Any]) -> Fraction:
    return (ticks or 0) * Fraction(packet.time_base)
