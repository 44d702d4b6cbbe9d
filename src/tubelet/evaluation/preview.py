"""Preview of a few frames of a video, before and after, in one image, to choose a model quickly."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tubelet.errors import InputError
from tubelet.evaluation.images import enlarge, to_image
from tubelet.evaluation.sampling import sample_times
from tubelet.restore.engine import Engine
from tubelet.types import Frame, Temporal, TemporalKind
from tubelet.video.info import VideoInfo
from tubelet.video.reader import open_reader

__all__ = ["write_preview"]

_WARMUP_FRAMES = 10
"""Frames after which the state of a recurrent model has settled."""
_CLIP_FRAMES = 14
"""Frames for a clip model without a window, which would otherwise get a whole scene."""
_DEFAULT_RATE = Fraction(25)
"""Frames per second, if the video does not have a rate."""
_BACKGROUND = (24, 24, 26)
_TEXT_COLOR = (235, 235, 238)


def write_preview(
    engine: Engine,
    info: VideoInfo,
    dst: str | Path,
    *,
    count: int = 4,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> list[float]:
    """Restore frames spread over a video, and show each next to its plain enlargement.

    If the engine doubles the frame rate, the frame halfway to the next one is shown too.

    Args:
        engine: Engine with the model.
        info: Properties of the video; only the frames that the model needs are read.
        dst: PNG file.
        count: Number of frames, one per row.
        start_s: Start of the range to sample, seconds.
        duration_s: Length of that range, seconds; by default up to the end of the video.

    Returns:
        Times of the frames, seconds after the start of the video.

    Raises:
        InputError: Nothing can be decoded at one of the times.
    """
    rows: list[Image.Image] = []
    times_s: list[float] = []
    for time_s in sample_times(info, count, start_s=start_s, duration_s=duration_s):
        source, results = _restore_at(engine, info, time_s)
        times_s.append(source.time_s - info.start_s)
        rows.append(_draw_row(source, results, engine.spec.id, info))

    height = sum(row.height for row in rows)
    sheet = Image.new("RGB", (rows[0].width, height))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(dst, "PNG")
    return times_s


def _restore_at(
    engine: Engine,
    info: VideoInfo,
    time_s: float,
) -> tuple[Frame, list[Frame]]:
    """Restore the frame at a time, with as many neighbors as the model uses.

    Returns:
        The input frame; the result, and the frame halfway to the next one if the engine doubles
        the frame rate.
    """
    frames_before, frames_after = _num_neighbors(engine.spec.temporal)
    clip, index = _read_clip(info, time_s, frames_before, frames_after)
    plan = engine.plan(*clip[0].size)
    result_indices = [index]
    if plan.doubles_rate:
        # Results alternate between frames of the input and frames halfway between two of them.
        # After the last frame there is none.
        last_result = 2 * len(clip) - 2
        result_indices = [2 * index, min(2 * index + 1, last_result)]

    # Results after those are not computed, as far as the model allows it.
    results: dict[int, Frame] = {}
    num_results = max(result_indices) + 1
    for number, result in enumerate(islice(engine.restore(clip, plan=plan), num_results)):
        if number in result_indices:
            results[number] = result
    return clip[index], [results[number] for number in result_indices]


def _read_clip(
    info: VideoInfo,
    time_s: float,
    frames_before: int,
    frames_after: int,
) -> tuple[list[Frame], int]:
    """Read the frame at a time and its neighbors.

    Returns:
        The frames, and the index of the frame at the time: the last one if the video ends before.

    Raises:
        InputError: Nothing can be decoded there.
    """
    period_s = float(1 / (info.average_rate or _DEFAULT_RATE))
    # The nearest frame is the first one that is not earlier than half a frame before the time.
    min_time_s = info.start_s + time_s - period_s / 2
    start_s = max(0.0, time_s - (frames_before + 0.5) * period_s)
    clip: list[Frame] = []
    with open_reader(info.source, start_s=start_s) as reader:
        frames = iter(reader)
        for frame in frames:
            clip.append(frame)
            if frame.time_s >= min_time_s:
                break
        # If the video ends before that, it is the last frame.
        index = len(clip) - 1
        clip += islice(frames, frames_after)
    if not clip:
        raise InputError(f"{info.source}: no frame can be decoded at {time_s:.3f} s")
    return clip, index


def _num_neighbors(temporal: Temporal) -> tuple[int, int]:
    """Return how many frames before and after a frame the model needs to restore it."""
    half_window = (temporal.window_frames or _CLIP_FRAMES) // 2
    neighbors: dict[TemporalKind, tuple[int, int]] = {
        "frame": (0, 0),
        "window": (temporal.radius, temporal.radius),
        "online": (_WARMUP_FRAMES, temporal.lookahead),
        "clip": (half_window, half_window),
    }
    return neighbors[temporal.kind]


def _draw_row(
    source: Frame,
    results: list[Frame],
    model: str,
    info: VideoInfo,
) -> Image.Image:
    """Draw the input and the results side by side, each below its time and name."""
    height, coded_width = results[0].size
    # Pixels that are not square are stretched, as a player does.
    width = round(coded_width * info.sample_aspect)
    bar_height = max(18, round(height * 0.045))
    gap = max(2, width // 320)

    # Labels have an x, since Pillow's font has no ×.
    time_s = source.time_s - info.start_s
    source_height, source_width = source.rgb.shape[-2:]
    labels = [
        f"{time_s:.2f} s   input {source_width}x{source_height}, bicubic",
        f"{model}, {coded_width}x{height}",
    ]
    for result in results[1:]:
        labels.append(f"halfway, at {result.time_s - info.start_s:.3f} s")

    row_width = len(labels) * (width + gap) - gap
    row = Image.new("RGB", (row_width, height + bar_height + gap), _BACKGROUND)
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(bar_height * 0.62)
    x = 0
    for frame, label in zip((source, *results), labels, strict=True):
        image = to_image(enlarge(frame.rgb, (height, width)))
        row.paste(image, (x, bar_height))
        text_position = (x + bar_height * 0.4, bar_height * 0.12)
        draw.text(text_position, label, fill=_TEXT_COLOR, font=font)
        x += width + gap
    return row
