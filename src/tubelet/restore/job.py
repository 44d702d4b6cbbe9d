"""`upscale`: a video file in, a larger one out.

reader (thread) → engine (this thread) → writer (thread)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from tubelet.errors import ConfigError, IncompleteError, InputError, suggest
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.restore.engine import Engine
from tubelet.restore.pipeline import read_ahead, write_behind
from tubelet.restore.rate import doubled_frames, doubled_info
from tubelet.restore.settings import Result, UpscaleSettings
from tubelet.types import Frame
from tubelet.video.destination import check_output
from tubelet.video.info import VideoInfo
from tubelet.video.reader import Reader, open_reader
from tubelet.video.writer import EncodeSettings, open_writer
from tubelet.zoo.opening import open_model

__all__ = ["build_engine", "encode_settings", "expected_frames", "output_info", "run", "upscale"]

_QUEUE_BYTES = 256 << 20  # what may wait on each side of the engine, in floats


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
        raise ConfigError(f"upscale has no setting {name!r}; {suggest(name, sorted(known))}")
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
            ticker.total = expected_frames(reader.info, settings)
            with open_writer(
                dst,
                like=output_info(reader.info, settings),
                width=width,
                height=height,
                settings=encode_settings(settings),
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


def expected_frames(info: VideoInfo, settings: UpscaleSettings) -> int | None:
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


def output_info(info: VideoInfo, settings: UpscaleSettings) -> VideoInfo:
    """Describe the input as the writer should take it: with the times and the rate of the output."""
    return doubled_info(info) if settings.fps else info


def _nothing_to_restore(src: str | Path, reader: Reader, settings: UpscaleSettings) -> str:
    if reader.problems:
        return f"{src} has no picture that can be decoded: {'; '.join(reader.problems)}"
    until = "" if settings.duration is None else f" for {settings.duration:g} s"
    known_s = reader.info.duration_s
    length = "" if known_s is None else f"; its video is {known_s:.2f} s long"
    return f"{src} has no picture from {settings.start or 0:g} s on{until}{length}"


def encode_settings(settings: UpscaleSettings) -> EncodeSettings:
    """Take the settings that are the encoder's."""
    return EncodeSettings(codec=settings.codec, crf=settings.crf, preset=settings.preset)
