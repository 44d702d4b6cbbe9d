"""Twice the frame rate: what a space-time model gives between two frames gets its place in time.

    restored    a     a½       b     b½      c    |  d     d½     e      a cut after c: nothing lies half-way to d
    at          a  (a+b)/2     b  (b+c)/2    c       d  (d+e)/2   e
    written     a     a½       b     b½      c    c  d     d½     e

N frames become 2N - 1. The frame before a cut comes twice, so that the spacing stays even, and the last frame lasts as
long as it did: the length stays what it was.
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
    """Refuse a model that gives nothing between the frames.

    Args:
        spec: the model.
        fps: what was asked for.

    Raises:
        ConfigError: the model cannot raise the frame rate; the line names those that can.
    """
    if spec.temporal.between_frames:
        return
    from tubelet.zoo.architectures import ARCHITECTURES

    able = [other.id for other in list_models() if other.temporal.between_frames]
    contracts = {
        architecture.name: architecture.contract(architecture.config())
        for architecture in ARCHITECTURES
    }
    names = [
        name
        for name, contract in contracts.items()
        if contract and contract.temporal.between_frames
    ]
    able.append(f"a checkpoint of {' or '.join(names)}")
    raise ConfigError(
        f"fps={fps} needs a model that raises the frame rate, and {spec.id} does not; use {', '.join(able)}"
    )


def doubled_frames(frames: int) -> int:
    """Count the frames that so many become."""
    return max(0, 2 * frames - 1)


def doubled_info(info: VideoInfo) -> VideoInfo:
    """Describe a video as it is with twice the frame rate: half-way times are whole ticks.

    Args:
        info: of the input.
    """
    return replace(
        info,
        time_base=info.time_base / 2,
        average_rate=info.average_rate and 2 * info.average_rate,
        frames_hint=info.frames_hint and doubled_frames(info.frames_hint),
    )


def double_rate(
    restored: Iterable[Frame], *, first: int = 0, next_pts: Callable[[], int | None] = lambda: None
) -> Iterator[Frame]:
    """Give frames that lie half-way their times.

    Args:
        restored: in order; what lies half-way to the next frame follows with the time of the one before it, and is
            absent at the end of a scene.
        first: number of the first frame.
        next_pts: called at the end; tells the time of the frame that follows in another segment, in ticks of the last
            one, or None at the end of the video.

    Yields:
        2N frames, or 2N - 1 at the end of the video, in ticks half as long, each shown until the next; the last one as
        long as before (where that is unknown: as long as the one before it in the same segment was).
    """
    numbers = count(first)
    held: list[Frame] = []
    gap = 0
    for frame in restored:
        if held and frame.pts != held[0].pts:
            gap = frame.pts - held[0].pts
            yield from _pair(held, gap, numbers)
            held = []
        held.append(frame)
    if not held:
        return
    following = next_pts()
    if following is not None:
        yield from _pair(held, following - held[0].pts, numbers)
        return
    last = held[0]
    yield _at(last, 2 * last.pts, duration=2 * (last.duration or gap), index=next(numbers))


def _pair(held: list[Frame], gap: int, numbers: Iterator[int]) -> Iterator[Frame]:
    """Yield a frame and the one half-way to the next, which is its copy where the model gave none."""
    first = held[0]
    half_way = held[1] if len(held) == 2 else _copy(first)
    yield _at(first, 2 * first.pts, duration=gap, index=next(numbers))
    yield _at(half_way, 2 * first.pts + gap, duration=gap, index=next(numbers))


def _at(frame: Frame, pts: int, *, duration: int, index: int) -> Frame:
    return replace(frame, pts=pts, time_base=frame.time_base / 2, duration=duration, index=index)


def _copy(frame: Frame) -> Frame:
    """Repeat a frame: whoever gets it may change the pixels."""
    return replace(
        frame, rgb=frame.rgb.clone(), alpha=None if frame.alpha is None else frame.alpha.clone()
    )
