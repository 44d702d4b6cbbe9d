"""Measure two videos of the same scene: against a third, which is the truth, or the second against the first.

Frames are paired by their times, counted from the start of each file: a frame belongs to the nearest one of the other
video, if that is no further than half a frame. Frames without a partner are left out, and counted. All are brought to
one size before they are measured: that of the reference, or of the larger video; smaller ones are enlarged (bicubic),
larger ones are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from tubelet.errors import InputError, ResourceError
from tubelet.evaluation.images import enlarge
from tubelet.evaluation.results import to_jsonable
from tubelet.metrics.measure import Meter, make_meter, metric_info
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.types import Frame
from tubelet.video.info import VideoInfo
from tubelet.video.reader import Reader, open_reader

__all__ = ["Comparison", "PairScore", "compare_videos"]

_WITH_REFERENCE = ("psnr-y", "ssim-y", "warp-error", "flicker")
_WITHOUT = ("psnr-y", "ssim-y", "warp-error", "niqe-tubelet")
_ASPECT_TOLERANCE = 0.02  # sizes are rounded to whole or even pixels


@dataclass(frozen=True, slots=True)
class PairScore:
    """One metric of both videos.

    Attributes:
        metric: its name.
        first: of the first video; None where the first is what the second is compared with.
        second: of the second video.
    """

    metric: str
    first: float | None
    second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare_videos` found.

    Attributes:
        frames: moments that all videos have a frame for.
        left_out: per video, in the order first, second, reference: frames without a partner.
        width, height: at which they were compared, pixels.
        scores: per metric.
        notes: what a user should know, a line each.
    """

    frames: int
    left_out: tuple[int, ...]
    width: int
    height: int
    scores: tuple[PairScore, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: "inf" is the PSNR of equal videos, null what is unknown."""
        names = ("first", "second", "reference")
        scores = {
            score.metric: {"first": score.first, "second": score.second} for score in self.scores
        }
        return {
            "frames": self.frames,
            "left_out": dict(zip(names, self.left_out, strict=False)),
            "width": self.width,
            "height": self.height,
            "scores": to_jsonable(scores),
            "notes": list(self.notes),
        }


def compare_videos(
    first: str | Path,
    second: str | Path,
    *,
    reference: str | Path | None = None,
    metrics: Sequence[str] = (),
    device: str = "cpu",
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Measure two videos frame by frame, in bounded memory.

    Args:
        first: a video file or a folder of frames.
        second: likewise.
        reference: what both should look like; without it, the second is compared with the first.
        metrics: names; by default PSNR, SSIM and what else needs neither a network's weights nor a download.
        device: where metrics run.
        on_progress: called in this thread, at most ten times a second and once at the end.
        cancel: stops the comparison after the frame that it is at.

    Raises:
        InputError: a video cannot be read, the shapes differ, one is larger than the reference, or no times agree.
        RequestError: an unknown metric.
        ResourceError: a metric that was asked for lacks its package or weights.
        Cancelled: `cancel` was cancelled.
    """
    sources = [first, second, *([] if reference is None else [reference])]
    with ExitStack() as stack:
        readers = [stack.enter_context(open_reader(source)) for source in sources]
        width, height = _common_size(
            [reader.info for reader in readers], has_reference=reference is not None
        )
        names = metrics or (_WITHOUT if reference is None else _WITH_REFERENCE)
        meters, notes = _make_meters(names, reference is not None, device, optional=not metrics)
        total = min(
            (reader.info.frames_hint for reader in readers if reader.info.frames_hint), default=None
        )
        ticker = Ticker(
            on_progress, unit="frame", total=total, label=Path(second).name, cancel=cancel
        )
        aligned = _Aligned(readers)
        for frames in aligned:
            sized = [enlarge(frame.rgb, (height, width)) for frame in frames]
            _update(meters, sized, has_reference=reference is not None)
            ticker.tick(time_s=frames[-1].time_s)
        if not aligned.count:
            raise InputError(
                f"{first} and {second} have no frames at the same times; are they of the same scene?"
            )
        ticker.finish()
        for reader in readers:
            notes += [f"{reader.info.source}: {problem}" for problem in reader.problems]
    for source, count in zip(sources, aligned.left_out, strict=True):
        if count:
            notes.append(
                f"{count} frames of {source} have no partner at their time and are left out"
            )
    return Comparison(
        frames=aligned.count,
        left_out=tuple(aligned.left_out),
        width=width,
        height=height,
        scores=tuple(
            PairScore(name, None if one is None else one.mean(), two.mean())
            for name, (one, two) in meters.items()
        ),
        notes=tuple(notes),
    )


class _Aligned:
    """Iterates over frames of several videos that belong to one moment; the last video sets the times.

    Attributes:
        count: moments so far.
        left_out: per video, frames without a partner; complete at the end.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.count = 0
        self.left_out = [0] * len(readers)
        self._readers = readers
        rates = [reader.info.average_rate or Fraction(25) for reader in readers]
        self._tolerance_s = float(1 / (2 * max(rates))) + 1e-4

    def __iter__(self) -> Iterator[list[Frame]]:
        streams = [_Stream(reader) for reader in self._readers]
        while all(stream.frame is not None for stream in streams):
            times = [stream.time_s for stream in streams]
            late = max(times)
            behind = [
                place for place, time_s in enumerate(times) if late - time_s > self._tolerance_s
            ]
            nearer = [
                place
                for place in range(len(streams))
                if place not in behind and streams[place].nears(late)
            ]
            for place in behind + nearer:
                self.left_out[place] += 1
                streams[place].advance()
            if not behind and not nearer:
                self.count += 1
                yield [stream.frame for stream in streams if stream.frame is not None]
                for stream in streams:
                    stream.advance()
        for place, stream in enumerate(streams):
            while stream.frame is not None:
                self.left_out[place] += 1
                stream.advance()


class _Stream:
    """A video with one frame of look-ahead; times count from the start of the file."""

    def __init__(self, reader: Reader) -> None:
        self._frames = iter(reader)
        self._start_s = reader.info.start_s
        self.frame = next(self._frames, None)
        self._following = next(self._frames, None)

    @property
    def time_s(self) -> float:
        """Time of the frame."""
        assert self.frame is not None
        return self.frame.time_s - self._start_s

    def nears(self, time_s: float) -> bool:
        """Say whether the frame after this one is nearer to a time."""
        if self._following is None:
            return False
        return abs(self._following.time_s - self._start_s - time_s) < abs(self.time_s - time_s)

    def advance(self) -> None:
        """Go to the next frame."""
        self.frame, self._following = self._following, next(self._frames, None)


def _common_size(infos: Sequence[VideoInfo], *, has_reference: bool) -> tuple[int, int]:
    """Find the (width, height) at which all are compared.

    Raises:
        InputError: the images have different shapes, or one is larger than the reference.
    """
    target = infos[-1] if has_reference else max(infos, key=lambda info: info.width * info.height)
    for info in infos:
        shapes = f"{info.source} is {info.width}×{info.height} and {target.source} {target.width}×{target.height}"
        if abs(info.width * target.height / (info.height * target.width) - 1) > _ASPECT_TOLERANCE:
            raise InputError(f"{shapes}: not the same shape; crop or scale one of them first")
        if info.width > target.width or info.height > target.height:
            raise InputError(
                f"{shapes}: larger than what it is compared with; scale one of them first"
            )
    return target.width, target.height


def _make_meters(
    names: Sequence[str], has_reference: bool, device: str, *, optional: bool
) -> tuple[dict[str, tuple[Meter | None, Meter]], list[str]]:
    """Make a meter per video and metric; a default metric that this machine lacks something for becomes a note."""
    meters: dict[str, tuple[Meter | None, Meter]] = {}
    notes: list[str] = []
    for name in names:
        info = metric_info(name)
        try:
            one = (
                None
                if info.needs_reference and not has_reference
                else make_meter(name, device=device)
            )
            meters[name] = (one, make_meter(name, device=device))
        except ResourceError as error:
            if not optional:
                raise
            notes.append(f"without {name}: {error}")
    return meters, notes


def _update(
    meters: dict[str, tuple[Meter | None, Meter]], frames: Sequence[Tensor], *, has_reference: bool
) -> None:
    first, second = frames[:2]
    for one, two in meters.values():
        if has_reference:
            assert one is not None
            one.update(first, frames[2])
            two.update(second, frames[2])
        elif one is None:
            two.update(second, first)
        else:
            one.update(first, None)
            two.update(second, None)
