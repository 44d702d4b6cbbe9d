"""Small videos that the tests make themselves, and what FFmpeg's own programs say of the results.

one stream       image, make_video, save_image
several streams  add_video, add_audio, add_subtitles, mux; make_plain, make_rich
through our code rewrite; info and frames of a video that does not exist
judges           times_s, payloads (PyAV); ffprobe, ffprobe_times, ffmpeg_raw, subtitles_as_srt
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.subtitles.subtitle import SubtitleSet

from tubelet.types import Frame
from tubelet.video.info import ColorTags, VideoInfo
from tubelet.video.reader import open_reader
from tubelet.video.writer import open_writer

FFMPEG = shutil.which("ffmpeg")
FFPROBE = shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(
    FFMPEG is None or FFPROBE is None, reason="no ffmpeg here to judge by"
)
MS = Fraction(1, 1000)
VFR_MS = (0, 33, 67, 133, 140, 200, 301, 333, 400, 500, 501, 550)
ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, \
Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, \
MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
SPOKEN = ((100, 200, "Grüße {\\i1}you{\\i0}\\Nline two"), (350, 150, "second, with comma"))


def image(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth image (H, W, 3) uint8 whose gradient moves with its number."""
    y, x = np.mgrid[0:height, 0:width]
    red = 128 + 90 * np.sin((x + 3 * number) / 11)
    green = 128 + 90 * np.cos((y - 2 * number) / 13)
    blue = 128 + 60 * np.sin((x + y + number) / 17)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def make_video(
    path: Path,
    *,
    frames: int = 10,
    size: tuple[int, int] = (64, 48),
    pts: Iterable[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rate: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    rotation: int = 0,
) -> Path:
    """Encode `frames` images of `size` (width, height)."""
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, tick in zip(range(frames), pts or range(frames), strict=False):
            frame = av.VideoFrame.from_ndarray(image(number, width, height), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def save_image(
    path: Path, frame: av.VideoFrame, pix_fmt: str = "rgb24", codec: str = "png"
) -> Path:
    """Encode one image."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pix_fmt
    encoder.time_base = Fraction(1, 25)
    packets = [*encoder.encode(frame.reformat(format=pix_fmt)), *encoder.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


def ffprobe_times(path: Path) -> list[float]:
    """Presentation times in seconds that ffprobe sees, as far as it knows them."""
    command = [FFPROBE or "", "-v", "error", "-select_streams", "v:0", "-show_entries"]
    command += ["frame=best_effort_timestamp_time", "-of", "csv=p=0", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [float(line.split(",")[0]) for line in lines if not line.startswith("N/A")]


def ffmpeg_raw(path: Path, pix_fmt: str, dtype: str, *filters: str) -> np.ndarray:
    """All bytes that ffmpeg decodes a video to, upright."""
    command = [FFMPEG or "", "-v", "error", "-i", str(path)]
    command += ["-vf", ",".join(filters)] if filters else []
    command += ["-f", "rawvideo", "-pix_fmt", pix_fmt, "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, dtype)


def add_video(
    container: Any,
    pts_ms=VFR_MS,
    size=(64, 48),
    codec="libx264",
    pix_fmt="yuv420p",
    still=False,
    images: Iterable[np.ndarray] | None = None,
    **context,
):
    """Add a video stream: `images` (H, W, 3) uint8, or noise that changes with every frame unless `still`."""
    stream = container.add_stream(codec, rate=25, width=size[0], height=size[1], pix_fmt=pix_fmt)
    stream.codec_context.time_base = MS
    stream.options = {"preset": "ultrafast"} if codec.startswith("libx") else {}
    stream.options.update(context.pop("options", {}))
    for name, value in context.items():
        setattr(stream.codec_context, name, value)
    stream.codec_context.flags |= 1 << 8
    if images is None:
        rng, shape = np.random.default_rng(0), (size[1], size[0], 3)
        images = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in pts_ms]
        images = images[:1] * len(pts_ms) if still else images

    def packets():
        for number, (pts, image) in enumerate(zip(pts_ms, images, strict=True)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = pts, MS
            frame.duration = pts_ms[number + 1] - pts if number + 1 < len(pts_ms) else 40
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return stream, packets


def add_audio(container: Any, codec="aac", seconds=0.6, start_s=0.0):
    stream = container.add_stream(codec, rate=48000)
    stream.codec_context.layout = "stereo"

    def packets():
        samples = (
            np.random.default_rng(1).normal(0, 0.1, (2, int(48000 * seconds))).astype(np.float32)
        )
        for first in range(0, samples.shape[1], 960):
            part = np.ascontiguousarray(samples[:, first : first + 960])
            frame = av.AudioFrame.from_ndarray(part, "fltp", "stereo")
            frame.rate, frame.time_base, frame.pts = (
                48000,
                Fraction(1, 48000),
                first + int(48000 * start_s),
            )
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return stream, packets


def add_subtitles(container: Any, codec="subrip", spoken=SPOKEN):
    stream = container.add_stream(codec)
    context = stream.codec_context
    context.subtitle_header = ASS_HEADER
    context.time_base = stream.time_base = MS
    context.open()

    def packets():
        for number, (start, length, text) in enumerate(spoken):
            event = f"{number},0,Default,,0,0,0,,{text}".encode()
            packet = context.encode_subtitle(SubtitleSet.create(event, 0, length))
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = length, MS, stream
            yield packet

    return stream, packets


def mux(container: Any, *sources) -> None:
    """Write the packets of several streams in the order of their times."""
    packets = [packet for source in sources for packet in source()]
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
        container.mux(packet)
    container.close()


def make_rich(path: Path, *, second_audio="libopus", text="subrip") -> Path:
    """A video with two languages, two subtitles, chapters, tags and (Matroska) a font."""
    container = av.open(str(path), "w")
    container.metadata.update(title="A video", artist="Someone", mykey="odd")
    video, images = add_video(container)
    video.metadata["title"] = "The image"
    german, deutsch = add_audio(container)
    german.metadata.update(language="ger")
    german.disposition = 0
    english, words = add_audio(container, second_audio)
    english.metadata.update(language="eng", title="Commentary")
    english.disposition = 1 | 8  # default, comment
    first, lines = add_subtitles(container, text)
    first.metadata["language"] = "ger"
    second, zeilen = add_subtitles(container, text if text == "mov_text" else "ass")
    second.metadata["language"] = "spa"
    second.disposition = 64  # forced
    if path.suffix == ".mkv":
        container.add_attachment("font.ttf", "application/x-truetype-font", b"not really a font")
    chapters = [(0, 250, "One"), (250, 550, "Two")]
    container.set_chapters(
        [
            {"id": n, "start": a, "end": b, "time_base": MS, "metadata": {"title": t}}
            for n, (a, b, t) in enumerate(chapters, 1)
        ]
    )
    mux(container, images, deutsch, words, lines, zeilen)
    return path


def make_plain(path: Path, *, pts_ms=VFR_MS, audio=True, **video) -> Path:
    container = av.open(str(path), "w")
    _, images = add_video(container, pts_ms, **video)
    mux(container, images, *([add_audio(container, start_s=pts_ms[0] / 1000)[1]] if audio else []))
    return path


def rewrite(src: Path, dst: Any, *, scale=2, start_s=0.0, duration_s=None, **keywords) -> list[str]:
    """Read a video, enlarge it by repeating pixels, write it; return the notes."""
    with open_reader(src, start_s=start_s, duration_s=duration_s) as reader:
        size = {"width": reader.info.width * scale, "height": reader.info.height * scale}
        with open_writer(
            dst, like=reader.info, start_s=start_s, duration_s=duration_s, **size, **keywords
        ) as writer:
            for frame in reader:
                frame.rgb = frame.rgb.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
                if frame.alpha is not None:
                    frame.alpha = frame.alpha.repeat_interleave(scale, 1).repeat_interleave(
                        scale, 2
                    )
                writer.write(frame)
    return writer.notes


def info(**fields) -> VideoInfo:
    """A description of a video that does not exist."""
    defaults: dict[str, Any] = {
        **{"source": "-", "width": 32, "height": 24, "pix_fmt": "yuv420p", "bit_depth": 8},
        **{"color": ColorTags(), "time_base": Fraction(1, 25), "average_rate": Fraction(25)},
        **{"container": "yuv4mpegpipe", "codec": "rawvideo"},
    }
    return VideoInfo(**{**defaults, **fields})


def frames(count=3, size=(32, 24), time_base=Fraction(1, 25), alpha=False) -> list[Frame]:
    generator = torch.Generator().manual_seed(0)
    return [
        Frame(
            rgb=torch.rand(3, size[1], size[0], generator=generator),
            pts=number,
            time_base=time_base,
            duration=1,
            index=number,
            alpha=(torch.rand(1, size[1], size[0], generator=generator) > 0.5).float()
            if alpha
            else None,
        )
        for number in range(count)
    ]


def times_s(path: Path) -> list[Fraction]:
    """Presentation times of the decoded video frames."""
    with av.open(str(path)) as container:
        return [Fraction(f.pts) * Fraction(f.time_base) for f in container.decode(video=0)]


def payloads(path: Path, kind: str) -> list[list[bytes]]:
    """Bytes of the packets of every stream of a kind."""
    with av.open(str(path)) as container:
        streams = [s for s in container.streams if s.type == kind]
        found: dict[int, list[bytes]] = {s.index: [] for s in streams}
        for packet in container.demux(*streams):
            if packet.size:
                found[packet.stream_index].append(bytes(packet))
        return list(found.values())


def ffprobe(path: Path, *arguments: str) -> dict[str, Any]:
    """What ffprobe says; it must not warn."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    command = ["ffprobe", "-v", "warning", "-of", "json", *arguments, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # ffprobe cannot name attachments and chapter tracks, and says this of every mp4 with a cover
    usual = ("Unsupported codec", "timescale not set")
    assert not [line for line in done.stderr.splitlines() if not any(u in line for u in usual)], (
        done.stderr
    )
    return json.loads(done.stdout)


def subtitles_as_srt(path: Path, number: int) -> str:
    """What ffmpeg makes of a subtitle stream."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-copyts",
        "-i",
        str(path),
        "-map",
        f"0:s:{number}",
        "-f",
        "srt",
        "-",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
