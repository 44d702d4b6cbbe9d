"""Descriptions of videos: the records that `probe` fills and that reader and writer share."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["ColorTags", "HdrMetadata", "Orientation", "StreamInfo", "VideoInfo"]

# Units of x265's master-display value: 0.00002 for CIE x and y, 0.0001 cd/m² for luminance.
_X265_CHROMATICITY_UNITS = 50000
_X265_LUMINANCE_UNITS = 10000
# Counter-clockwise rotations by whether an image is transposed and whether it is flipped up-down.
_ROTATIONS_DEG = {
    (False, False): 0,
    (True, True): 90,
    (False, True): 180,
    (True, False): 270,
}


@dataclass(frozen=True, slots=True)
class ColorTags:
    """Color description of a video, in FFmpeg's numbers, exactly as the file has it.

    Attributes:
        matrix: AVCOL_SPC_*, 2 = unspecified.
        primaries: AVCOL_PRI_*, 2 = unspecified.
        transfer: AVCOL_TRC_*, 2 = unspecified.
        full_range: Full instead of limited range; None = unspecified.
        siting: AVCHROMA_LOC_*, 0 = unspecified.
    """

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    full_range: bool | None = None
    siting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HdrMetadata:
    """Static HDR metadata (SMPTE ST 2086 and CTA-861.3); values of None or 0 are absent.

    Attributes:
        primaries: CIE x, y of the mastering display's red, green and blue.
        white_point: CIE x, y of the mastering display's white point.
        min_luminance: Minimum luminance of the mastering display, cd/m².
        max_luminance: Maximum luminance of the mastering display, cd/m².
        max_cll: Maximum content light level, cd/m².
        max_fall: Maximum frame-average light level, cd/m².
    """

    primaries: tuple[tuple[Fraction, Fraction], ...] | None = None
    white_point: tuple[Fraction, Fraction] | None = None
    min_luminance: Fraction | None = None
    max_luminance: Fraction | None = None
    max_cll: int = 0
    max_fall: int = 0

    def master_display(self) -> str | None:
        """Format the mastering display as x265's master-display; None if it is incomplete."""
        if not self.primaries or not self.white_point:
            return None
        if self.max_luminance is None or self.min_luminance is None:
            return None
        red, green, blue = self.primaries
        # x265 expects the order G, B, R.
        points = (("G", green), ("B", blue), ("R", red), ("WP", self.white_point))
        text = ""
        for name, (x, y) in points:
            x_units = round(x * _X265_CHROMATICITY_UNITS)
            y_units = round(y * _X265_CHROMATICITY_UNITS)
            text += f"{name}({x_units},{y_units})"
        max_units = round(self.max_luminance * _X265_LUMINANCE_UNITS)
        min_units = round(self.min_luminance * _X265_LUMINANCE_UNITS)
        return f"{text}L({max_units},{min_units})"

    def max_cll_text(self) -> str | None:
        """Format the content light level as x265's max-cll; None if it is absent."""
        if not self.max_cll and not self.max_fall:
            return None
        return f"{self.max_cll},{self.max_fall}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """Description of one stream of a container.

    Attributes:
        index: Index of the stream in the container.
        kind: video, audio, subtitle, attachment, data or unknown.
        codec: FFmpeg's name of the codec; "" if it is unknown.
        language: ISO 639 code, or None.
        title: Title, or None.
        disposition: Names of the flags that are set, such as "default".
    """

    index: int
    kind: str
    codec: str
    language: str | None
    title: str | None
    disposition: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """Description of a video by its header and its first frame.

    Attributes:
        source: Path or pattern; "-" for a pipe.
        width: Width of an upright frame, pixels.
        height: Height of an upright frame, pixels.
        rotation_deg: Counter-clockwise rotation that the container applies to the coded image: 0,
            90, 180 or 270. The frames of a reader are already rotated.
        sample_aspect: Width to height of an upright pixel; 1 if unknown.
        pix_fmt: FFmpeg's name of the decoded pixel format.
        bit_depth: Bits of a component.
        has_alpha: The video has transparency.
        is_rgb: Coded as RGB or with a palette, not as YCbCr.
        color: Color tags of the file.
        time_base: Seconds per tick of the frames' pts.
        average_rate: Frames per second; None if unknown.
        duration_s: Duration of the video stream in the header, which may be wrong.
        frames_hint: Number of frames in the header, which may be wrong.
        hdr: Static HDR metadata.
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the codec.
        streams: All streams of the container, including the video.
        video_index: Index in the container of the stream that is read.
        start_s: Time of the container's first timestamp; `start_s=0` of the reader is this moment.
        origin_s: Time from which an output counts: 0, or the first timestamp if the clock of the
            container may begin anywhere, as that of a transport stream does.
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
    """Steps that turn a coded image upright: transpose, then flip left-right, then up-down."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """Counter-clockwise rotation in degrees, ignoring mirroring."""
        return _ROTATIONS_DEG[self.transpose, self.flip_y]
