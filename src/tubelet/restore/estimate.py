"""`describe`: what upscaling a video would do, and about how long it would take; nothing is written."""

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
from tubelet.video.codecs import CODECS, choose_encoding
from tubelet.video.destination import check_output, destination_kind
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
"""Of upscaled video at default quality, true to a factor of two or so; it only serves an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a run would do, without doing it.

    Attributes:
        info: the input.
        model: id of the model.
        plan: how frames would be restored: sizes, tiles, windows, device, precision.
        codec: of the output; png for images, rawvideo for a pipe.
        frames: expected number in the output, None where the header does not say.
        frame_rate: of the output, frames a second; None where that of the input is unknown.
        frame_s: seconds that the model takes for a frame, from a short run on a part of the image.
        restore_s: the same for all frames; encoding goes on at the same time and can take longer.
        output_bytes: rough size of the output, None where the number of frames is unknown.
        notes: what a user should know of the output, a line each.
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
        """Return what `--dry-run --json` prints: plain data, the plan as `Plan.from_json` reads it."""
        width, height = self.plan.output
        return {
            "input": self.info.source,
            "model": self.model,
            "width": width,
            "height": height,
            "codec": self.codec,
            "frames": self.frames,
            "frame_rate": None if self.frame_rate is None else round(float(self.frame_rate), 6),
            "frame_s": round(self.frame_s, 6),
            "restore_s": None if self.restore_s is None else round(self.restore_s, 3),
            "output_bytes": self.output_bytes,
            "notes": list(self.notes),
            "plan": to_plain(self.plan),
        }


def describe(src: str | Path, dst: str | Path, settings: UpscaleSettings) -> Description:
    """Say what `run` would do and about how long it would take; nothing is written.

    Args:
        src: as in `upscale`, but not a pipe.
        dst: as in `upscale`; it is checked, and its ending counts for the size.
        settings: as in `run`.

    Raises:
        RequestError, InputError, ResourceError: as `upscale` would.
    """
    check_output(dst, source=src, overwrite=settings.overwrite)
    info = probe(src)
    engine = build_engine(settings, info)
    plan = engine.plan(info.height, info.width)
    width, height = plan.output
    frames = expected_frames(info, settings)
    codec, notes = _choose_codec(dst, info, (width, height), settings)
    bits_per_px = _bits_per_px(codec, settings.crf)
    frame_s = _time_frame(engine, info)
    return Description(
        info=info,
        model=engine.spec.id,
        plan=plan,
        codec=codec,
        frames=frames,
        frame_rate=output_info(info, settings).average_rate,
        frame_s=frame_s,
        restore_s=None if frames is None else frames * frame_s,
        output_bytes=None if frames is None else round(frames * width * height * bits_per_px / 8),
        notes=notes,
    )


def _time_frame(engine: Engine, info: VideoInfo) -> float:
    """Time the model on noise, on a part of the image, and scale by area."""
    height = min(info.height, _TIMED_SIDE_PX)
    width = min(info.width, _TIMED_SIDE_PX)
    clip = [
        Frame(torch.rand(3, height, width), t, Fraction(1, 25), index=t)
        for t in range(_TIMED_FRAMES)
    ]
    frame_s = 0.0
    for _ in range(2):  # the first run warms up
        start_s = time.monotonic()
        num_frames = sum(1 for _ in engine.restore(clip, starts_scene=lambda _: False))
        frame_s = (time.monotonic() - start_s) / num_frames
    return frame_s * info.height * info.width / (height * width)


def _choose_codec(
    dst: str | Path, info: VideoInfo, size: tuple[int, int], settings: UpscaleSettings
) -> tuple[str, tuple[str, ...]]:
    """Ask the writer's rules for the codec and what there is to know about it."""
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        return "png", ()
    suffix = ".y4m" if kind == "pipe" else Path(dst).suffix.lower()
    encoding = choose_encoding(suffix, info, *size, encode_settings(settings))
    return encoding.codec, encoding.notes


def _bits_per_px(codec: str, crf: float | None) -> float:
    default = CODECS[codec].crf if codec in CODECS else None
    if crf is None or default is None:
        return _BITS_PER_PX[codec]
    return _BITS_PER_PX[codec] * 2 ** ((default - crf) / 6)  # six steps double the rate
