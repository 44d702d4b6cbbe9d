"""Choose codec, pixel format and options for an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import av
import av.codec

from tubelet.errors import RequestError, ResourceError
from tubelet.video.codecs import (
    CODECS,
    CONTAINERS,
    X265_BLOCK_PX,
    CodecSpec,
    ContainerSpec,
    EncodeSettings,
)
from tubelet.video.info import HdrMetadata, VideoInfo

__all__ = ["Encoding", "choose_encoding"]


class _EncoderParameters(NamedTuple):
    """Names of an encoder's own parameters.

    Attributes:
        option: FFmpeg's option that passes them to the encoder.
        display: Parameter for the mastering display.
        light: Parameter for the content light level.
        format_display: Formats the mastering display; None if it is incomplete.
        always: Parameters of every output.
        with_hdr: Parameters that HDR metadata needs in addition.
    """

    option: str
    display: str
    light: str
    format_display: Callable[[HdrMetadata], str | None] = HdrMetadata.master_display
    always: tuple[str, ...] = ()
    with_hdr: tuple[str, ...] = ()


def _svt_master_display(hdr: HdrMetadata) -> str | None:
    """Format the mastering display for SVT-AV1: real numbers instead of x265's integer units."""
    if hdr.master_display() is None:
        return None
    assert hdr.primaries
    assert hdr.white_point
    assert hdr.max_luminance is not None
    assert hdr.min_luminance is not None
    red, green, blue = hdr.primaries
    points = (("G", green), ("B", blue), ("R", red), ("WP", hdr.white_point))
    text = ""
    for name, (x, y) in points:
        text += f"{name}({float(x):.5f},{float(y):.5f})"
    return f"{text}L({float(hdr.max_luminance):.4f},{float(hdr.min_luminance):.4f})"


# Encoders of other codecs do not write HDR metadata.
_ENCODER_PARAMETERS = {
    "hevc": _EncoderParameters(
        option="x265-params",
        display="master-display",
        light="max-cll",
        always=("log-level=error",),
        with_hdr=("hdr10=1", "repeat-headers=1"),
    ),
    "h264": _EncoderParameters(
        option="x264-params",
        display="mastering-display",
        light="cll",
    ),
    "av1": _EncoderParameters(
        option="svtav1-params",
        display="mastering-display",
        light="content-light",
        format_display=_svt_master_display,
    ),
}
# Ends of the names of planar formats, by the bits of a component.
_DEPTH_SUFFIXES = {8: "p", 10: "p10le", 12: "p12le"}
# RGB formats of FFV1 by the bits of a component and whether they have alpha.
_RGB_FORMATS = {
    (8, False): "bgr0",
    (8, True): "bgra",
    (10, False): "gbrp10le",
    (10, True): "gbrap10le",
    (12, False): "gbrp12le",
    (12, True): "gbrap12le",
}
# Subsamplings by how little they lose of the one in the first column.
_NEAREST_SUBSAMPLINGS = {
    "420": ("420", "422", "444"),
    "422": ("422", "444", "420"),
    "444": ("444", "422", "420"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Codec, pixel format and options chosen for one output.

    Attributes:
        codec: Name in `CODECS`.
        encoder: FFmpeg's name of the encoder.
        pix_fmt: FFmpeg's name of the pixel format.
        options: Options of the encoder.
        tag: Four-character code in the container; "" leaves it to the muxer.
        notes: Remarks for the user, one line each.
    """

    codec: str
    encoder: str
    pix_fmt: str
    options: dict[str, str]
    tag: str
    notes: tuple[str, ...]


def choose_encoding(
    suffix: str,
    like: VideoInfo,
    width: int,
    height: int,
    settings: EncodeSettings,
) -> Encoding:
    """Choose encoder, pixel format and options for an output.

    Args:
        suffix: Extension of the output, a key of `CONTAINERS`.
        like: Description of the input.
        width: Width of the output, pixels.
        height: Height of the output, pixels.
        settings: Settings of the user.

    Raises:
        RequestError: The codec is unknown, does not fit the container, or cannot keep the
            transparency; the quality or preset does not apply to it.
        ResourceError: This build of FFmpeg lacks the encoder.
    """
    container = CONTAINERS[suffix]
    name = _choose_codec(suffix, container, like, settings)
    spec = CODECS[name]
    supported = _supported_formats(name, spec)
    min_width, min_height = spec.min_size
    if width < min_width or height < min_height:
        raise RequestError(
            f"{width}x{height} is too small for {name}, which needs {min_width}x{min_height}; "
            "use another codec"
        )
    notes: list[str] = []
    pix_fmt = _choose_pix_fmt(name, spec, supported, like, (width, height), notes)
    if like.hdr is not None and name not in _ENCODER_PARAMETERS:
        notes.append(
            f"mastering display and light level of the input are dropped: {name} does not carry "
            "them"
        )
    side_px = min(width, height)
    options = _choose_options(name, spec, settings, like.hdr, pix_fmt, side_px)
    tag = ""
    is_hevc = name in ("hevc", "hevc_nvenc")
    if container.is_mov_family and is_hevc:
        # Apple's players need this tag for HEVC.
        tag = "hvc1"
    return Encoding(
        codec=name,
        encoder=spec.encoder,
        pix_fmt=pix_fmt,
        options=options,
        tag=tag,
        notes=tuple(notes),
    )


def _choose_codec(
    suffix: str,
    container: ContainerSpec,
    like: VideoInfo,
    settings: EncodeSettings,
) -> str:
    name = settings.codec
    if name == "auto":
        name = container.codecs[0]
        if like.bit_depth > 8:
            # The first codec may hold no more than 8 bit.
            name = container.deep_codec
    elif name not in CODECS:
        known_names = ", ".join(CODECS)
        raise RequestError(f"unknown codec {name!r}; known are auto, {known_names}")
    if name not in container.codecs:
        container_codecs = ", ".join(container.codecs)
        raise RequestError(f"{suffix} does not hold {name}; it holds {container_codecs}")

    # The alpha of VP9 is coded in block additions of Matroska, which MP4 does not have.
    loses_alpha = name == "vp9" and container.is_mov_family
    keeps_alpha = CODECS[name].keeps_alpha and not loses_alpha
    if like.has_alpha and not keeps_alpha:
        raise RequestError(
            f"the input has transparency, which {name} in {suffix} cannot keep; use ffv1 or vp9 in "
            ".mkv, a .webm, prores in .mov, or a folder of PNGs"
        )
    return name


def _supported_formats(name: str, spec: CodecSpec) -> set[str]:
    """List the pixel formats of an encoder; an empty set means all."""
    try:
        formats = av.codec.Codec(spec.encoder, "w").video_formats
    except av.codec.codec.UnknownCodecError as error:
        available: list[str] = []
        for other_name, other in CODECS.items():
            if other.encoder in av.codec.codecs_available:
                available.append(other_name)
        raise ResourceError(
            f"this FFmpeg has no {spec.encoder}, which {name} needs; it has {', '.join(available)}"
        ) from error
    if not formats:
        return set()
    return {pix_fmt.name for pix_fmt in formats}


def _choose_pix_fmt(
    name: str,
    spec: CodecSpec,
    supported: set[str],
    like: VideoInfo,
    size: tuple[int, int],
    notes: list[str],
) -> str:
    """Keep depth, chroma subsampling and transparency of the input as far as the codec can."""
    if name == "gif":
        return "pal8"
    depth = min(max(like.bit_depth, spec.min_depth), spec.max_depth)
    # Depths without a format, such as 9 bit, are rounded up.
    sufficient_depths = [bits for bits in _DEPTH_SUFFIXES if bits >= depth]
    depth = min(sufficient_depths)
    if like.is_rgb and spec.keeps_rgb:
        return _RGB_FORMATS[depth, like.has_alpha]

    # Odd sizes cannot be subsampled; 4:2:2 needs only an even width.
    width, height = size
    subsampling = _subsampling(like)
    is_odd = width % 2 == 1 or height % 2 == 1
    can_keep_422 = subsampling == "422" and width % 2 == 0
    needs_444 = spec.even_size and is_odd and not can_keep_422
    if needs_444:
        subsampling = "444"
    pix_fmt = _nearest_format(supported, subsampling, depth, alpha=like.has_alpha)

    if needs_444:
        # The encoder may lack 4:4:4; the nearest format would then be subsampled.
        if "444" not in pix_fmt:
            raise RequestError(
                f"{spec.encoder} cannot encode the odd size {width}x{height}; use h264 or vp9"
            )
        notes.append(
            f"{width}x{height} is odd: written as 4:4:4, since {name} halves chroma only of even "
            "sizes; some players refuse 4:4:4"
        )
    if like.bit_depth > 8 and not pix_fmt.endswith("le"):
        notes.append(
            f"{like.bit_depth} bit of the input are written as 8 bit: {spec.encoder} holds no more"
        )
    return pix_fmt


def _subsampling(like: VideoInfo) -> str:
    """Name the chroma subsampling of the input; RGB is written as 4:2:0."""
    if like.is_rgb:
        return "420"
    # Names of formats contain it: yuv422p10le, for example.
    if "444" in like.pix_fmt:
        return "444"
    if "422" in like.pix_fmt:
        return "422"
    return "420"


def _nearest_format(supported: set[str], subsampling: str, depth: int, *, alpha: bool) -> str:
    """Find the planar YCbCr format that loses the fewest bits, then the fewest chroma samples.

    Args:
        supported: Pixel formats of the encoder; an empty set means all.
        subsampling: 420, 422 or 444.
        depth: Bits of a component.
        alpha: The format needs transparency.

    Raises:
        RequestError: The encoder has no planar YCbCr format.
    """
    prefix = "yuv"
    if alpha:
        prefix = "yuva"
    # More bits than needed would only cost space.
    depths = [bits for bits in _DEPTH_SUFFIXES if bits <= depth]
    for bits in reversed(depths):
        for chroma in _NEAREST_SUBSAMPLINGS[subsampling]:
            name = prefix + chroma + _DEPTH_SUFFIXES[bits]
            if not supported or name in supported:
                return name
    raise RequestError(
        f"the encoder has no suitable planar format, only {', '.join(sorted(supported))}"
    )


def _choose_options(
    name: str,
    spec: CodecSpec,
    settings: EncodeSettings,
    hdr: HdrMetadata | None,
    pix_fmt: str,
    side_px: int,
) -> dict[str, str]:
    """Check the settings of the user, and translate them to options of the encoder.

    Args:
        name: Name of the codec.
        spec: Properties of the codec.
        settings: Settings of the user.
        hdr: HDR metadata of the input.
        pix_fmt: Pixel format of the output.
        side_px: Shorter side of the output, pixels.

    Raises:
        RequestError: The quality or preset does not apply to the codec.
    """
    options = dict(spec.options)

    crf = settings.crf
    if crf is None:
        crf = spec.crf
    elif not spec.crf_option:
        raise RequestError(f"crf={crf:g} has no meaning for {name}; leave it out")
    elif not 0 <= crf <= spec.crf_max:
        raise RequestError(f"crf={crf:g} must be between 0 and {spec.crf_max:g} for {name}")
    if spec.crf_option:
        options[spec.crf_option] = f"{crf:g}"

    preset = settings.preset
    if preset is None:
        preset = spec.preset
    elif not spec.preset_option:
        raise RequestError(f"preset={preset!r} has no meaning for {name}; leave it out")
    elif spec.presets and preset not in spec.presets:
        known_presets = ", ".join(spec.presets)
        raise RequestError(
            f"preset={preset!r} is not a preset of {name}; choose from {known_presets}",
        )
    if spec.preset_option:
        # An empty preset also means the default.
        options[spec.preset_option] = preset or spec.preset

    if name == "prores":
        # Profile HQ; 4444 keeps all chroma samples.
        options["profile"] = "3"
        if "444" in pix_fmt:
            options["profile"] = "4"
    options.update(_encoder_parameters(name, hdr, side_px))
    return options


def _encoder_parameters(name: str, hdr: HdrMetadata | None, side_px: int) -> dict[str, str]:
    """Build the option with the encoder's own parameters: HDR metadata and safeguards."""
    names = _ENCODER_PARAMETERS.get(name)
    if names is None:
        return {}
    params = list(names.always)
    if name == "hevc" and side_px < X265_BLOCK_PX:
        # CU-tree writes beyond its buffers if an image is smaller than a block.
        params.append("cutree=0")
    if hdr is not None:
        params += _hdr_parameters(names, hdr)
    if not params:
        return {}
    return {names.option: ":".join(params)}


def _hdr_parameters(names: _EncoderParameters, hdr: HdrMetadata) -> list[str]:
    """List the parameters with the HDR metadata of the input; none if both kinds are absent."""
    values = {
        names.display: names.format_display(hdr),
        names.light: hdr.max_cll_text(),
    }
    params = [f"{parameter}={value}" for parameter, value in values.items() if value]
    if params:
        params += names.with_hdr
    return params
