"""Which codecs a container holds, and how each is encoded: encoder, pixel format, options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from fractions import Fraction
from types import MappingProxyType

import av
import av.codec

from tubelet.errors import RequestError, ResourceError
from tubelet.video.info import HdrMetadata, VideoInfo

__all__ = [
    "CODECS",
    "CONTAINERS",
    "CodecSpec",
    "ContainerSpec",
    "EncodeSettings",
    "Encoding",
    "choose_encoding",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """What a user may ask of the encoder.

    Attributes:
        codec: "auto" or a name in `CODECS`.
        crf: constant rate factor, lower is better and larger; None for the codec's default.
        preset: the encoder's speed preset; None for the default.
    """

    codec: str = "auto"
    crf: float | None = None
    preset: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a container holds.

    Attributes:
        muxer: FFmpeg's name of the format.
        codecs: names in `CODECS`, the first is the default for 8 bit.
        deep_codec: default above 8 bit.
        audio_encoder: what audio is converted to where its codec does not fit; None: no audio at all.
        audio_refused: codecs that FFmpeg would write but players do not read; wildcards are allowed.
        audio_allowed: if not empty, only audio of these codecs is copied.
        subtitles_allowed: if not empty, only subtitles of these codecs are copied.
        subtitle_encoder: what text subtitles are converted to; None: no text subtitles.
        fixed_rate: has no timestamp per frame.
        tick_s: the only tick of time that it has, where that is coarse.
        options: of the muxer.
    """

    muxer: str
    codecs: tuple[str, ...]
    deep_codec: str = "hevc"
    audio_encoder: str | None = None
    audio_refused: tuple[str, ...] = ()
    audio_allowed: tuple[str, ...] = ()
    subtitles_allowed: tuple[str, ...] = ()
    subtitle_encoder: str | None = None
    fixed_rate: bool = False
    tick_s: Fraction | None = None
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_mov_family(self) -> bool:
        """Written by FFmpeg's mov muxer."""
        return self.muxer in ("mp4", "mov")

    def refuses(self, kind: str, codec: str) -> bool:
        """Say whether a stream must be converted although FFmpeg might write it."""
        allowed = {"audio": self.audio_allowed, "subtitle": self.subtitles_allowed}.get(kind, ())
        if allowed:
            return codec not in allowed
        return kind == "audio" and any(fnmatch(codec, pattern) for pattern in self.audio_refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """How a codec is encoded.

    Attributes:
        encoder: FFmpeg's encoder.
        crf_option: name of the quality option; "" where there is none.
        crf: default of it.
        crf_max: largest value of it.
        preset_option: name of the speed option; "" where there is none.
        preset: default of it.
        presets: all its values, where the encoder would complain of others on its own.
        options: further options of the encoder.
        max_depth: most bits of a component that are written.
        keeps_alpha: can hold transparency.
        keeps_rgb: RGB stays RGB.
        even_size: chroma subsampling needs an even size.
        min_depth: fewest bits of a component.
        min_size: least width and height, pixels.
    """

    encoder: str
    crf_option: str = "crf"
    crf: float = 0.0
    crf_max: float = 51.0
    preset_option: str = "preset"
    preset: str = ""
    presets: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    max_depth: int = 10
    min_depth: int = 8
    keeps_alpha: bool = False
    keeps_rgb: bool = False
    even_size: bool = False
    min_size: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """The choice for one output.

    Attributes:
        codec: name in `CODECS`.
        encoder: FFmpeg's encoder.
        pix_fmt: FFmpeg's pixel format.
        options: of the encoder.
        tag: four-character code in the container, "" for the muxer's choice.
        notes: what a user should know, a line each.
    """

    codec: str
    encoder: str
    pix_fmt: str
    options: dict[str, str]
    tag: str
    notes: tuple[str, ...]


X265_BLOCK_PX = 64
_X264_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slow", "slower", "veryslow", "placebo"),
)
# Presets: H.264 at 1280x720 costs 14 ms of CPU a frame with superfast, 26 with veryfast, and is 11 % larger;
# it shares the processor with the network. HEVC: 65 ms with ultrafast, 150 with superfast.
CODECS: Mapping[str, CodecSpec] = MappingProxyType(
    {
        "h264": CodecSpec(encoder="libx264", crf=16, preset="superfast", presets=_X264_PRESETS, even_size=True),
        "hevc": CodecSpec(encoder="libx265", crf=18, preset="ultrafast", presets=_X264_PRESETS, even_size=True),
        "av1": CodecSpec(
            encoder="libsvtav1", crf=24, crf_max=63, preset="10", even_size=True, min_size=(64, 64)
        ),
        "vp9": CodecSpec(
            encoder="libvpx-vp9", crf=20, crf_max=63, preset_option="cpu-used", preset="6", keeps_alpha=True,
            options={"deadline": "realtime", "row-mt": "1", "b": "0"},
        ),
        "ffv1": CodecSpec(
            encoder="ffv1", crf_option="", preset_option="", keeps_alpha=True, keeps_rgb=True, max_depth=12,
            options={"level": "3", "slicecrc": "1"},
        ),
        "prores": CodecSpec(
            encoder="prores_ks", crf_option="", preset_option="", keeps_alpha=True, min_depth=10,
            options={"vendor": "apl0"},
        ),
        "h264_nvenc": CodecSpec(
            encoder="h264_nvenc", crf_option="cq", crf=18, preset="p5", even_size=True, max_depth=8,
            options={"rc": "vbr", "b": "0"},
        ),
        "hevc_nvenc": CodecSpec(
            encoder="hevc_nvenc", crf_option="cq", crf=20, preset="p5", even_size=True,
            options={"rc": "vbr", "b": "0"},
        ),
        "gif": CodecSpec(encoder="gif", crf_option="", preset_option="", max_depth=8, keeps_alpha=True),
        "rawvideo": CodecSpec(encoder="rawvideo", crf_option="", preset_option="", max_depth=12),
    }
)  # fmt: skip

_MP4 = ContainerSpec(
    muxer="mp4",
    codecs=("h264", "hevc", "av1", "vp9", "h264_nvenc", "hevc_nvenc"),
    audio_encoder="aac",
    audio_refused=("vorbis", "pcm_*"),
    subtitle_encoder="mov_text",
)
_TS_AUDIO = ("aac", "mp2", "mp3", "ac3", "eac3", "dts", "opus")
CONTAINERS: Mapping[str, ContainerSpec] = MappingProxyType(
    {
        ".mp4": _MP4,
        ".m4v": _MP4,
        ".mov": ContainerSpec(
            muxer="mov", codecs=("h264", "hevc", "prores", "h264_nvenc", "hevc_nvenc"), audio_encoder="aac",
            subtitle_encoder="mov_text",
        ),
        ".mkv": ContainerSpec(
            muxer="matroska",
            codecs=("h264", "hevc", "av1", "vp9", "ffv1", "prores", "h264_nvenc", "hevc_nvenc"),
            audio_encoder="flac", subtitle_encoder="ass", options={"avoid_negative_ts": "disabled"},
        ),
        ".webm": ContainerSpec(
            muxer="webm", codecs=("vp9", "av1"), deep_codec="av1", audio_encoder="libopus",
            subtitle_encoder="webvtt", options={"avoid_negative_ts": "disabled"},
        ),
        ".avi": ContainerSpec(
            muxer="avi", codecs=("h264", "ffv1"), deep_codec="ffv1", audio_encoder="libmp3lame",
            audio_refused=("vorbis", "flac", "opus"), fixed_rate=True,
        ),
        ".ts": ContainerSpec(
            muxer="mpegts", codecs=("h264", "hevc", "h264_nvenc", "hevc_nvenc"), audio_encoder="aac",
            audio_allowed=_TS_AUDIO, subtitles_allowed=("dvb_subtitle", "dvb_teletext"),
        ),
        ".gif": ContainerSpec(muxer="gif", codecs=("gif",), deep_codec="gif", tick_s=Fraction(1, 100)),
        ".y4m": ContainerSpec(
            muxer="yuv4mpegpipe", codecs=("rawvideo",), deep_codec="rawvideo", fixed_rate=True,
            options={"strict": "-1"},
        ),
    }
)  # fmt: skip


def choose_encoding(
    suffix: str, like: VideoInfo, width: int, height: int, settings: EncodeSettings
) -> Encoding:
    """Choose encoder, pixel format and options for an output.

    Args:
        suffix: of the output, a key of `CONTAINERS`.
        like: the input.
        width: of the output, pixels.
        height: of the output, pixels.
        settings: what was asked for.

    Raises:
        RequestError: the codec is unknown, does not fit the container, or cannot keep the transparency; the
            quality or preset does not apply to it.
        ResourceError: this build of FFmpeg lacks the encoder.
    """
    container = CONTAINERS[suffix]
    name = _choose_codec(suffix, container, like, settings)
    spec = CODECS[name]
    supported = _supported_formats(name, spec)
    if width < spec.min_size[0] or height < spec.min_size[1]:
        raise RequestError(
            f"{width}x{height} is too small for {name}, which needs {spec.min_size[0]}x{spec.min_size[1]}; "
            "use another codec"
        )
    notes: list[str] = []
    pix_fmt = _choose_pix_fmt(name, spec, supported, like, (width, height), notes)
    if like.hdr is not None and name not in ("hevc", "av1", "h264"):
        notes.append(
            f"mastering display and light level of the input are left out: {name} does not carry them"
        )
    return Encoding(
        codec=name,
        encoder=spec.encoder,
        pix_fmt=pix_fmt,
        options=_options(name, spec, settings, like.hdr, pix_fmt, min(width, height)),
        tag="hvc1" if container.is_mov_family and name in ("hevc", "hevc_nvenc") else "",
        notes=tuple(notes),
    )


def _choose_codec(
    suffix: str, container: ContainerSpec, like: VideoInfo, settings: EncodeSettings
) -> str:
    name = settings.codec
    if name == "auto":
        name = container.codecs[0] if like.bit_depth <= 8 else container.deep_codec
    elif name not in CODECS:
        raise RequestError(f"unknown codec {name!r}; known are auto, {', '.join(CODECS)}")
    if name not in container.codecs:
        raise RequestError(f"{suffix} does not hold {name}; it holds {', '.join(container.codecs)}")
    if like.has_alpha and not (
        CODECS[name].keeps_alpha and not (name == "vp9" and container.is_mov_family)
    ):
        raise RequestError(
            f"the input has transparency, which {name} in {suffix} cannot keep; use ffv1 or vp9 in "
            ".mkv, a .webm, prores in .mov, or a folder of PNGs"
        )
    return name


def _supported_formats(name: str, spec: CodecSpec) -> set[str]:
    try:
        formats = av.codec.Codec(spec.encoder, "w").video_formats
    except av.codec.codec.UnknownCodecError as error:
        have = ", ".join(
            other for other, s in CODECS.items() if s.encoder in av.codec.codecs_available
        )
        raise ResourceError(
            f"this FFmpeg has no {spec.encoder}, which {name} needs; it has {have}"
        ) from error
    return {f.name for f in formats or ()}


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
    depth = 8 if depth == 8 else 10 if depth <= 10 else 12
    if like.is_rgb and spec.keeps_rgb:
        alpha = "a" if like.has_alpha else ""
        return f"bgr{alpha or 0}" if depth == 8 else f"gbr{alpha}p{depth}le"
    subsampling = _subsampling(like)
    odd = size[0] % 2 or size[1] % 2
    if odd and spec.even_size and not (subsampling == "422" and size[0] % 2 == 0):
        subsampling = "444"
    pix_fmt = _nearest_format(supported, subsampling, depth, like.has_alpha)
    if odd and spec.even_size and subsampling == "444":
        if "444" not in pix_fmt:
            raise RequestError(
                f"{spec.encoder} cannot encode the odd size {size[0]}x{size[1]}; use h264 or vp9"
            )
        notes.append(
            f"{size[0]}x{size[1]} is odd: written as 4:4:4, since {name} halves chroma only of even sizes; "
            "some players refuse 4:4:4"
        )
    if like.bit_depth > 8 and not pix_fmt.endswith("le"):
        notes.append(
            f"{like.bit_depth} bit of the input are written as 8 bit: {spec.encoder} holds no more"
        )
    return pix_fmt


def _subsampling(like: VideoInfo) -> str:
    if like.is_rgb:
        return "420"
    return next((s for s in ("444", "422") if s in like.pix_fmt), "420")


def _nearest_format(supported: set[str], subsampling: str, depth: int, alpha: bool) -> str:
    """Find the planar YCbCr format that loses least; an empty set supports everything."""
    finer = {
        "420": ("420", "422", "444"),
        "422": ("422", "444", "420"),
        "444": ("444", "422", "420"),
    }
    for bits in (d for d in (12, 10, 8) if d <= depth):
        for chroma in finer[subsampling]:
            name = f"yuv{'a' if alpha else ''}{chroma}p{'' if bits == 8 else f'{bits}le'}"
            if not supported or name in supported:
                return name
    raise RequestError(
        f"the encoder takes none of the planar formats, only {', '.join(sorted(supported))}"
    )


def _options(
    name: str,
    spec: CodecSpec,
    settings: EncodeSettings,
    hdr: HdrMetadata | None,
    pix_fmt: str,
    side_px: int,
) -> dict[str, str]:
    options = dict(spec.options)
    if settings.crf is not None and not spec.crf_option:
        raise RequestError(f"crf={settings.crf:g} has no meaning for {name}; leave it out")
    if settings.preset is not None and not spec.preset_option:
        raise RequestError(f"preset={settings.preset!r} has no meaning for {name}; leave it out")
    if settings.preset is not None and spec.presets and settings.preset not in spec.presets:
        raise RequestError(
            f"preset={settings.preset!r} is none of {name}'s: {', '.join(spec.presets)}"
        )
    if settings.crf is not None and not 0 <= settings.crf <= spec.crf_max:
        raise RequestError(
            f"crf={settings.crf:g} must be between 0 and {spec.crf_max:g} for {name}"
        )
    if spec.crf_option:
        options[spec.crf_option] = f"{spec.crf if settings.crf is None else settings.crf:g}"
    if spec.preset_option:
        options[spec.preset_option] = settings.preset or spec.preset
    if name == "prores":
        options["profile"] = "4" if "444" in pix_fmt else "3"
    options.update(_private_options(name, hdr, side_px))
    return options


def _private_options(name: str, hdr: HdrMetadata | None, side_px: int) -> dict[str, str]:
    """Put mastering display, content light level and safeguards into the encoder's own parameters."""
    display, light = (hdr.master_display(), hdr.max_cll_text()) if hdr else (None, None)
    if name == "hevc":
        params = ["log-level=error"]
        if side_px < X265_BLOCK_PX:
            params.append(
                "cutree=0"
            )  # it writes beyond its buffers in an image smaller than a block
        params += [f"master-display={display}"] if display else []
        params += [f"max-cll={light}"] if light else []
        params += ["hdr10=1", "repeat-headers=1"] if display or light else []
        return {"x265-params": ":".join(params)}
    if name == "h264" and (display or light):
        params = [f"mastering-display={display}"] if display else []
        params += [f"cll={light}"] if light else []
        return {"x264-params": ":".join(params)}
    if name == "av1" and (display or light):
        assert hdr is not None
        params = [f"mastering-display={_svt_master_display(hdr)}"] if display else []
        params += [f"content-light={light}"] if light else []
        return {"svtav1-params": ":".join(params)}
    return {}


def _svt_master_display(hdr: HdrMetadata) -> str:
    """Write the mastering display as SVT-AV1 takes it: real numbers instead of x265's integer units."""
    assert hdr.primaries
    assert hdr.white_point
    assert hdr.max_luminance is not None
    assert hdr.min_luminance is not None
    r, g, b = hdr.primaries
    points = zip("GBR", (g, b, r), strict=True)
    text = "".join(f"{n}({float(x):.5f},{float(y):.5f})" for n, (x, y) in points)
    white = f"WP({float(hdr.white_point[0]):.5f},{float(hdr.white_point[1]):.5f})"
    return f"{text}{white}L({float(hdr.max_luminance):.4f},{float(hdr.min_luminance):.4f})"
