"""`upscale`: a video file in, a larger one out, segment by segment.

reader (thread) → segments → engine (this thread) → encoder, muxer (thread)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from tubelet.errors import ConfigError, IncompleteError, InputError, suggest
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.restore.engine import Engine
from tubelet.restore.pipeline import WriteBehind, read_ahead, write_behind
from tubelet.restore.plan import Plan
from tubelet.restore.planner import check_plan
from tubelet.restore.rate import doubled_frames, doubled_info
from tubelet.restore.scene import SegmentStream, scene_detector
from tubelet.restore.segment import restore_segment
from tubelet.restore.settings import Result, UpscaleSettings
from tubelet.restore.tiling import Hidden
from tubelet.types import Frame
from tubelet.video.destination import check_output
from tubelet.video.encoder import VideoEncoder
from tubelet.video.info import VideoInfo
from tubelet.video.output import Output, open_output
from tubelet.video.output_format import OutputFormat, choose_output_format
from tubelet.video.reader import Reader, open_reader
from tubelet.video.writer import EncodeSettings
from tubelet.zoo.opening import open_model

__all__ = ["build_engine", "encode_settings", "expected_frames", "output_info", "run", "upscale"]

_QUEUE_BYTES = 256 << 20
"""Of frames, in floats, that may wait on each side of the engine."""


def upscale(
    src: str | Path,
    dst: str | Path,
    *,
    model: str = "default",
    scale: Literal[2, 3, 4] | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
    plan: Plan | None = None,
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
        plan: how to restore the frames, as `describe` and `--dry-run --json` give it; by default it is made now.
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
    known = sorted(field.name for field in fields(UpscaleSettings))
    for name in settings.keys() - set(known):
        raise ConfigError(f"upscale has no setting {name!r}; {suggest(name, known)}")
    request = UpscaleSettings(model=model, scale=scale, **settings)
    return run(src, dst, request, on_progress=on_progress, cancel=cancel, plan=plan)


def run(
    src: str | Path,
    dst: str | Path,
    settings: UpscaleSettings,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
    plan: Plan | None = None,
) -> Result:
    """Upscale a video with settings that are already made; see `upscale`."""
    began_s = time.monotonic()
    ticker = Ticker(on_progress, unit="frame", label=Path(src).name, cancel=cancel)
    check_output(dst, source=src, overwrite=settings.overwrite)
    start_s = settings.start or 0.0
    cores = torch.get_num_threads()
    try:
        with open_reader(
            src, start_s=start_s, duration_s=settings.duration, gamut="keep"
        ) as reader:
            engine = build_engine(settings, reader.info)
            if plan is None:
                plan = engine.plan(reader.info.height, reader.info.width)
            else:
                check_plan(plan, engine.spec, settings, reader.info.width, reader.info.height)
                settings = replace(settings, fps="x2" if plan.doubles_rate else None)
            engine.follow(plan)
            ticker.total = expected_frames(reader.info, settings)
            info = output_info(reader.info, settings)
            form = choose_output_format(
                dst,
                like=info,
                width=plan.output[0],
                height=plan.output[1],
                settings=encode_settings(settings),
                start_s=start_s,
                duration_s=settings.duration,
            )
            with open_output(dst, form, like=info, overwrite=settings.overwrite) as output:
                _restore_segments(reader, engine, form, output, ticker, cancel)
                if not ticker.done:
                    raise InputError(_nothing_to_restore(src, reader, settings))
    finally:
        # The threads set it to 1, which new threads would inherit.
        torch.set_num_threads(cores)
    ticker.finish()
    notes = (*engine.notes, *output.notes)
    if reader.problems:
        problems = "; ".join(reader.problems)
        raise IncompleteError(
            f"{dst} has the {ticker.done} frames that could be decoded, but {problems}", notes=notes
        )
    return Result(
        path=None if str(dst) == "-" else Path(dst),
        model=engine.spec.id,
        frames=ticker.done,
        width=plan.output[0],
        height=plan.output[1],
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


def _restore_segments(
    reader: Reader,
    engine: Engine,
    form: OutputFormat,
    output: Output,
    ticker: Ticker,
    cancel: CancelToken | None,
) -> None:
    """Run the three stages until the input ends."""
    plan = engine.current_plan
    frames_before = _depth(reader.info.width, reader.info.height)
    frames_after = _depth(*plan.output)
    with (
        read_ahead(reader, depth=frames_before, cancel=cancel) as source,
        write_behind(_do, depth=frames_after) as steps,
    ):
        stream = SegmentStream(
            source, plan, keeps_state=True, starts_scene=scene_detector(plan.contract)
        )
        first_s = stream.first_s()
        if first_s is None:
            return
        clock = form.clock(first_s)
        hidden: Hidden = None
        for index, frames in enumerate(stream):
            if cancel is not None:
                cancel.raise_if_cancelled()
            open_encoder = partial(VideoEncoder, form, clock, output, segment=index)
            known = hidden if frames.continues_scene else None
            part = restore_segment(
                frames,
                engine,
                _QueuedEncoder(steps, open_encoder),
                hidden=known,
                on_frame=lambda frame: ticker.tick(time_s=frame.time_s),
            )
            hidden = part.hidden


class _QueuedEncoder:
    """A `FrameSink` whose encoder works in the writer's thread, where it is also opened: encoders take turns there.

    Args:
        steps: done one after the other in that thread.
        open_encoder: opens the encoder of the segment.
    """

    def __init__(
        self, steps: WriteBehind[Callable[[], None]], open_encoder: Callable[[], VideoEncoder]
    ) -> None:
        self._steps = steps
        self._open_encoder = open_encoder
        self._encoder: VideoEncoder | None = None

    def write(self, frame: Frame) -> None:
        """Queue a frame."""
        self._steps.put(partial(self._write, frame))

    def finish(self, next_s: Fraction | None = None) -> None:
        """Queue the end of the segment."""
        self._steps.put(partial(self._finish, next_s))

    def _write(self, frame: Frame) -> None:
        self._opened().write(frame)

    def _finish(self, next_s: Fraction | None) -> None:
        self._opened().finish(next_s)

    def _opened(self) -> VideoEncoder:
        if self._encoder is None:
            self._encoder = self._open_encoder()
        return self._encoder


def _do(step: Callable[[], None]) -> None:
    step()


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
    rest_s = (
        None if info.duration_s is None else max(0.0, info.duration_s - (settings.start or 0.0))
    )
    known_s = [seconds for seconds in (rest_s, settings.duration) if seconds is not None]
    if info.average_rate is None or not known_s:
        return None
    return round(min(known_s) * info.average_rate)


def output_info(info: VideoInfo, settings: UpscaleSettings) -> VideoInfo:
    """Describe the input as the writer should take it: with the times and the rate of the output."""
    return doubled_info(info) if settings.fps else info


def _nothing_to_restore(src: str | Path, reader: Reader, settings: UpscaleSettings) -> str:
    if reader.problems:
        return f"{src} has no image that can be decoded: {'; '.join(reader.problems)}"
    until = "" if settings.duration is None else f" for {settings.duration:g} s"
    known_s = reader.info.duration_s
    length = "" if known_s is None else f"; its video is {known_s:.2f} s long"
    return f"{src} has no image from {settings.start or 0:g} s on{until}{length}"


def encode_settings(settings: UpscaleSettings) -> EncodeSettings:
    """Take the settings that are the encoder's."""
    return EncodeSettings(codec=settings.codec, crf=settings.crf, preset=settings.preset)
