"""Twice the frame rate: assign times to the results of a space-time model between two frames.

    restored    a     a½       b     b½      c    |  d     d½     e   cut after c: no c½
    at          a  (a+b)/2     b  (b+c)/2    c       d  (d+e)/2   e
    written     a     a½       b     b½      c    c  d     d½     e

N frames become 2N - 1. The frame before a cut is repeated so that the spacing stays even, and the
last frame keeps its duration, so the length of the video does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count

from tubelet.errors import ConfigError
from tubelet.types import Frame
from tubelet.video.info import VideoInfo
from tubelet.zoo.catalog import list_models
from tubelet.zoo.spec import ModelSpec

__all__ = ["double_rate", "doubled_frames", "doubled_info", "require_space_time"]


def require_space_time(spec: ModelSpec, fps: str) -> None:
    """Check that a model returns results between two frames.

    Args:
        spec: Entry of the model in the zoo.
        fps: Requested frame rate, for the message.

    Raises:
        ConfigError: The model cannot raise the frame rate; the message lists those that can.
    """
    if spec.temporal.between_frames:
        return
    models = [other.id for other in list_models() if other.temporal.between_frames]
    checkpoints = " or ".join(_space_time_architectures())
    choices = ", ".join([*models, f"a checkpoint of {checkpoints}"])
    raise ConfigError(
        f"fps={fps} needs a model that raises the frame rate, and {spec.id} does not; use {choices}"
    )


def _space_time_architectures() -> list[str]:
    """List the architectures whose default configuration is a space-time model."""
    # Imported here because all networks come with it.
    from tubelet.zoo.architectures import ARCHITECTURES

    names: list[str] = []
    for architecture in ARCHITECTURES:
        contract = architecture.contract(architecture.config())
        if contract is not None and contract.temporal.between_frames:
            names.append(architecture.name)
    return names


def doubled_frames(num_frames: int) -> int:
    """Return the number of frames at twice the frame rate."""
    return max(0, 2 * num_frames - 1)


def doubled_info(info: VideoInfo) -> VideoInfo:
    """Describe a video at twice its frame rate, with a time base in which half-way times are whole.

    Args:
        info: Description of the input.
    """
    return replace(
        info,
        time_base=info.time_base / 2,
        average_rate=info.average_rate and 2 * info.average_rate,
        frames_hint=info.frames_hint and doubled_frames(info.frames_hint),
    )


def double_rate(
    restored: Iterable[Frame],
    *,
    first: int = 0,
    next_pts: Callable[[], int | None] = lambda: None,
) -> Iterator[Frame]:
    """Assign times to frames and to the frames half-way between them.

    Args:
        restored: Frames in order. A frame half-way to the next one has the time of its predecessor;
            at the end of a scene there is none.
        first: Number of the first output frame.
        next_pts: Called at the end; returns the time of the first frame of the next segment, in
            ticks of the last frame, or None at the end of the video.

    Yields:
        2N frames, or 2N - 1 at the end of the video, in ticks half as long. Each frame lasts until
        the next one. The last frame keeps its duration; if that is unknown, it gets the one of
        its predecessor in the segment.
    """
    numbers = count(first)
    # A frame, and the one half-way to the next if the model returned it.
    pair: list[Frame] = []
    gap = 0
    for frame in restored:
        if pair and frame.pts != pair[0].pts:
            gap = frame.pts - pair[0].pts
            yield from _spread(pair, gap, numbers)
            pair = []
        pair.append(frame)
    if not pair:
        return

    last = pair[0]
    end_pts = next_pts()
    if end_pts is not None:
        yield from _spread(pair, end_pts - last.pts, numbers)
        return
    duration = last.duration or gap
    yield _retimed(
        last,
        2 * last.pts,
        duration=2 * duration,
        index=next(numbers),
    )


def _spread(
    pair: list[Frame],
    gap: int,
    numbers: Iterator[int],
) -> Iterator[Frame]:
    """Yield a frame and the one half-way to the next; a copy if the model returned none."""
    first = pair[0]
    half_way = pair[1] if len(pair) == 2 else _copy(first)
    # The ticks are half as long, so a gap between two frames is 2 * gap ticks.
    yield _retimed(
        first,
        2 * first.pts,
        duration=gap,
        index=next(numbers),
    )
    yield _retimed(
        half_way,
        2 * first.pts + gap,
        duration=gap,
        index=next(numbers),
    )


def _retimed(
    frame: Frame,
    pts: int,
    *,
    duration: int,
    index: int,
) -> Frame:
    return replace(
        frame,
        pts=pts,
        time_base=frame.time_base / 2,
        duration=duration,
        index=index,
    )


def _copy(frame: Frame) -> Frame:
    """Copy a frame with its pixels, which its consumer may change."""
    alpha = None
    if frame.alpha is not None:
        alpha = frame.alpha.clone()
    return replace(frame, rgb=frame.rgb.clone(), alpha=alpha)
