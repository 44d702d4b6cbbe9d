"""Measure two videos of the same scene: both against a reference, or the second against the first.

Frames are paired by their times, counted from the start of each file: a frame belongs to the
nearest frame of the other video, if the distance is not larger than half a frame. Frames without
a partner are left out, and counted. All frames are brought to one size before they are measured:
that of the reference, or of the larger video. Smaller frames are enlarged (bicubic), larger ones
are an error.
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

_METRICS_WITH_REFERENCE = ("psnr-y", "ssim-y", "warp-error", "flicker")
_METRICS_WITHOUT_REFERENCE = ("psnr-y", "ssim-y", "warp-error", "niqe-tubelet")
_ASPECT_TOLERANCE = 0.02
"""Relative difference of aspect ratios, as sizes are rounded to whole or even pixels."""
_DEFAULT_RATE = Fraction(25)
"""Frames per second, if a video does not have a rate."""


@dataclass(frozen=True, slots=True)
class PairScore:
    """Scores of both videos in one metric.

    Attributes:
        metric: Name of the metric.
        first: Score of the first video; None if the second video is compared with the first.
        second: Score of the second video.
    """

    metric: str
    first: float | None
    second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Result of `compare_videos`.

    Attributes:
        frames: Number of moments for which all videos have a frame.
        left_out: Number of frames without a partner, for the first and the second video and the
            reference.
        width, height: Size at which the frames were compared, pixels.
        scores: Scores of each metric.
        notes: Remarks for a user, one per line.
    """

    frames: int
    left_out: tuple[int, ...]
    width: int
    height: int
    scores: tuple[PairScore, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON values: "inf" is the PSNR of identical videos, null is unknown."""
        scores: dict[str, dict[str, float | None]] = {}
        for score in self.scores:
            scores[score.metric] = {"first": score.first, "second": score.second}
        # Without a reference there are only two numbers.
        names = ("first", "second", "reference")
        left_out = dict(zip(names, self.left_out, strict=False))
        return {
            "frames": self.frames,
            "left_out": left_out,
            "width": self.width,
            "height": self.height,
            "scores": to_jsonable(scores),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class _MeterPair:
    """Meters of both videos in one metric; `first` is None if the first video has no score."""

    first: Meter | None
    second: Meter


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
        first: Video file or folder of frames.
        second: Video file or folder of frames.
        reference: Video that both should look like; without it, the second video is compared with
            the first.
        metrics: Names of metrics; by default PSNR, SSIM and others that need neither weights of a
            network nor a download.
        device: Device that metrics run on.
        on_progress: Called in this thread, up to ten times a second and once at the end.
        cancel: Stops the comparison after the current frame.

    Raises:
        InputError: A video cannot be read, the aspect ratios differ, a video is larger than the
            reference, or no times match.
        RequestError: A metric is unknown.
        ResourceError: The package or weights of a metric in `metrics` are missing.
        Cancelled: `cancel` was cancelled.
    """
    has_reference = reference is not None
    sources = [first, second]
    default_metrics = _METRICS_WITHOUT_REFERENCE
    if reference is not None:
        sources.append(reference)
        default_metrics = _METRICS_WITH_REFERENCE
    names = metrics or default_metrics

    with ExitStack() as stack:
        readers = [stack.enter_context(open_reader(source)) for source in sources]
        infos = [reader.info for reader in readers]
        width, height = _common_size(infos, has_reference=has_reference)
        meters, notes = _make_meters(names, has_reference, device, optional=not metrics)
        ticker = Ticker(
            on_progress,
            unit="frame",
            total=_smallest_frame_count(infos),
            label=Path(second).name,
            cancel=cancel,
        )

        # Pair, resize and measure one moment after the other.
        moments = _AlignedFrames(readers)
        for frames in moments:
            images = [enlarge(frame.rgb, (height, width)) for frame in frames]
            _update_meters(meters, images)
            ticker.tick(time_s=frames[-1].time_s)
        if not moments.count:
            raise InputError(
                f"{first} and {second} have no frames at the same times; "
                "are they of the same scene?"
            )
        ticker.finish()
        for reader in readers:
            for problem in reader.problems:
                notes.append(f"{reader.info.source}: {problem}")

    for source, count in zip(sources, moments.left_out, strict=True):
        if count:
            notes.append(
                f"{count} frames of {source} have no partner at their time and are left out"
            )
    scores: list[PairScore] = []
    for metric, pair in meters.items():
        first_score: float | None = None
        if pair.first is not None:
            first_score = pair.first.mean()
        second_score = pair.second.mean()
        scores.append(PairScore(metric, first_score, second_score))
    return Comparison(
        frames=moments.count,
        left_out=tuple(moments.left_out),
        width=width,
        height=height,
        scores=tuple(scores),
        notes=tuple(notes),
    )


class _AlignedFrames:
    """Iterates over frames of several videos that belong to the same moment.

    Attributes:
        count: Number of moments so far.
        left_out: Number of frames without a partner per video; complete at the end.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.count = 0
        self.left_out = [0] * len(readers)
        self._readers = readers
        rates = [reader.info.average_rate or _DEFAULT_RATE for reader in readers]
        # Half a frame of the fastest video; the small term absorbs rounded timestamps.
        self._tolerance_s = float(1 / (2 * max(rates))) + 1e-4

    def __iter__(self) -> Iterator[list[Frame]]:
        """Yield one frame of each video, in the order of the readers."""
        streams = list(map(_Stream, self._readers))
        frames = _current_frames(streams)
        while frames is not None:
            unmatched = self._unmatched_streams(streams)
            for index in unmatched:
                self._leave_out(streams, index)
            if not unmatched:
                self.count += 1
                yield frames
                for stream in streams:
                    stream.advance()
            frames = _current_frames(streams)
        # Once a video ends, the other ones have no partners left.
        for index, stream in enumerate(streams):
            while stream.frame is not None:
                self._leave_out(streams, index)

    def _unmatched_streams(self, streams: Sequence[_Stream]) -> list[int]:
        """List the streams whose current frame does not belong to the current moment."""
        # The moment is that of the stream which is furthest ahead; the other ones catch up.
        moment_s = max(stream.time_s for stream in streams)
        unmatched: list[int] = []
        for index, stream in enumerate(streams):
            too_early = moment_s - stream.time_s > self._tolerance_s
            if too_early or stream.next_is_nearer(moment_s):
                unmatched.append(index)
        return unmatched

    def _leave_out(self, streams: Sequence[_Stream], index: int) -> None:
        self.left_out[index] += 1
        streams[index].advance()


class _Stream:
    """Frames of a video with one frame of look-ahead; times count from the start of the file."""

    def __init__(self, reader: Reader) -> None:
        self._frames = iter(reader)
        self._start_s = reader.info.start_s
        self.frame = next(self._frames, None)
        self._next_frame = next(self._frames, None)

    @property
    def time_s(self) -> float:
        """Time of the current frame, seconds."""
        assert self.frame is not None
        return self.frame.time_s - self._start_s

    def next_is_nearer(self, time_s: float) -> bool:
        """Return whether the next frame is nearer to a time than the current one."""
        if self._next_frame is None:
            return False
        next_time_s = self._next_frame.time_s - self._start_s
        return abs(next_time_s - time_s) < abs(self.time_s - time_s)

    def advance(self) -> None:
        """Continue with the next frame."""
        self.frame = self._next_frame
        self._next_frame = next(self._frames, None)


def _current_frames(streams: Sequence[_Stream]) -> list[Frame] | None:
    """Return the current frame of each video; None if a video has ended."""
    frames: list[Frame] = []
    for stream in streams:
        if stream.frame is None:
            return None
        frames.append(stream.frame)
    return frames


def _common_size(
    infos: Sequence[VideoInfo],
    *,
    has_reference: bool,
) -> tuple[int, int]:
    """Find the (width, height) at which all videos are compared, pixels.

    Raises:
        InputError: The aspect ratios differ, or a video is larger than the reference.
    """

    def area_px(info: VideoInfo) -> int:
        return info.width * info.height

    target = infos[-1] if has_reference else max(infos, key=area_px)
    for info in infos:
        sizes = (
            f"{info.source} is {info.width}×{info.height} "
            f"and {target.source} {target.width}×{target.height}"
        )
        # The quotient of the two aspect ratios, 1 if they are equal.
        aspect_quotient = info.width * target.height / (info.height * target.width)
        if abs(aspect_quotient - 1) > _ASPECT_TOLERANCE:
            raise InputError(f"{sizes}: not the same shape; crop or scale one of them first")
        if info.width > target.width or info.height > target.height:
            raise InputError(
                f"{sizes}: larger than the video to compare with; scale one of them first"
            )
    return target.width, target.height


def _smallest_frame_count(infos: Sequence[VideoInfo]) -> int | None:
    """Estimate the number of moments from the headers; None if they have no frame counts."""
    hints = [info.frames_hint for info in infos]
    # A header can lack its count, or have a count of 0.
    counts = filter(None, hints)
    return min(counts, default=None)


def _make_meters(
    metrics: Sequence[str],
    has_reference: bool,
    device: str,
    *,
    optional: bool,
) -> tuple[dict[str, _MeterPair], list[str]]:
    """Create the meters of each metric.

    Args:
        metrics: Names of the metrics.
        has_reference: Whether both videos are compared with a reference.
        device: Device that metrics run on.
        optional: Whether a metric whose package or weights are missing is left out with a note.

    Returns:
        The meters by metric, and the notes.

    Raises:
        ResourceError: A metric's package or weights are missing, and it is not optional.
    """
    meters: dict[str, _MeterPair] = {}
    notes: list[str] = []
    for metric in metrics:
        # Without a reference, the first video is the one to compare with.
        first_is_reference = metric_info(metric).needs_reference and not has_reference
        first: Meter | None = None
        try:
            if not first_is_reference:
                first = make_meter(metric, device=device)
            second = make_meter(metric, device=device)
            meters[metric] = _MeterPair(first, second)
        except ResourceError as error:
            if not optional:
                raise
            notes.append(f"without {metric}: {error}")
    return meters, notes


def _update_meters(
    meters: dict[str, _MeterPair],
    images: Sequence[Tensor],
) -> None:
    """Measure one moment.

    Args:
        meters: Meters by metric.
        images: (3, H, W) of the first video, the second video and, if there is one, the reference.
    """
    # Without a reference, a metric either compares with the first video or needs no reference.
    first, second, *references = images
    reference = references[0] if references else None
    for pair in meters.values():
        if pair.first is None:
            pair.second.update(second, first)
        else:
            pair.first.update(first, reference)
            pair.second.update(second, reference)
