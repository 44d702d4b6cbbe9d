"""A few frames of a video, before and after, in one image: a model can be chosen in seconds."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tubelet.errors import InputError
from tubelet.evaluation.images import enlarge, to_image
from tubelet.evaluation.sampling import sample_times
from tubelet.restore.engine import Engine
from tubelet.types import Frame, Temporal
from tubelet.video.info import VideoInfo
from tubelet.video.reader import open_reader

__all__ = ["write_preview"]

_RUN_IN_FRAMES = 10  # by then the state of a recurrent model has settled
_CLIP_FRAMES = 14  # for models that would take a whole scene


def write_preview(
    engine: Engine,
    info: VideoInfo,
    dst: str | Path,
    *,
    count: int = 4,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> list[float]:
    """Restore frames spread over a video and put each beside its plain enlargement.

    Where the engine doubles the frame rate, the frame half-way to the next stands beside them.

    Args:
        engine: with the model.
        info: of the video; only what each frame needs is read.
        dst: the PNG.
        count: how many frames, a row each.
        start_s: begin of the part to sample, seconds.
        duration_s: length of that part; by default to the end.

    Returns:
        Times of the frames, seconds after the start of the video.

    Raises:
        InputError: nothing can be decoded at one of the times.
    """
    rows: list[Image.Image] = []
    times_s: list[float] = []
    for time_s in sample_times(info, count, start_s=start_s, duration_s=duration_s):
        source, results = _restore_at(engine, info, time_s)
        times_s.append(source.time_s - info.start_s)
        rows.append(_row(source, results, engine.spec.id, info))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(dst, "PNG")
    return times_s


def _restore_at(engine: Engine, info: VideoInfo, time_s: float) -> tuple[Frame, list[Frame]]:
    """Restore the frame at a time, with as many neighbors as the model looks at; also the one half-way, if any."""
    before, after = _reach(engine.spec.temporal)
    period_s = float(1 / (info.average_rate or Fraction(25)))
    wanted_s = info.start_s + time_s - period_s / 2
    clip: list[Frame] = []
    place: int | None = None
    with open_reader(info.source, start_s=max(0.0, time_s - (before + 0.5) * period_s)) as reader:
        for frame in reader:
            clip.append(frame)
            if place is None and frame.time_s >= wanted_s:
                place = len(clip) - 1
            if place is not None and len(clip) - place > after:
                break
    if not clip:
        raise InputError(f"{info.source}: no frame can be decoded at {time_s:.3f} s")
    place = len(clip) - 1 if place is None else place
    wanted = [place]
    plan = engine.plan(*clip[0].rgb.shape[-2:])
    if plan.doubles_rate:
        wanted = [
            2 * place,
            min(2 * place + 1, 2 * len(clip) - 2),
        ]  # after the last frame there is none
    until = islice(engine.restore(clip, plan=plan), max(wanted) + 1)
    results = {index: result for index, result in enumerate(until) if index in wanted}
    return clip[place], [results[index] for index in wanted]


def _reach(temporal: Temporal) -> tuple[int, int]:
    """Frames before and after the wanted one that are read."""
    match temporal.kind:
        case "frame":
            return 0, 0
        case "window":
            return temporal.radius, temporal.radius
        case "online":
            return _RUN_IN_FRAMES, temporal.lookahead
        case "clip":
            half = (temporal.window_frames or _CLIP_FRAMES) // 2
            return half, half


def _row(source: Frame, results: list[Frame], model: str, info: VideoInfo) -> Image.Image:
    """Draw the input and the results side by side, each below its time and name."""
    height, coded_width = results[0].rgb.shape[-2:]
    width = round(coded_width * info.sample_aspect)  # as a player shows it
    bar, gap = max(18, round(height * 0.045)), max(2, width // 320)
    # The font of Pillow has no ×.
    labels = [
        f"{source.time_s - info.start_s:.2f} s   input {source.rgb.shape[-1]}x{source.rgb.shape[-2]}, bicubic"
    ]
    labels.append(f"{model}, {coded_width}x{height}")
    labels += [f"half-way, at {result.time_s - info.start_s:.3f} s" for result in results[1:]]
    row = Image.new("RGB", (len(labels) * (width + gap) - gap, height + bar + gap), (24, 24, 26))
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(bar * 0.62)
    for number, (frame, label) in enumerate(zip((source, *results), labels, strict=True)):
        x = number * (width + gap)
        row.paste(to_image(enlarge(frame.rgb, (height, width))), (x, bar))
        draw.text((x + bar * 0.4, bar * 0.12), label, fill=(235, 235, 238), font=font)
    return row
