"""Everything of a source but its video goes along: audio, subtitles, chapters, attachments, tags.

It is copied where the container holds it, converted where it can be, and otherwise named in a note. Packets
follow the video in time, so the video is never in memory.
"""

from __future__ import annotations

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

_ATTACHED_PIC, _TIMED_THUMBNAILS = 1 << 10, 1 << 11  # AV_DISPOSITION_*
_COVER_TYPES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
_SEEK_BACK_S = 10  # subtitles that begin this much before a cut are still found


class Remuxer:
    """The other streams of a source, muxed in step with the video."""

    def __init__(
        self, source: InputContainer, target: OutputContainer, *, notes: list[str]
    ) -> None:
        """Prepare; `open_remuxer` does it.

        Args:
            source: opened for this alone.
            target: where packets go.
            notes: what a user should know is appended here.
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
        """Let a track take the packets of the source's stream `index`."""
        self._tracks[index] = track

    def add_cover(self, stream: Any, data: bytes) -> None:
        """Let an image be muxed as the only packet of a stream."""
        self._covers.append((stream, data))

    def begin(self, origin: Fraction, span: Fraction | None, *, is_cut: bool) -> None:
        """Fix the times, before the first packet is muxed.

        Args:
            origin: time of the source, in seconds, that becomes 0.
            span: seconds that are written, None for all.
            is_cut: what lies before the origin or after the span is left out.
        """
        self._origin, self._is_cut, self._end = origin, is_cut, span
        copy_chapters(self._source, self._target, origin, span)
        for stream, data in self._covers:
            packet: Packet[Any] = Packet(data)
            packet.stream = stream
            packet.pts = packet.dts = 0
            packet.time_base = Fraction(1, 90000)
            packet.is_keyframe = True
            self._target.mux(packet)
        if not self._tracks:
            return
        seek_to = origin - _SEEK_BACK_S
        if is_cut and seek_to > 0:
            try:
                self._source.seek(int(seek_to * av.time_base))
            except av.FFmpegError:
                self._source.seek(0)
        self._packets = self._demux()
        self._next = next(self._packets, None)

    def advance(self, until: Fraction) -> None:
        """Mux what comes before `until`, in seconds of the output."""
        while self._next is not None and self._time(self._next) <= until:
            self._emit(self._next)
            self._next = next(self._packets, None)

    def finish(self, end: Fraction | None) -> None:
        """Mux the rest.

        Args:
            end: end of the video in seconds of the output where it was cut; None for all that there is.
        """
        self._end = end
        while self._next is not None and (end is None or self._time(self._next) <= end + 1):
            self._emit(self._next)
            self._next = next(self._packets, None)
        for track in self._tracks.values():
            self._target.mux(list(track.flush()))
        damaged = sum(
            track.damaged for track in self._tracks.values() if isinstance(track, RecodedAudio)
        )
        if damaged:
            self._notes.append(f"{damaged} packets of audio could not be decoded and are missing")
        self.close()

    def close(self) -> None:
        """Close the source."""
        self._next, self._packets = None, iter(())
        self._source.close()

    def _demux(self) -> Iterator[Packet[Any]]:
        streams = [self._source.streams[index] for index in self._tracks]
        for stream in self._source.streams:
            if stream.index not in self._tracks:
                stream.discard = Discard.all
        packets = self._source.demux(*streams)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self._notes.append(
                    f"audio and subtitles end early, the input is damaged: {error.strerror}"
                )
                return
            if packet.dts is None and packet.pts is None:
                continue
            if packet.pts is None:
                packet.pts = packet.dts
            if packet.dts is None:
                packet.dts = packet.pts
            yield packet

    def _time(self, packet: Packet[Any]) -> Fraction:
        return _seconds(packet.dts, packet) - self._origin

    def _emit(self, packet: Packet[Any]) -> None:
        start = _seconds(packet.pts, packet) - self._origin
        end = start + _seconds(packet.duration, packet)
        if self._is_cut and (end <= 0 or (self._end is not None and start >= self._end)):
            return
        track = self._tracks[packet.stream_index]
        shift = round(self._origin / Fraction(packet.time_base))
        if shift:
            packet.pts, packet.dts = (packet.pts or 0) - shift, (packet.dts or 0) - shift
        if self._is_cut and packet.stream.type == "subtitle" and (packet.pts or 0) < 0:
            packet.duration = (packet.duration or 0) + (packet.pts or 0)
            packet.pts = packet.dts = 0
        for converted in track.convert(packet):
            self._target.mux(converted)


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
        like: the source.
        target: the output, its header not yet written.
        video: stream of the output that holds the new video; gets language, title and flags of the old one.
        suffix: of the output, a key of `CONTAINERS`.
        notes: what is converted or left out is appended here, a line each.

    Returns:
        A remuxer, or None where the source has nothing but images (a pipe, a folder of images).
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
    plan = _Plan(remuxer, CONTAINERS[suffix], suffix, path, target, notes)
    copy_file_metadata(source, target, notes)
    lost: set[str] = set()
    for stream in source.streams:
        if stream.index == like.video_index:
            lost.update(copy_stream_metadata(stream, video))
        else:
            lost.update(plan.add(stream))
    if lost:
        notes.append(
            f"tags of streams left out, {suffix} has no place for them: {', '.join(sorted(lost))}"
        )
    if source.chapters() and suffix in (".gif", ".y4m", ".avi", ".ts"):
        notes.append(f"{len(source.chapters())} chapters left out: {suffix} has none")
    return remuxer


def describe_left_out(like: VideoInfo, reason: str) -> list[str]:
    """Name the streams that an output of images alone cannot take.

    Args:
        like: the source.
        reason: start of the sentence, for example "PNG images hold".
    """
    others = [s for s in like.streams if s.index != like.video_index]
    if not others:
        return []
    names = ", ".join(f"{s.kind} {s.index} ({s.codec or 'unknown'})" for s in others)
    return [f"{reason} no more than the image; left out: {names}"]


class _Plan:
    """Decides for each stream of a source what becomes of it."""

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
        """Take one stream along; return the names of its tags that the container drops."""
        if stream.type == "video":
            return self._add_image(stream)
        if stream.type == "attachment":
            return self._add_attachment(stream)
        if stream.type == "data":
            return self._add_data(stream)
        if stream.type == "audio" and self._spec.audio_encoder is None:
            return self._leave_out(stream, "it holds no audio")
        if stream.type in ("audio", "subtitle") and stream.codec_context is None:
            return self._leave_out(stream, "its codec is unknown here")
        if stream.type in ("audio", "subtitle") and can_hold(self._spec, stream):
            return self._copy(stream)
        if stream.type == "audio":
            return self._recode(stream, self._spec.audio_encoder or "")
        if stream.type == "subtitle":
            return self._convert_subtitle(stream)
        return self._leave_out(stream, "its kind is unknown")

    def _copy(self, stream: Any) -> list[str]:
        target: Any = self._target.add_stream_from_template(stream, opaque=True)
        smooth = stream.type == "audio" and self._spec.is_mov_family
        self._remuxer.add_track(stream.index, CopiedTrack(stream, target, smooth=smooth))
        return copy_stream_metadata(stream, target)

    def _recode(self, stream: Any, encoder: str) -> list[str]:
        try:
            track = RecodedAudio(stream, self._target, encoder)
        except (av.FFmpegError, ValueError) as error:
            return self._leave_out(stream, f"{encoder} cannot encode it ({error})")
        self._remuxer.add_track(stream.index, track)
        self._notes.append(
            f"{_label(stream)} converted with {encoder}: {self._suffix} does not hold its codec"
        )
        return copy_stream_metadata(stream, track.stream)

    def _convert_subtitle(self, stream: Any) -> list[str]:
        encoder = self._spec.subtitle_encoder
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

    def _add_image(self, stream: Any) -> list[str]:
        flags = int(stream.disposition)
        if not flags & _ATTACHED_PIC:
            return self._leave_out(stream, "one video is written, and this is another")
        if flags & _TIMED_THUMBNAILS:
            return self._leave_out(stream, "images of chapters are not written")
        codec, data = codec_name(stream), _first_packet(self._path, stream.index)
        if data is None or codec not in _COVER_TYPES:
            return self._leave_out(stream, "the cover image cannot be read")
        name, mime = _COVER_TYPES[codec]
        if self._spec.muxer == "matroska":
            self._target.add_attachment(stream.metadata.get("filename", name), mime, data)
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
        """Leave data out: PyAV cannot give the muxers what they need for it, and they fail at the end."""
        is_chapter_track = (
            stream.discard == Discard.all
        )  # QuickTime's; its chapters are copied as such
        is_timecode = (
            "timecode" in stream.metadata
        )  # a tag of the video too, from which a track is made
        if is_chapter_track or is_timecode:
            return []
        return self._leave_out(stream, "streams of data cannot be copied yet")

    def _leave_out(self, stream: Any, reason: str) -> list[str]:
        self._notes.append(f"{_label(stream)} left out of {self._suffix}: {reason}")
        return []


def _label(stream: Any) -> str:
    """Name a stream for a user: "subtitle 3 (hdmv_pgs_subtitle, ger)"."""
    name = stream.metadata.get("filename") or codec_name(stream)
    language = stream.metadata.get("language")
    return f"{stream.type} {stream.index} ({name}{f', {language}' if language else ''})"


def _first_packet(path: Path, index: int) -> bytes | None:
    """Read the only packet of a cover image, in an opening of its own."""
    with open_container(path) as container:
        packet = next(iter(container.demux(container.streams[index])), None)
        return bytes(packet) if packet is not None and packet.size else None


def _seconds(ticks: int | None, packet: Packet[Any]) -> Fraction:
    return (ticks or 0) * Fraction(packet.time_base)
