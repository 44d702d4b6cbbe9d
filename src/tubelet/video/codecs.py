"""Tables of containers, of the codecs that they hold, and of the encoders of these codecs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from fractions import Fraction
from types import MappingProxyType

__all__ = [
    "CODECS",
    "CONTAINERS",
    "X265_BLOCK_PX",
    "CodecSpec",
    "ContainerSpec",
    "EncodeSettings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """Settings of the encoder that a user can choose.

    Attributes:
        codec: "auto" or a name in `CODECS`.
        crf: Constant rate factor; lower is better and larger. None is the codec's default.
        preset: Speed preset of the encoder. None is the codec's default.
    """

    codec: str = "auto"
    crf: float | None = None
    preset: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Codecs and properties of a container format.

    Attributes:
        muxer: FFmpeg's name of the format.
        codecs: Names in `CODECS`; the first is the default for 8 bit.
        deep_codec: Default codec above 8 bit.
        audio_encoder: Encoder for audio whose codec does not fit; None if the container has no
            audio.
        audio_refused: Audio codecs that FFmpeg would write but players do not read. May contain
            wildcards.
        audio_allowed: If not empty, only audio of these codecs is copied.
        subtitles_allowed: If not empty, only subtitles of these codecs are copied.
        subtitle_encoder: Encoder for text subtitles; None if the container has none.
        fixed_rate: Frames have no timestamps of their own.
        tick_s: Seconds per tick of the timestamps, if the format prescribes a coarse one.
        options: Options of the muxer.
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
        """The format is written by FFmpeg's mov muxer."""
        return self.muxer in ("mp4", "mov")

    def refuses(self, kind: str, codec: str) -> bool:
        """Return whether a stream must be converted although FFmpeg might write it."""
        allowed_by_kind = {"audio": self.audio_allowed, "subtitle": self.subtitles_allowed}
        allowed = allowed_by_kind.get(kind, ())
        if allowed:
            return codec not in allowed
        if kind != "audio":
            return False
        return any(fnmatch(codec, pattern) for pattern in self.audio_refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """Encoder of a codec and its properties.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        crf_option: Name of the quality option; "" if there is none.
        crf: Default quality.
        crf_max: Largest value of the quality option.
        preset_option: Name of the speed option; "" if there is none.
        preset: Default speed.
        presets: All speeds, for encoders that print a message of their own for an unknown one.
        options: Further options of the encoder.
        max_depth: Maximum bits of a component.
        min_depth: Minimum bits of a component.
        keeps_alpha: The codec can store transparency.
        keeps_rgb: RGB stays RGB.
        even_size: Chroma subsampling needs an even size.
        min_size: Minimum width and height, pixels.
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


X265_BLOCK_PX = 64
"""Side of x265's coding tree unit, pixels."""

_X264_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
# Default presets: the encoder shares the processor with the network. H.264 at 1280x720 costs 14 ms
# of CPU per frame with superfast, 26 ms with veryfast, and is 11 % larger. HEVC costs 65 ms with
# ultrafast, 150 ms with superfast.
_H264 = CodecSpec(
    encoder="libx264",
    crf=16,
    preset="superfast",
    presets=_X264_PRESETS,
    even_size=True,
)
_HEVC = CodecSpec(
    encoder="libx265",
    crf=18,
    preset="ultrafast",
    presets=_X264_PRESETS,
    even_size=True,
)
_AV1 = CodecSpec(
    encoder="libsvtav1",
    crf=24,
    crf_max=63,
    preset="10",
    even_size=True,
    min_size=(64, 64),
)
_VP9 = CodecSpec(
    encoder="libvpx-vp9",
    crf=20,
    crf_max=63,
    preset_option="cpu-used",
    preset="6",
    # A bit rate of 0 selects constant quality.
    options={"deadline": "realtime", "row-mt": "1", "b": "0"},
    keeps_alpha=True,
)
_FFV1 = CodecSpec(
    encoder="ffv1",
    crf_option="",
    preset_option="",
    options={"level": "3", "slicecrc": "1"},
    max_depth=12,
    keeps_alpha=True,
    keeps_rgb=True,
)
_PRORES = CodecSpec(
    encoder="prores_ks",
    crf_option="",
    preset_option="",
    options={"vendor": "apl0"},
    min_depth=10,
    keeps_alpha=True,
)
_H264_NVENC = CodecSpec(
    encoder="h264_nvenc",
    crf_option="cq",
    crf=18,
    preset="p5",
    options={"rc": "vbr", "b": "0"},
    max_depth=8,
    even_size=True,
)
_HEVC_NVENC = CodecSpec(
    encoder="hevc_nvenc",
    crf_option="cq",
    crf=20,
    preset="p5",
    options={"rc": "vbr", "b": "0"},
    even_size=True,
)
_GIF = CodecSpec(
    encoder="gif",
    crf_option="",
    preset_option="",
    max_depth=8,
    keeps_alpha=True,
)
_RAW = CodecSpec(
    encoder="rawvideo",
    crf_option="",
    preset_option="",
    max_depth=12,
)
CODECS: Mapping[str, CodecSpec] = MappingProxyType(
    {
        "h264": _H264,
        "hevc": _HEVC,
        "av1": _AV1,
        "vp9": _VP9,
        "ffv1": _FFV1,
        "prores": _PRORES,
        "h264_nvenc": _H264_NVENC,
        "hevc_nvenc": _HEVC_NVENC,
        "gif": _GIF,
        "rawvideo": _RAW,
    }
)
"""Codecs by their names on the command line."""

_MP4_FORMAT = ContainerSpec(
    muxer="mp4",
    codecs=("h264", "hevc", "av1", "vp9", "h264_nvenc", "hevc_nvenc"),
    audio_encoder="aac",
    audio_refused=("vorbis", "pcm_*"),
    subtitle_encoder="mov_text",
)
_MOV_FORMAT = ContainerSpec(
    muxer="mov",
    codecs=("h264", "hevc", "prores", "h264_nvenc", "hevc_nvenc"),
    audio_encoder="aac",
    subtitle_encoder="mov_text",
)
_MATROSKA_FORMAT = ContainerSpec(
    muxer="matroska",
    codecs=("h264", "hevc", "av1", "vp9", "ffv1", "prores", "h264_nvenc", "hevc_nvenc"),
    audio_encoder="flac",
    subtitle_encoder="ass",
    options={"avoid_negative_ts": "disabled"},
)
_WEBM_FORMAT = ContainerSpec(
    muxer="webm",
    codecs=("vp9", "av1"),
    deep_codec="av1",
    audio_encoder="libopus",
    subtitle_encoder="webvtt",
    options={"avoid_negative_ts": "disabled"},
)
_AVI_FORMAT = ContainerSpec(
    muxer="avi",
    codecs=("h264", "ffv1"),
    deep_codec="ffv1",
    audio_encoder="libmp3lame",
    audio_refused=("vorbis", "flac", "opus"),
    fixed_rate=True,
)
_TS_FORMAT = ContainerSpec(
    muxer="mpegts",
    codecs=("h264", "hevc", "h264_nvenc", "hevc_nvenc"),
    audio_encoder="aac",
    audio_allowed=("aac", "mp2", "mp3", "ac3", "eac3", "dts", "opus"),
    subtitles_allowed=("dvb_subtitle", "dvb_teletext"),
)
_GIF_FORMAT = ContainerSpec(
    muxer="gif",
    codecs=("gif",),
    deep_codec="gif",
    tick_s=Fraction(1, 100),
)
_Y4M_FORMAT = ContainerSpec(
    muxer="yuv4mpegpipe",
    codecs=("rawvideo",),
    deep_codec="rawvideo",
    fixed_rate=True,
    # FFmpeg counts depths above 8 bit as an unofficial extension.
    options={"strict": "-1"},
)
CONTAINERS: Mapping[str, ContainerSpec] = MappingProxyType(
    {
        ".mp4": _MP4_FORMAT,
        ".m4v": _MP4_FORMAT,
        ".mov": _MOV_FORMAT,
        ".mkv": _MATROSKA_FORMAT,
        ".webm": _WEBM_FORMAT,
        ".avi": _AVI_FORMAT,
        ".ts": _TS_FORMAT,
        ".gif": _GIF_FORMAT,
        ".y4m": _Y4M_FORMAT,
    }
)
"""Container formats by the extension of the output."""
