"""`upscale`: a video file in, a larger one out; and `describe`, which says beforehand what that would take.

reader (thread) → engine (this thread) → writer (thread)
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch

from tubelet.errors import ConfigError, IncompleteError, InputError
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.restore.engine import Engine
from tubelet.restore.pipeline import read_ahead, write_behind
from tubelet.restore.rate import doubled_frames, doubled_info
from tubelet.restore.settings import Result, UpscaleSettings
from tubelet.types import Frame, Precision
from tubelet.video.codecs import CODECS, choose_encoding
from tubelet.video.destination import check_output, destination_kind
from tubelet.video.info import VideoInfo
from tubelet.video.probe import probe
from tubelet.video.reader import Reader, open_reader
from tubelet.video.writer import EncodeSettings, open_writer
from tubelet.zoo.opening import open_model

__all__ = ["Description", "build_engine", "describe", "run", "upscale"]

_QUEUE_BYTES = 256 << 20  # what may wait on each side of the engine, in floats
_TIMED_SIDE_PX, _TIMED_FRAMES = 160, 5

_BITS_PER_PX = {
    **{
        "h264": 0.25,
        "h264_nvenc": 0.3,
        "hevc": 0.15,
        "hevc_nvenc": 0.2,
        "vp9": 0.15,
        "av1": 0.12,
        "gif": 4.0,
    },
    **{"prores": 4.0, "ffv1": 6.0, "png": 12.0, "rawvideo": 12.0},
}
"""Of upscaled film at default quality, true to a factor of two or so; it only serves an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a run would do, without doing it.

    Attributes:
        info: the input.
        model: id of the model.
        width, height: of the output, pixels.
        codec: of the output; png for pictures, rawvideo for a pipe.
        device: where the model would run.
        precision: number format inside the model.
        tile_px: side of a tile in input pixels; 0 is the whole picture.
        window_frames: frames of a call, for models that take clips; otherwise 0.
        frames: expected number in the output, None where the header does not say.
        frame_rate: of the output, frames a second; None where that of the input is unknown.
        frame_s: seconds that the model takes for a frame, from a short run on a part of the picture.
        restore_s: the same for all frames; encoding goes on at the same time and can take longer.
        output_bytes: rough size of the output, None where the number of frames is unknown.
        notes: what a person should know of the output, a line each.
    """

    info: VideoInfo
    model: str
    width: int
    height: int
    codec: str
    device: str
    precision: Precision
    tile_px: int
    window_frames: int
    frames: int | None
    frame_rate: Fraction | None
    frame_s: float
    restore_s: float | None
    output_bytes: int | None
    notes: tuple[str, ...]


def upscale(
    src: str | Path,
    dst: str | Path,
    *,
    model: str = "default",
    scale: Literal[2, 3, 4] | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
    **settings: Any,
) -> Result:
    """Upscale a video, as `tubelet upscale` does.

    Args:
        src: video file, folder of images, printf pattern (frames/%05d.png), or "-": y4m on standard input.
        dst: video file, folder or pattern of PNGs, or "-" for y4m on the standard output.
        model: id of a model, or a name that stands for one per scale ("default", "bicubic", "lanczos").
        scale: factor of the output size; default: the model's own.
        on_progress: called in this thread, at most ten times a second and once at the end.
        cancel: stops the run from another thread, or from `on_progress`.
        settings: other fields of `UpscaleSettings`.

    Returns:
        What was done.

    Raises:
        RequestError: the model's name or the output's path makes no sense; ConfigError: a setting does not.
        InputError: the input cannot be read.
        IncompleteError: the output has every frame that could be decoded, but something was missing.
        ResourceError: memory or disk did not suffice, or the device is absent.
        Cancelled: `cancel` was cancelled; no output is left.
    """
    known = {field.name for field in fields(UpscaleSettings)}
    for name in settings.keys() - known:
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
        raise ConfigError(f"upscale has no setting {name!r}; {hint}")
    return run(src, dst, UpscaleSettings(model=model, scale=scale, **settings), on_progress=on_progress, cancel=cancel)


def run(
    src: str | Path,
    dst: str | Path,
    settings: UpscaleSettings,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Result:
    """Upscale a video with settings that are already made; see `upscale`."""
    began_s = time.monotonic()
    ticker = Ticker(on_progress, unit="frame", label=Path(src).name, cancel=cancel)
    check_output(dst, source=src, overwrite=settings.overwrite)
    cores = torch.get_num_threads()
    try:
        with open_reader(src, start_s=settings.start or 0.0, duration_s=settings.duration, gamut="keep") as reader:
            engine = build_engine(settings, reader.info)
            width, height = engine.output_size(reader.info.width, reader.info.height)
            ticker.total = _expected_frames(reader.info, settings)
            with open_writer(
                dst,
                like=_output_info(reader.info, settings),
                width=width,
                height=height,
                settings=_encode_settings(settings),
                start_s=settings.start or 0.0,
                duration_s=settings.duration,
                overwrite=settings.overwrite,
            ) as writer:
                _pump(reader, engine, writer.write, ticker, cancel)
                if not ticker.done:
                    raise InputError(_nothing_to_restore(src, reader, settings))
    finally:
        torch.set_num_threads(cores)  # the threads set it to 1, which new threads would inherit
    ticker.finish()
    notes = (*engine.notes, *writer.notes)
    if reader.problems:
        raise IncompleteError(
            f"{dst} has the {ticker.done} frames that could be decoded, but {'; '.join(reader.problems)}", notes=notes
        )
    return Result(
        path=None if str(dst) == "-" else Path(dst),
        model=engine.spec.id,
        frames=ticker.done,
        width=width,
        height=height,
        elapsed_s=time.monotonic() - began_s,
        notes=notes,
    )


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
    frames = _expected_frames(info, settings)
    codec, notes = _choose_codec(dst, info, (width, height), settings)
    bits_per_px = _bits_per_px(codec, settings.crf)
    frame_s = _time_frame(engine, info)
    return Description(
        info=info,
        model=engine.spec.id,
        width=width,
        height=height,
        codec=codec,
        device=plan.device,
        precision=plan.precision,
        tile_px=plan.tile_px,
        window_frames=0 if plan.window is None else plan.window.frames,
        frames=frames,
        frame_rate=_output_info(info, settings).average_rate,
        frame_s=frame_s,
        restore_s=None if frames is None else frames * frame_s,
        output_bytes=None if frames is None else round(frames * width * height * bits_per_px / 8),
        notes=notes,
    )


def build_engine(settings: UpscaleSettings, info: VideoInfo) -> Engine:
    """Make the engine that `run` would use for this input.

    Args:
        settings: as in `run`.
        info: of the input; its height decides between models where `settings.height` is given.

    Raises:
        RequestError, CheckpointError, ResourceError: as `upscale` would.
    """
    factor = settings.height / info.height if settings.height else settings.scale
    opened = open_model(settings.model, factor=factor)
    return Engine(opened.spec, opened.network, settings)


def _pump(
    reader: Reader, engine: Engine, write: Callable[[Frame], None], ticker: Ticker, cancel: CancelToken | None
) -> None:
    """Run the three stages until the input ends."""
    width, height = reader.info.width, reader.info.height
    before, after = _depth(width, height), _depth(*engine.output_size(width, height))
    with read_ahead(reader, depth=before, cancel=cancel) as source, write_behind(write, depth=after) as sink:
        for frame in engine.restore(source):
            sink.put(frame)
            ticker.tick(time_s=frame.time_s)


def _depth(width: int, height: int) -> int:
    """Frames of a queue: enough to even out the stages, bounded in bytes."""
    return min(8, max(2, _QUEUE_BYTES // (12 * width * height)))


def _expected_frames(info: VideoInfo, settings: UpscaleSettings) -> int | None:
    """Guess the number of frames of the output from the header."""
    frames = _frames_to_read(info, settings)
    return doubled_frames(frames) if settings.fps and frames is not None else frames


def _frames_to_read(info: VideoInfo, settings: UpscaleSettings) -> int | None:
    if settings.start is None and settings.duration is None:
        return info.frames_hint
    rest_s = None if info.duration_s is None else max(0.0, info.duration_s - (settings.start or 0.0))
    known_s = [seconds for seconds in (rest_s, settings.duration) if seconds is not None]
    if info.average_rate is None or not known_s:
        return None
    return round(min(known_s) * info.average_rate)


def _output_info(info: VideoInfo, settings: UpscaleSettings) -> VideoInfo:
    """Describe the input as the writer should take it: with the times and the rate of the output."""
    return doubled_info(info) if settings.fps else info


def _nothing_to_restore(src: str | Path, reader: Reader, settings: UpscaleSettings) -> str:
    if reader.problems:
        return f"{src} has no picture that can be decoded: {'; '.join(reader.problems)}"
    until = "" if settings.duration is None else f" for {settings.duration:g} s"
    known_s = reader.info.duration_s
    length = "" if known_s is None else f"; its video is {known_s:.2f} s long"
    return f"{src} has no picture from {settings.start or 0:g} s on{until}{length}"


def _time_frame(engine: Engine, info: VideoInfo) -> float:
    """Time the model on noise, on a part of the picture, and scale by area."""
    height, width = min(info.height, _TIMED_SIDE_PX), min(info.width, _TIMED_SIDE_PX)
    clip = [Frame(torch.rand(3, height, width), t, Fraction(1, 25), index=t) for t in range(_TIMED_FRAMES)]
    frame_s = 0.0
    for _ in range(2):  # the first run warms up
        start_s = time.monotonic()
        given = sum(1 for _ in engine.restore(clip, starts_scene=lambda _: False))
        frame_s = (time.monotonic() - start_s) / given
    return frame_s * info.height * info.width / (height * width)


def _choose_codec(
    dst: str | Path, info: VideoInfo, size: tuple[int, int], settings: UpscaleSettings
) -> tuple[str, tuple[str, ...]]:
    """Ask the writer's rules for the codec and what there is to know about it."""
    kind = destination_kind(dst)
    if kind in ("folder", "pattern"):
        return "png", ()
    suffix = ".y4m" if kind == "pipe" else Path(dst).suffix.lower()
    encoding = choose_encoding(suffix, info, *size, _encode_settings(settings))
    return encoding.codec, encoding.notes


def _bits_per_px(codec: str, crf: float | None) -> float:
    default = CODECS[codec].crf if codec in CODECS else None
    if crf is None or default is None:
        return _BITS_PER_PX[codec]
    return _BITS_PER_PX[codec] * 2 ** ((default - crf) / 6)  # six steps double the rate


def _encode_settings(settings: UpscaleSettings) -> EncodeSettings:
    return EncodeSettings(codec=settings.codec, crf=settings.crf, preset=settings.preset)
