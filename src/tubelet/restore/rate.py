"""Twice the frame rate: what a space-time model gives between two frames gets its place in time.

    restored    a     a½       b     b½      c    |  d     d½     e      a cut after c: nothing lies half-way to d
    at          a  (a+b)/2     b  (b+c)/2    c       d  (d+e)/2   e
    written     a     a½       b     b½      c    c  d     d½     e

N frames become 2N - 1. The frame before a cut comes twice, so that the spacing stays even, and the last frame lasts as
long as it did: the length stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    contracts = {architecture.name: architecture.contract(architecture.config()) for architecture in ARCHITECTURES}
    names = [name for name, contract in contracts.items() if contract and contract.temporal.between_frames]
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


def double_rate(restored: Iterable[Frame]) -> Iterator[Frame]:
    """Give frames that lie half-way their times.

    Args:
        restored: in order; what lies half-way to the next frame follows with the time of the one before it, and is
            absent at the end of a scene.

    Yields:
        2N - 1 frames, numbered from 0, in ticks half as long, each shown until the next; the last one as long as before
        (where that is unknown: as long as the one before it was).
    """
    numbers = count()
    held: list[Frame] = []
    gap = 0
    for frame in restored:
        if held and frame.pts != held[0].pts:
            gap = frame.pts - held[0].pts
            first, half_way = held if len(held) == 2 else (held[0], _copy(held[0]))
            for part, pts in ((first, 2 * first.pts), (half_way, first.pts + frame.pts)):
                yield _at(part, pts, duration=gap, index=next(numbers))
            held = []
        held.append(frame)
    for last in held[:1]:
        yield _at(last, 2 * last.pts, duration=2 * (last.duration or gap), index=next(numbers))


def _at(frame: Frame, pts: int, *, duration: int, index: int) -> Frame:
    return replace(frame, pts=pts, time_base=frame.time_base / 2, duration=duration, index=index)


def _copy(frame: Frame) -> Frame:
    """Repeat a frame: whoever gets it may change the pixels."""
    return replace(frame, rgb=frame.rgb.clone(), alpha=None if frame.alpha is None else frame.alpha.clone())
