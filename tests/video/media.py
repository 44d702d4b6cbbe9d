"""Tiny videos that the tests make themselves."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

FFMPEG = shutil.which("ffmpeg")
FFPROBE = shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None or FFPROBE is None, reason="no ffmpeg here to judge by")


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth picture (H, W, 3) uint8 whose gradient moves with its number."""
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
    """Encode `frames` pictures of `size` (width, height)."""
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
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def save_image(path: Path, frame: av.VideoFrame, pix_fmt: str = "rgb24", codec: str = "png") -> Path:
    """Encode one picture."""
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
