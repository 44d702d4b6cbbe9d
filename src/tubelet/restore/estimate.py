"""`describe`: what upscaling a video would do, and how long it would take. Nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from tubelet.plain_data import to_plain
from tubelet.restore.engine import Engine
from tubelet.restore.job import build_engine, encode_settings, expected_frames, output_info
from tubelet.restore.plan import Plan
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame
from tubelet.video.codecs import CODECS
from tubelet.video.destination import check_output, destination_kind
from tubelet.video.encoding import choose_encoding
from tubelet.video.info import VideoInfo
from tubelet.video.probe import probe

__all__ = ["Description", "describe"]

_TIMED_SIDE_PX = 160
_TIMED_FRAMES = 5
_BITS_PER_PX = {
    "h264": 0.25,
    "h264_nvenc": 0.3,
    "hevc": 0.15,
    "hevc_nvenc": 0.2,
    "vp9": 0.15,
    "av1": 0.12,
    "gif": 4.0,
    "prores": 4.0,
    "ffv1": 6.0,
    "png": 12.0,
    "rawvideo": 12.0,
}
"""Bits per pixel of upscaled video at the default quality, accurate to a factor of about two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Preview of an upscaling run.

    Attributes:
        info: Description of the input.
        model: Id of the model.
        plan: Plan of the restoration: sizes, tiles, windows, device, precision.
        codec: Codec of the output; png for images, rawvideo for a pipe.
        frames: Expected number of output frames; None if the header does not contain it.
        frame_rate: Frames per second of the output; None if that of the input is unknown.
        frame_s: Seconds per frame for the model, from a short run on a section of the image;
            frames that two windows see count twice.
        restore_s: Seconds for all frames; encoding runs in parallel and can take longer.
        output_bytes: Rough size of the output; None if the number of frames is unknown.
        notes: Messages for the user about the output, one line each.
    """

    info: VideoInfo
    model: str
    plan: Plan
    codec: str
    frames: int | None
    frame_rate: Fraction | None
    frame_s: float
    restore_s: float | None
    output_bytes: int | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the plain data that `--dry-run --json` prints; `Plan.from_json` reads its plan."""
        width, height = self.plan.output
        frame_rate = None
        if self.frame_rate is not None:
            frame_rate = round(float(self.frame_rate), 6)
        restore_s = None
        if self.restore_s is not None:
            restore_s = round(self.restore_s, 3)
        return {
            "input": self.info.source,
            "model": self.model,
            "width": width,
            "height": height,
            "codec": self.codec,
            "frames": self.frames,
            "frame_rate": frame_rate,
            "frame_s": round(self.frame_s, 6),
            "restore_s": restore_s,
            "output_bytes": self.output_bytes,
            "notes": list(self.notes),
            "plan": to_plain(self.plan),
        }


def describe(
    src: str | Path,
    dst: str | Path,
    settings: UpscaleSettings,
) -> Description:
    """Describe the run that `run` would do and estimate its time; nothing is written.

    Args:
        src: Source as in `upscale`, but not a pipe.
        dst: Output as in `upscale`; it is checked, and its suffix determines the codec.
        settings: Settings as in `run`.

    Raises:
        RequestError, InputError, ResourceError: As `upscale` would.
    """
    check_output(dst, source=src, overwrite=settings.overwrite)
    info = probe(src)
    engine = build_engine(settings, info)
    plan = engine.plan(info.height, info.width)
    codec, notes = _choose_codec(dst, info, plan.output, settings)
    num_frames = expected_frames(info, settings)
    # Timing follows another plan, for a smaller image and a short clip.
    frame_s = _time_frame(engine, info) * _frames_per_result(plan, num_frames)

    restore_s = None
    output_bytes = None
    if num_frames is not None:
        width, height = plan.output
        bits_per_px = _bits_per_px(codec, settings.crf)
        restore_s = num_frames * frame_s
        output_bytes = round(num_frames * width * height * bits_per_px / 8)
    return Description(
        info=info,
        model=engine.spec.id,
        plan=plan,
        codec=codec,
        frames=num_frames,
        frame_rate=output_info(info, settings).average_rate,
        frame_s=frame_s,
        restore_s=restore_s,
        output_bytes=output_bytes,
        notes=notes,
    )


def _time_frame(engine: Engine, info: VideoInfo) -> float:
    """Time the model on a small clip of noise, and scale the time by the area."""
    height = min(info.height, _TIMED_SIDE_PX)
    width = min(info.width, _TIMED_SIDE_PX)
    clip: list[Frame] = []
    for t in range(_TIMED_FRAMES):
        noise = torch.rand(3, height, width)
        clip.append(
            Frame(
                noise,
                pts=t,
                time_base=Fraction(1, 25),
                index=t,
            )
        )

    frame_s = 0.0
    # The first run only warms up.
    for _ in range(2):
        start_s = time.monotonic()
        restored = engine.restore(clip, starts_scene=lambda _: False)
        num_frames = 0
        for frame in restored:
            # An image can wait to be computed until it is read.
            _ = frame.rgb
            num_frames += 1
        frame_s = (time.monotonic() - start_s) / num_frames
    return frame_s * info.height * info.width / (height * width)


def _frames_per_result(plan: Plan, num_frames: int | None) -> float:
    """Return how many windows see a frame on average, if they overlap or look ahead.

    For look-ahead it is an upper bound of the work, as the last layers leave these frames out.

    Args:
        plan: Plan of the restoration.
        num_frames: Number of output frames; None if it is not known.
    """
    window = plan.window
    if window is None:
        return 1.0
    results_per_frame = 2 if plan.doubles_rate else 1
    fits_window = num_frames is not None and num_frames <= window.frames * results_per_frame
    return 1.0 if fits_window else window.frames / window.step


def _choose_codec(
    dst: str | Path,
    info: VideoInfo,
    size: tuple[int, int],
    settings: UpscaleSettings,
) -> tuple[str, tuple[str, ...]]:
    """Choose the codec as the writer would; return it with the notes on the output."""
    # Folders and patterns hold PNG files, and a pipe carries y4m.
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        return "png", ()
    suffix = ".y4m" if kind == "pipe" else Path(dst).suffix.lower()
    encoding = choose_encoding(suffix, info, *size, encode_settings(settings))
    return encoding.codec, encoding.notes


def _bits_per_px(codec: str, crf: float | None) -> float:
    bits_per_px = _BITS_PER_PX[codec]
    default_crf = CODECS[codec].crf if codec in CODECS else None
    if crf is None or default_crf is None:
        return bits_per_px
    # Six steps of the CRF double the bit rate.
    return bits_per_px * 2 ** ((default_crf - crf) / 6)
