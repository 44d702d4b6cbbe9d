"""Decide once how an output is encoded, as a value that every process can share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from tubelet.video.codecs import CONTAINERS, ContainerSpec, EncodeSettings
from tubelet.video.color import ResolvedColor, resolve_matrix
from tubelet.video.destination import destination_kind
from tubelet.video.encoding import Encoding, choose_encoding
from tubelet.video.info import ColorTags, VideoInfo
from tubelet.video.remux import describe_left_out

__all__ = ["OutputClock", "OutputFormat", "choose_output_format"]

_DEFAULT_RATE = Fraction(25)
_MAX_RATE_DENOMINATOR = 1 << 16
# Matroska's tick: smaller differences of time are not worth a note.
_FINE_TICK_S = Fraction(1, 1000)
_DEFAULT_SETTINGS = EncodeSettings()


@dataclass(frozen=True, slots=True)
class OutputClock:
    """Conversion from times of the source to ticks of the output, shared by the whole video.

    A tick depends only on an absolute time, never on previous frames. So a video that is encoded in
    segments gets the timestamps of one that is encoded at once, even if they are rounded.

    Attributes:
        tick_s: Seconds per tick of the output.
        origin_s: Time of the source that becomes 0, in seconds.
        phase_ticks: Rounding of the time of the first frame, in ticks.
    """

    tick_s: Fraction
    origin_s: Fraction
    phase_ticks: Fraction

    def exact(self, time_s: Fraction) -> Fraction:
        """Convert a time of the source, in seconds, to ticks of the output without rounding."""
        return (time_s - self.origin_s) / self.tick_s

    def moved_s(self, time_s: Fraction) -> Fraction:
        """Return by how many seconds rounding moves a time relative to that of the first frame."""
        exact = self.exact(time_s)
        rounding_ticks = round(exact) - exact
        return abs(rounding_ticks - self.phase_ticks) * self.tick_s

    def to_json(self) -> dict[str, str]:
        """Convert the clock to strings, exactly."""
        values: dict[str, Fraction] = dataclasses.asdict(self)
        return {name: str(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Self:
        """Read the result of `to_json`."""
        values = {name: Fraction(text) for name, text in data.items()}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """Everything that the encoder and the muxer of one output must agree on.

    Attributes:
        suffix: Key of `CONTAINERS`; "" for numbered images.
        encoding: Encoder, pixel format and options.
        width: Width of a frame, pixels.
        height: Height of a frame, pixels.
        tick_s: Seconds per tick of the encoder's timestamps.
        average_rate: Frames per second; None if unknown.
        tags: Color tags that are written.
        matrix: The same tags with a definite matrix, for the conversion to YCbCr.
        sample_aspect: Width to height of a pixel.
        source_tick_s: Seconds per tick of the input's timestamps.
        source_origin_s: Time of the input that becomes 0 if its start is not cut off, in seconds.
        start_s: `start_s` of the reader.
        duration_s: `duration_s` of the reader; None for the end.
    """

    suffix: str
    encoding: Encoding
    width: int
    height: int
    tick_s: Fraction
    average_rate: Fraction | None
    tags: ColorTags
    matrix: ResolvedColor
    sample_aspect: Fraction
    source_tick_s: Fraction
    source_origin_s: Fraction
    start_s: float
    duration_s: float | None

    @property
    def container(self) -> ContainerSpec | None:
        """Container format; None for numbered images."""
        if not self.suffix:
            return None
        return CONTAINERS[self.suffix]

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second for the header, a fraction that every container can store."""
        rate = self.average_rate or _DEFAULT_RATE
        return rate.limit_denominator(_MAX_RATE_DENOMINATOR)

    @property
    def usual_duration(self) -> int:
        """Duration of a frame by the frame rate, one tick or more."""
        if not self.average_rate:
            return 1
        ticks_per_frame = 1 / (self.average_rate * self.tick_s)
        return max(1, round(ticks_per_frame))

    @property
    def is_cut(self) -> bool:
        """Only a part of the input is written."""
        return self.start_s > 0 or self.duration_s is not None

    @property
    def max_rounding_s(self) -> Fraction:
        """Seconds by which a time may be rounded without a note."""
        return max(self.source_tick_s, _FINE_TICK_S)

    @property
    def fingerprint(self) -> str:
        """Hash of all values, equal for the segments of one video."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def clock(self, first_s: Fraction) -> OutputClock:
        """Create the clock of the output.

        Args:
            first_s: Time of the first frame of the whole output, in seconds of the source.
        """
        origin_s = first_s
        if self.start_s <= 0:
            origin_s = min(first_s, self.source_origin_s)
        exact = (first_s - origin_s) / self.tick_s
        return OutputClock(self.tick_s, origin_s, round(exact) - exact)

    def to_json(self) -> dict[str, Any]:
        """Convert the value to types of JSON; fractions become strings and lose nothing."""
        data = dataclasses.asdict(self)
        for name in _FRACTIONS:
            value = data[name]
            if value is not None:
                data[name] = str(value)
        data["encoding"]["notes"] = list(self.encoding.notes)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the result of `to_json`."""
        fields = dict(data)
        for name in _FRACTIONS:
            value = fields[name]
            if value is not None:
                fields[name] = Fraction(value)
        encoding = dict(fields["encoding"])
        encoding["notes"] = tuple(encoding["notes"])
        fields["encoding"] = Encoding(**encoding)
        fields["tags"] = ColorTags(**fields["tags"])
        fields["matrix"] = ResolvedColor(ColorTags(**fields["matrix"]))
        return cls(**fields)


# Pixel format of a PNG by whether the source has more than 8 bits, and alpha.
_PNG_PIX_FMTS = {
    (False, False): "rgb24",
    (False, True): "rgba",
    (True, False): "rgb48be",
    (True, True): "rgba64be",
}
# Fields of `OutputFormat` that JSON stores as strings.
_FRACTIONS = ("tick_s", "average_rate", "sample_aspect", "source_tick_s", "source_origin_s")


def choose_output_format(
    dst: str | Path,
    *,
    like: VideoInfo,
    width: int,
    height: int,
    settings: EncodeSettings = _DEFAULT_SETTINGS,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> OutputFormat:
    """Decide how an output is encoded.

    Args:
        dst: Video file, folder or printf pattern for PNGs, or "-" for y4m on stdout.
        like: Description of the input.
        width: Width of the output, pixels.
        height: Height of the output, pixels.
        settings: Settings of the user.
        start_s: `start_s` of the reader; the output then begins at 0.
        duration_s: `duration_s` of the reader.

    Raises:
        RequestError: The codec is unknown or does not fit, or the destination is not valid.
        ResourceError: This build of FFmpeg lacks the encoder.
    """
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        return _image_format(like, width, height, start_s, duration_s)
    suffix = Path(dst).suffix.lower()
    if kind == "pipe":
        suffix = ".y4m"
    container = CONTAINERS[suffix]
    encoding = choose_encoding(suffix, like, width, height, settings)
    if container.muxer == "avi":
        # AVI has no presentation times, so packets must be in presentation order: no B-frames.
        options = {**encoding.options, "bf": "0"}
        encoding = dataclasses.replace(encoding, options=options)
    tags = _written_tags(like, encoding.pix_fmt)
    return OutputFormat(
        suffix=suffix,
        encoding=encoding,
        width=width,
        height=height,
        tick_s=_choose_tick(container, like),
        average_rate=like.average_rate,
        tags=tags,
        matrix=resolve_matrix(tags, like.width, like.height),
        sample_aspect=like.sample_aspect,
        source_tick_s=like.time_base,
        source_origin_s=_source_origin(like),
        start_s=start_s,
        duration_s=duration_s,
    )


def _image_format(
    like: VideoInfo,
    width: int,
    height: int,
    start_s: float,
    duration_s: float | None,
) -> OutputFormat:
    """Choose the format of numbered PNG files: 8 bit, or 16 bit if the source has more."""
    is_deep = like.bit_depth > 8
    pix_fmt = _PNG_PIX_FMTS[is_deep, like.has_alpha]
    encoding = Encoding(
        codec="png",
        encoder="png",
        pix_fmt=pix_fmt,
        options={"compression_level": "3", "pred": "sub"},
        tag="",
        notes=tuple(describe_left_out(like, "PNG images hold")),
    )
    rgb_tags = ColorTags(matrix=0)
    return OutputFormat(
        suffix="",
        encoding=encoding,
        width=width,
        height=height,
        tick_s=like.time_base,
        average_rate=like.average_rate,
        tags=rgb_tags,
        matrix=ResolvedColor(rgb_tags),
        sample_aspect=Fraction(1),
        source_tick_s=like.time_base,
        source_origin_s=Fraction(0),
        start_s=start_s,
        duration_s=duration_s,
    )


def _choose_tick(container: ContainerSpec, like: VideoInfo) -> Fraction:
    """Return the seconds per tick: prescribed by the container, or those of the input."""
    if not container.fixed_rate:
        return container.tick_s or like.time_base
    # Without timestamps, a tick is a frame.
    rate = like.average_rate or _DEFAULT_RATE
    return 1 / rate.limit_denominator(_MAX_RATE_DENOMINATOR)


def _source_origin(like: VideoInfo) -> Fraction:
    """Return the origin of a file's clock; the video of a pipe has no other streams to follow."""
    if not Path(like.source).is_file():
        return Fraction(0)
    return like.origin_s


def _written_tags(like: VideoInfo, pix_fmt: str) -> ColorTags:
    """Return the tags of the input; YCbCr that is made from RGB gets those of its conversion."""
    if like.is_rgb and pix_fmt.startswith("yuv"):
        resolved = resolve_matrix(like.color, like.width, like.height)
        return dataclasses.replace(resolved, full_range=False, siting=0)
    return like.color
