"""Encode frames into a container with everything else of the source beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.container import OutputContainer
from av.video.frame import VideoFrame

from tubelet.errors import InputError, RequestError, ResourceError
from tubelet.types import Frame
from tubelet.video.codecs import CODECS, CONTAINERS, EncodeSettings, Encoding, choose_encoding
from tubelet.video.colour import resolve_matrix, rgb_to_frame
from tubelet.video.palette import rgb_to_palette
from tubelet.video.probe import ColourTags, VideoInfo
from tubelet.video.remux import Remuxer, open_remuxer

__all__ = ["VideoSink", "write_errors"]

_FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: the encoder hands durations through
_TICK_S = Fraction(1, 1000)  # Matroska's; finer differences of time are not worth a word
_RGB_FORMATS = {"bgr0": "rgb24", "bgra": "rgba"}  # what FFV1 takes, and the same samples in planes we fill


@contextlib.contextmanager
def write_errors(name: str) -> Generator[None]:
    """Turn the errors of writing into one line for a person.

    Args:
        name: of the output.

    Raises:
        ResourceError: disk full, pipe closed, or whatever the system said.
    """
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"no space left for {name}; free some or choose another disk") from error
        if error.errno == errno.EPIPE:
            raise ResourceError("the program that reads the output has closed the pipe") from error
        raise ResourceError(f"{name} could not be written: {error.strerror or error}") from error


class VideoSink:
    """One video stream being encoded, and the other streams of the source copied in step with it."""

    def __init__(
        self,
        part: Path | None,
        *,
        name: str,
        suffix: str,
        like: VideoInfo,
        size: tuple[int, int],
        settings: EncodeSettings,
        cut: tuple[float, float | None],
    ) -> None:
        """Open encoder and muxer; nothing is written before the first frame.

        Args:
            part: file to write; None writes to stdout.
            name: of the output, for messages.
            suffix: key of `CONTAINERS`.
            like: the input.
            size: width and height of the output, pixels.
            settings: of the encoder.
            cut: start and duration in seconds, as they were asked of the reader; (0, None) is everything.
        """
        self.notes: list[str] = []
        self._name = name
        self._spec = CONTAINERS[suffix]
        self._like = like
        self._cut = cut
        self._encoding = choose_encoding(suffix, like, size[0], size[1], settings)
        self.notes += self._encoding.notes
        self._tags = _written_tags(like, self._encoding.pix_fmt)
        self._matrix = resolve_matrix(self._tags, like.width, like.height)
        self._time_base = self._choose_time_base()
        self._container = av.open(
            f"file:{part}" if part else "pipe:1",
            "w",
            format=self._spec.muxer,
            container_options=self._muxer_options(),
        )
        self._stream = _open_encoder(self._container, self._encoding, self._tags, like, size, self._time_base)
        self._remuxer: Remuxer | None = open_remuxer(
            like, self._container, self._stream, suffix=suffix, notes=self.notes
        )
        self._origin: Fraction | None = None  # time of the source that becomes 0
        self._held: VideoFrame | None = None  # waits for the pts of the next, which may give its duration
        self._last_pts: int | None = None
        self._phase: Fraction | None = None  # by how much the first time was rounded
        self._end = Fraction(0)
        self._delay: int | None = None  # ticks by which the encoder reorders: pts after dts of the first packet

    def write(self, frame: Frame) -> None:
        """Encode one frame; frames come in presentation order."""
        time = frame.pts * frame.time_base
        if self._origin is None:
            self._begin(time)
        picture = self._picture(frame)
        picture.pts = self._next_pts((time - cast(Fraction, self._origin)) / self._time_base)
        picture.time_base = self._time_base
        picture.duration = round(frame.duration * frame.time_base / self._time_base)
        self._release(picture.pts)
        self._held = picture

    def finish(self) -> None:
        """Write what the encoder still holds, the rest of the other streams, and the index."""
        if self._held is None:
            raise InputError("no frame came to be written, so there is no output")
        self._release(None)
        self._encode(None)
        with write_errors(self._name):
            if self._remuxer:
                self._remuxer.finish(None if self._cut[1] is None else self._end)
            self._container.close()

    def abort(self) -> None:
        """Let go of the file without caring for its content."""
        if self._remuxer:
            self._remuxer.close()
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()

    def _choose_time_base(self) -> Fraction:
        if not self._spec.fixed_rate:
            return self._spec.tick_s or self._like.time_base
        rate = self._like.average_rate or Fraction(25)
        return 1 / Fraction(rate).limit_denominator(1 << 16)

    def _muxer_options(self) -> dict[str, str]:
        options = dict(self._spec.options)
        if self._spec.is_mov_family:  # offsets between streams are kept in these ticks
            ticks = self._time_base.denominator
            options["movie_timescale"] = str(ticks * -(-1000 // ticks))
        return options

    def _begin(self, time: Fraction) -> None:
        """Fix which time of the source becomes 0: the first frame of a cut, else that of the file."""
        if self._cut[0] > 0:
            origin = time
        else:
            origin = self._remuxer.free_origin if self._remuxer else Fraction(0)
            if time < origin:
                origin = time
        self._origin = origin
        if self._remuxer:
            duration_s = self._cut[1]
            span = None if duration_s is None else Fraction(duration_s)
            self._remuxer.begin(origin, span, is_cut=self._cut[0] > 0 or span is not None)

    def _picture(self, frame: Frame) -> VideoFrame:
        pix_fmt = self._encoding.pix_fmt
        if pix_fmt == "pal8":
            return rgb_to_palette(frame.rgb, frame.alpha)
        fill = _RGB_FORMATS.get(pix_fmt, pix_fmt)
        return rgb_to_frame(frame.rgb, frame.alpha, pix_fmt=fill, colour=self._matrix)

    def _next_pts(self, exact: Fraction) -> int:
        pts = round(exact)
        if self._phase is None:
            self._phase = pts - exact
        moved_s = abs(pts - exact - self._phase) * self._time_base
        if moved_s > max(self._like.time_base, _TICK_S):
            self._note(f"times of frames are rounded to {self._time_base} s: {self._spec.muxer} has no finer")
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
        if not held.duration:
            held.duration = self._usual_duration() if next_pts is None else next_pts - pts
        self._end = (pts + held.duration) * self._time_base
        self._encode(held)

    def _usual_duration(self) -> int:
        rate = self._like.average_rate
        return max(1, round(1 / (rate * self._time_base))) if rate else 1

    def _encode(self, picture: VideoFrame | None) -> None:
        with write_errors(self._name):
            packets = list(self._stream.encode(picture))
            if self._delay is None and packets and packets[0].pts is not None and packets[0].dts is not None:
                self._delay = packets[0].pts - packets[0].dts
            if picture is None and packets:
                self._lengthen(packets[-1])
            for packet in packets:
                if self._remuxer and packet.dts is not None:
                    self._remuxer.advance(packet.dts * Fraction(packet.time_base))
                self._container.mux(packet)

    def _lengthen(self, packet: Any) -> None:
        """Let the last packet last to the end: MP4 adds up durations in the order of decoding, not of showing."""
        if not self._spec.is_mov_family or packet.dts is None or self._delay is None:
            return
        end = round(self._end / Fraction(packet.time_base))
        rest = min(end - (packet.dts + self._delay), end - packet.pts)
        packet.duration = max(packet.duration or 0, rest)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _written_tags(like: VideoInfo, pix_fmt: str) -> ColourTags:
    """Give the tags of the output: those of the input, but YCbCr made from RGB says how it was made."""
    if like.is_rgb and pix_fmt.startswith("yuv"):
        resolved = resolve_matrix(like.colour, like.width, like.height)
        return dataclasses.replace(resolved, full_range=False, siting=0)
    return like.colour


def _open_encoder(
    container: OutputContainer,
    encoding: Encoding,
    tags: ColourTags,
    like: VideoInfo,
    size: tuple[int, int],
    time_base: Fraction,
) -> Any:
    rate = like.average_rate or Fraction(25)
    stream: Any = container.add_stream(encoding.encoder, rate=rate.limit_denominator(1 << 16))
    context = stream.codec_context
    context.width, context.height = size
    context.pix_fmt = encoding.pix_fmt
    context.time_base = stream.time_base = time_base
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    context.colorspace = 0 if encoding.pix_fmt.startswith(("gbr", "bgr")) else tags.matrix
    if tags.full_range is not None:
        context.color_range = 1 + int(tags.full_range)
    if like.sample_aspect != 1:
        context.sample_aspect_ratio = like.sample_aspect
    if encoding.tag:
        context.codec_tag = encoding.tag
    context.flags |= _FRAME_DURATION
    context.thread_type = "AUTO"
    if encoding.encoder == "libx264":
        context.thread_count = min(os.cpu_count() or 1, 64)  # its own choice, half as many again, crowds the model
    options = dict(encoding.options)
    if tags.siting and "420" in encoding.pix_fmt:
        options["chroma_sample_location"] = str(tags.siting)
    if container.format.name == "avi":
        options["bf"] = "0"  # no pts there, so packets must come in order
    context.options = options
    _start_encoder(context, encoding, options)
    return stream


def _start_encoder(context: Any, encoding: Encoding, options: dict[str, str]) -> None:
    try:
        context.open()
    except av.FFmpegError as error:
        if encoding.encoder.endswith("_nvenc"):
            raise ResourceError(
                f"{encoding.encoder} needs an NVIDIA GPU with its driver, which is not there; use --codec "
                f"{encoding.encoder.removesuffix('_nvenc')}"
            ) from error
        preset = options.get(CODECS[encoding.codec].preset_option)
        raise RequestError(
            f"{encoding.encoder} refuses {context.width}x{context.height} {encoding.pix_fmt} with "
            f"preset={preset}: {error.strerror}; try another preset or codec"
        ) from error
