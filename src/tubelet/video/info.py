"""What is known of a video: the records that `probe` fills and the reader and the writer share."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["ColorTags", "HdrMetadata", "Orientation", "StreamInfo", "VideoInfo"]


@dataclass(frozen=True, slots=True)
class ColorTags:
    """Color description of a video, in FFmpeg's numbers, as the file has it; absent stays absent.

    Attributes:
        matrix: AVCOL_SPC_*, 2 = unspecified.
        primaries: AVCOL_PRI_*, 2 = unspecified.
        transfer: AVCOL_TRC_*, 2 = unspecified.
        full_range: None = unspecified.
        siting: AVCHROMA_LOC_*, 0 = unspecified.
    """

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    full_range: bool | None = None
    siting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HdrMetadata:
    """Static HDR metadata (SMPTE ST 2086 and CTA-861.3); what is None or 0 is absent.

    Attributes:
        primaries: CIE x, y of the mastering display's red, green and blue.
        white_point: CIE x, y.
        min_luminance: cd/m².
        max_luminance: cd/m².
        max_cll: maximum content light level, cd/m².
        max_fall: maximum frame-average light level, cd/m².
    """

    primaries: tuple[tuple[Fraction, Fraction], ...] | None = None
    white_point: tuple[Fraction, Fraction] | None = None
    min_luminance: Fraction | None = None
    max_luminance: Fraction | None = None
    max_cll: int = 0
    max_fall: int = 0

    def master_display(self) -> str | None:
        """Write the mastering display as `x265`'s master-display value, or None where it is incomplete."""
        if (
            not self.primaries
            or not self.white_point
            or self.max_luminance is None
            or self.min_luminance is None
        ):
            return None
        points = (*self.primaries, self.white_point)
        names = ("R", "G", "B", "WP")
        text = {
            n: f"{n}({round(x * 50000)},{round(y * 50000)})"
            for n, (x, y) in zip(names, points, strict=True)
        }
        light = f"L({round(self.max_luminance * 10000)},{round(self.min_luminance * 10000)})"
        return text["G"] + text["B"] + text["R"] + text["WP"] + light

    def max_cll_text(self) -> str | None:
        """Write the content light level as `x265`'s max-cll value, or None where it is absent."""
        return f"{self.max_cll},{self.max_fall}" if self.max_cll or self.max_fall else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """One stream of a container.

    Attributes:
        index: number in the container.
        kind: video, audio, subtitle, attachment, data or unknown.
        codec: FFmpeg's name, "" where it is unknown.
        language: ISO 639 code or None.
        title: or None.
        disposition: names of the flags that are set, such as "default".
    """

    index: int
    kind: str
    codec: str
    language: str | None
    title: str | None
    disposition: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What is known of a video before it is decoded.

    Attributes:
        source: path or pattern, "-" for a pipe.
        width: pixels, as frames come out: upright.
        height: pixels, as frames come out: upright.
        rotation_deg: how the container turns the coded image, counter-clockwise: 0, 90, 180 or 270. The
            reader's frames are already turned.
        sample_aspect: width to height of a pixel, upright; 1 where unknown.
        pix_fmt: FFmpeg's name of the decoded format.
        bit_depth: bits of a component.
        has_alpha: there is transparency.
        is_rgb: coded as RGB (or palette), not as YCbCr.
        color: tags, as far as there are any.
        time_base: seconds per tick of the frames' pts.
        average_rate: frames a second, None where unknown.
        duration_s: of the video stream, a hint of the header.
        frames_hint: number of frames, a hint of the header.
        hdr: static HDR metadata.
        container: FFmpeg's name of the format.
        codec: FFmpeg's name.
        streams: every stream of the container, the video too.
        video_index: index in the container of the stream that is read.
        start_s: time of the container's first timestamp; `start_s=0` of the reader means this moment.
        origin_s: time that an output counts from: 0, or the first timestamp where the clock of the container
            begins anywhere, as that of a transport stream does.
    """

    source: str
    width: int
    height: int
    rotation_deg: int = 0
    sample_aspect: Fraction = Fraction(1)
    pix_fmt: str
    bit_depth: int
    has_alpha: bool = False
    is_rgb: bool = False
    color: ColorTags = ColorTags()
    time_base: Fraction
    average_rate: Fraction | None = None
    duration_s: float | None = None
    frames_hint: int | None = None
    hdr: HdrMetadata | None = None
    container: str
    codec: str
    streams: tuple[StreamInfo, ...] = ()
    video_index: int = 0
    start_s: float = 0.0
    origin_s: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to turn a coded image upright: first transpose, then flip left-right, then up-down."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """Counter-clockwise turn, mirroring left aside."""
        if self.transpose:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y else 0
