"""`upscale`: read a video, restore it segment by segment, and write the larger video.

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
from tubelet.malloc import return_freed_memory
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.restore.engine import Engine, SceneState
from tubelet.restore.pipeline import WriteBehind, read_ahead, write_behind
from tubelet.restore.plan import Plan
from tubelet.restore.planner import check_plan
from tubelet.restore.rate import doubled_frames, doubled_info
from tubelet.restore.scene import SegmentStream, scene_detector
from tubelet.restore.segment import restore_segment
from tubelet.restore.settings import Result, UpscaleSettings
from tubelet.restore.threads import network_threads
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
"""Size of the queue on each side of the engine, in bytes of float frames."""
_BYTES_PER_PX = 12
"""Three channels of float32."""
_FEATURE_BYTES_PER_PX = 256
"""Features of a pixel of lq: 64 channels of float32."""


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
        src: Video file, folder of images, printf pattern (frames/%05d.png), or "-" for y4m on the
            standard input.
        dst: Video file, folder or pattern of PNGs, or "-" for y4m on the standard output.
        model: Id of a model, or a name that selects a model by the scale ("default", "bicubic",
            "lanczos").
        scale: Upscaling factor; default: that of the model.
        on_progress: Called in this thread, up to ten times a second and once at the end.
        cancel: Stops the run from another thread, or from `on_progress`.
        plan: Plan to follow, as `describe` and `--dry-run --json` return it; by default it is made
            now.
        settings: Other fields of `UpscaleSettings`.

    Returns:
        A summary of the run.

    Raises:
        RequestError: The name of the model or the path of the output is invalid.
        ConfigError: A setting is invalid.
        InputError: The input cannot be read.
        IncompleteError: The output has every frame that could be decoded, but the input was damaged
            or incomplete.
        ResourceError: Memory or disk space did not suffice, or the device is not available.
        Cancelled: `cancel` was cancelled; no output is left.
    """
    names = sorted(field.name for field in fields(UpscaleSettings))
    for name in settings.keys() - set(names):
        raise ConfigError(f"upscale has no setting {name!r}; {suggest(name, names)}")
    request = UpscaleSettings(model=model, scale=scale, **settings)
    try:
        return run(
            src,
            dst,
            request,
            on_progress=on_progress,
            cancel=cancel,
            plan=plan,
        )
    finally:
        # The caller may have other plans for the memory of this process.
        return_freed_memory()


def run(
    src: str | Path,
    dst: str | Path,
    settings: UpscaleSettings,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
    plan: Plan | None = None,
) -> Result:
    """Upscale a video with a complete `UpscaleSettings`; see `upscale`."""
    began_s = time.monotonic()
    ticker = Ticker(
        on_progress,
        unit="frame",
        label=Path(src).name,
        cancel=cancel,
    )
    check_output(dst, source=src, overwrite=settings.overwrite)
    start_s = settings.start or 0.0
    num_threads = torch.get_num_threads()
    try:
        with open_reader(
            src,
            start_s=start_s,
            duration_s=settings.duration,
            gamut="keep",
        ) as reader:
            # Choose the model, and plan the restoration.
            engine = build_engine(settings, reader.info)
            if plan is None:
                plan = engine.plan(reader.info.height, reader.info.width)
            else:
                check_plan(
                    plan,
                    engine.spec,
                    settings,
                    reader.info.width,
                    reader.info.height,
                )
                settings = replace(settings, fps="x2" if plan.doubles_rate else None)
            engine.follow(plan)

            # Choose the format of the output.
            ticker.total = expected_frames(reader.info, settings)
            info = output_info(reader.info, settings)
            width, height = plan.output
            form = choose_output_format(
                dst,
                like=info,
                width=width,
                height=height,
                settings=encode_settings(settings),
                start_s=start_s,
                duration_s=settings.duration,
            )

            with open_output(
                dst,
                form,
                like=info,
                overwrite=settings.overwrite,
            ) as output:
                _restore_segments(reader, engine, form, output, ticker, cancel)
                if not ticker.done:
                    raise InputError(_empty_input_message(src, reader, settings))
    finally:
        # All three threads set it, and new threads would inherit it.
        torch.set_num_threads(num_threads)
    ticker.finish()

    notes = (*engine.notes, *output.notes)
    if reader.problems:
        problems = "; ".join(reader.problems)
        raise IncompleteError(
            f"{dst} has the {ticker.done} frames that could be decoded, but {problems}",
            notes=notes,
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
    """Build the engine that `run` would use for this input.

    Args:
        settings: Settings as in `run`.
        info: Description of the input; with `settings.height`, its height selects the model.

    Raises:
        RequestError, CheckpointError, ResourceError: As `upscale` would.
    """
    # A name such as "default" stands for one model per scale; the factor selects it.
    factor = settings.height / info.height if settings.height else settings.scale
    opened = open_model(settings.model, factor=factor, adapter=settings.adapter)
    return Engine(opened.spec, opened.network, settings)


def _restore_segments(
    reader: Reader,
    engine: Engine,
    form: OutputFormat,
    output: Output,
    ticker: Ticker,
    cancel: CancelToken | None,
) -> None:
    """Decode, restore and encode in three threads until the input ends."""
    plan = engine.current_plan
    num_threads = network_threads(
        plan,
        num_weights=engine.runner.num_weights,
        max_threads=torch.get_num_threads(),
    )
    torch.set_num_threads(num_threads)
    input_depth = _queue_depth(reader.info.width, reader.info.height, _BYTES_PER_PX)
    output_depth = _queue_depth(*plan.output, _BYTES_PER_PX)
    if plan.contract.has_detail:
        # Its frames hold the features of their input until they are converted.
        feature_depth = _queue_depth(plan.width, plan.height, _FEATURE_BYTES_PER_PX)
        output_depth = min(output_depth, feature_depth)
    with (
        read_ahead(reader, depth=input_depth, cancel=cancel) as source,
        write_behind(_call, depth=output_depth) as encoder_calls,
    ):
        stream = SegmentStream(
            source,
            plan,
            keeps_state=True,
            starts_scene=scene_detector(plan.contract),
        )
        # The clock of the output starts with the first frame.
        first_s = stream.first_s()
        if first_s is None:
            return
        clock = form.clock(first_s)

        state: SceneState = None
        for index, frames in enumerate(stream):
            if cancel is not None:
                cancel.raise_if_cancelled()
            open_encoder = partial(VideoEncoder, form, clock, output, segment=index)
            # The state of a recurrent model never crosses a cut.
            if not frames.continues_scene:
                state = None
            result = restore_segment(
                frames,
                engine,
                _QueuedEncoder(encoder_calls, open_encoder),
                state=state,
                on_frame=lambda frame: ticker.tick(time_s=frame.time_s),
            )
            state = result.state


class _QueuedEncoder:
    """A `FrameSink` that queues the calls of an encoder for the writer thread.

    The encoder is also opened there: so the encoders of consecutive segments follow one another.

    Args:
        calls: Queue of functions that the writer thread calls in order.
        open_encoder: Opens the encoder of the segment.
    """

    def __init__(
        self,
        calls: WriteBehind[Callable[[], None]],
        open_encoder: Callable[[], VideoEncoder],
    ) -> None:
        self._calls = calls
        self._open_encoder = open_encoder
        self._encoder: VideoEncoder | None = None

    def write(self, frame: Frame) -> None:
        """Queue a frame."""
        self._calls.put(partial(self._write, frame))

    def finish(self, next_s: Fraction | None = None) -> None:
        """Queue the end of the segment."""
        self._calls.put(partial(self._finish, next_s))

    def _write(self, frame: Frame) -> None:
        self._opened_encoder().write(frame)

    def _finish(self, next_s: Fraction | None) -> None:
        self._opened_encoder().finish(next_s)

    def _opened_encoder(self) -> VideoEncoder:
        if self._encoder is None:
            self._encoder = self._open_encoder()
        return self._encoder


def _call(function: Callable[[], None]) -> None:
    function()


def _queue_depth(width: int, height: int, bytes_per_px: int) -> int:
    """Choose the length of a queue: enough to even out the stages, limited in bytes."""
    frame_bytes = bytes_per_px * width * height
    return min(8, max(2, _QUEUE_BYTES // frame_bytes))


def expected_frames(info: VideoInfo, settings: UpscaleSettings) -> int | None:
    """Estimate the number of output frames from the header; None if it is not known."""
    num_frames = _expected_input_frames(info, settings)
    if num_frames is None:
        return None
    return doubled_frames(num_frames) if settings.fps else num_frames


def _expected_input_frames(info: VideoInfo, settings: UpscaleSettings) -> int | None:
    if settings.start is None and settings.duration is None:
        return info.frames_hint
    # The section ends after the requested duration, or with the video.
    limits_s: list[float] = []
    if info.duration_s is not None:
        start_s = settings.start or 0.0
        limits_s.append(max(0.0, info.duration_s - start_s))
    if settings.duration is not None:
        limits_s.append(settings.duration)
    if info.average_rate is None or not limits_s:
        return None
    return round(min(limits_s) * info.average_rate)


def output_info(info: VideoInfo, settings: UpscaleSettings) -> VideoInfo:
    """Describe the input with the time base and frame rate of the output, for the writer."""
    return doubled_info(info) if settings.fps else info


def _empty_input_message(src: str | Path, reader: Reader, settings: UpscaleSettings) -> str:
    if reader.problems:
        return f"{src} has no image that can be decoded: {'; '.join(reader.problems)}"
    span = f"from {settings.start or 0:g} s on"
    if settings.duration is not None:
        span += f" for {settings.duration:g} s"
    length = ""
    if reader.info.duration_s is not None:
        length = f"; its video is {reader.info.duration_s:.2f} s long"
    return f"{src} has no image {span}{length}"


def encode_settings(settings: UpscaleSettings) -> EncodeSettings:
    """Select the settings of the encoder."""
    return EncodeSettings(codec=settings.codec, crf=settings.crf, preset=settings.preset)
