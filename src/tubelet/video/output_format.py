"""How an output is encoded: a value that is decided once and by which every process encodes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from tubelet.video.codecs import (
    CONTAINERS,
    ContainerSpec,
    EncodeSettings,
    Encoding,
    choose_encoding,
)
from tubelet.video.color import ResolvedColor, resolve_matrix
from tubelet.video.destination import destination_kind
from tubelet.video.info import ColorTags, VideoInfo
from tubelet.video.remux import describe_left_out

__all__ = ["OutputClock", "OutputFormat", "choose_output_format"]

_DEFAULT_RATE = Fraction(25)
_MAX_RATE_DENOMINATOR = 1 << 16
_FINE_TICK_S = Fraction(1, 1000)  # Matroska's; finer differences of time are not worth a note
_DEFAULT_SETTINGS = EncodeSettings()


@dataclass(frozen=True, slots=True)
class OutputClock:
    """Turns times of the source into ticks of the output; one and the same for the whole video.

    A tick follows from an absolute time alone, never from the frames before it. So a video that is
    encoded in segments gets the timestamps of one that is encoded at once, also where they are
    rounded.

    Attributes:
        tick_s: seconds per tick of the output.
        origin_s: time of the source, in seconds, that becomes 0.
        phase_ticks: by how much the time of the first frame was rounded.
    """

    tick_s: Fraction
    origin_s: Fraction
    phase_ticks: Fraction

    def exact(self, time_s: Fraction) -> Fraction:
        """Give the time of the output, in ticks and not rounded, of a time of the source."""
        return (time_s - self.origin_s) / self.tick_s

    def moved_s(self, time_s: Fraction) -> Fraction:
        """Say by how many seconds rounding moves a time against that of the first frame."""
        exact = self.exact(time_s)
        return abs(round(exact) - exact - self.phase_ticks) * self.tick_s

    def to_json(self) -> dict[str, str]:
        """Write the clock as strings, exactly."""
        return {field.name: str(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**{name: Fraction(text) for name, text in data.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """Everything that the encoder and the muxer of one output must agree on.

    Attributes:
        suffix: key of `CONTAINERS`; "" for numbered images.
        encoding: encoder, pixel format and options.
        width: pixels.
        height: pixels.
        tick_s: seconds per tick of the encoder's timestamps.
        average_rate: frames a second, None where unknown.
        tags: color tags that are written.
        matrix: the same with a matrix that is known, by which frames become YCbCr.
        sample_aspect: width to height of a pixel.
        source_tick_s: seconds per tick of the input's timestamps.
        source_origin_s: time of the input that becomes 0 where nothing is cut off at the start.
        start_s: where the reader was told to start.
        duration_s: after how many seconds the reader was told to stop, None for the end.
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
        """The container, None for numbered images."""
        return CONTAINERS[self.suffix] if self.suffix else None

    @property
    def frame_rate(self) -> Fraction:
        """Frames a second for the header, a fraction that every container can hold."""
        return (self.average_rate or _DEFAULT_RATE).limit_denominator(_MAX_RATE_DENOMINATOR)

    @property
    def usual_duration(self) -> int:
        """Ticks that a frame lasts by the frame rate, at least one."""
        if not self.average_rate:
            return 1
        return max(1, round(1 / (self.average_rate * self.tick_s)))

    @property
    def is_cut(self) -> bool:
        """A part of the input alone is written."""
        return self.start_s > 0 or self.duration_s is not None

    @property
    def max_rounding_s(self) -> Fraction:
        """Seconds by which a time may be rounded without a note."""
        return max(self.source_tick_s, _FINE_TICK_S)

    @property
    def fingerprint(self) -> str:
        """Hash of the whole value: parts of one video have the same."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def clock(self, first_s: Fraction) -> OutputClock:
        """Make the clock of the output.

        Args:
            first_s: time of the first frame of the whole output, in seconds of the source.
        """
        origin_s = first_s if self.start_s > 0 else min(first_s, self.source_origin_s)
        exact = (first_s - origin_s) / self.tick_s
        return OutputClock(self.tick_s, origin_s, round(exact) - exact)

    def to_json(self) -> dict[str, Any]:
        """Write the value in JSON's types; fractions become strings and lose nothing."""
        data = dataclasses.asdict(self)
        for name in _FRACTIONS:
            value = data[name]
            data[name] = None if value is None else str(value)
        data["encoding"]["notes"] = list(self.encoding.notes)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        fields = dict(data)
        for name in _FRACTIONS:
            value = fields[name]
            fields[name] = None if value is None else Fraction(value)
        encoding = dict(fields["encoding"])
        encoding["notes"] = tuple(encoding["notes"])
        fields["encoding"] = Encoding(**encoding)
        fields["tags"] = ColorTags(**fields["tags"])
        fields["matrix"] = ResolvedColor(ColorTags(**fields["matrix"]))
        return cls(**fields)


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
        dst: a video file, a folder or printf pattern for PNGs, or "-" for y4m on stdout.
        like: the input.
        width: of the output, pixels.
        height: of the output, pixels.
        settings: what was asked for.
        start_s: where the reader was told to start; the output begins at 0 then.
        duration_s: after how many seconds the reader was told to stop.

    Raises:
        RequestError: the codec is unknown or does not fit, or the destination makes no sense.
        ResourceError: this build of FFmpeg lacks the encoder.
    """
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        return _image_format(like, width, height, start_s, duration_s)
    suffix = ".y4m" if kind == "pipe" else Path(dst).suffix.lower()
    encoding = choose_encoding(suffix, like, width, height, settings)
    if CONTAINERS[suffix].muxer == "avi":
        # AVI has no presentation times, so packets must come in the order of showing.
        encoding = dataclasses.replace(encoding, options={**encoding.options, "bf": "0"})
    tags = _written_tags(like, encoding.pix_fmt)
    return OutputFormat(
        suffix=suffix,
        encoding=encoding,
        width=width,
        height=height,
        tick_s=_choose_tick(CONTAINERS[suffix], like),
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
    """Numbered PNG files: 8 bit, or 16 bit where the source has more."""
    channels = "rgba" if like.has_alpha else "rgb"
    deep_bits = "64be" if like.has_alpha else "48be"
    plain_bits = "" if like.has_alpha else "24"
    rgb = ColorTags(matrix=0)
    encoding = Encoding(
        codec="png",
        encoder="png",
        pix_fmt=channels + (deep_bits if like.bit_depth > 8 else plain_bits),
        options={"compression_level": "3", "pred": "sub"},
        tag="",
        notes=tuple(describe_left_out(like, "PNG images hold")),
    )
    return OutputFormat(
        suffix="",
        encoding=encoding,
        width=width,
        height=height,
        tick_s=like.time_base,
        average_rate=like.average_rate,
        tags=rgb,
        matrix=ResolvedColor(rgb),
        sample_aspect=Fraction(1),
        source_tick_s=like.time_base,
        source_origin_s=Fraction(0),
        start_s=start_s,
        duration_s=duration_s,
    )


def _choose_tick(container: ContainerSpec, like: VideoInfo) -> Fraction:
    if not container.fixed_rate:
        return container.tick_s or like.time_base
    rate = like.average_rate or _DEFAULT_RATE
    return 1 / rate.limit_denominator(_MAX_RATE_DENOMINATOR)


def _source_origin(like: VideoInfo) -> Fraction:
    """Count from the clock of a file; the video of a pipe has nothing to stay in step with."""
    return like.origin_s if Path(like.source).is_file() else Fraction(0)


def _written_tags(like: VideoInfo, pix_fmt: str) -> ColorTags:
    """Give the tags of the input, but let YCbCr that is made from RGB say how it is made."""
    if like.is_rgb and pix_fmt.startswith("yuv"):
        resolved = resolve_matrix(like.color, like.width, like.height)
        return dataclasses.replace(resolved, full_range=False, siting=0)
    return like.color
