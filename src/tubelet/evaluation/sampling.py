"""Select frames of a video, and read them without decoding all of it."""

from __future__ import annotations

from tubelet.errors import InputError
from tubelet.types import Frame
from tubelet.video.info import VideoInfo
from tubelet.video.reader import open_reader

__all__ = ["read_nearest_frame", "sample_times", "spread_indices"]

_LEAD_S = 0.5
"""Reading starts this much before a time, so that the frame before it is decoded too."""


def spread_indices(count: int, limit: int) -> list[int]:
    """Spread up to `limit` indices evenly over `count` items, none at the very ends.

    Returns:
        The middle of each of `limit` equal parts; all indices if there are not more.
    """
    parts = min(count, limit)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def sample_times(
    info: VideoInfo,
    count: int,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> list[float]:
    """Spread times evenly over a video, none at its very ends.

    Args:
        info: Properties of the video; without a known length, the result is `start_s` only.
        count: Number of times; limited to one per frame where the number of frames is known.
        start_s: Start of the range to sample, seconds after the start of the video.
        duration_s: Length of that range, seconds; by default up to the end of the video.

    Returns:
        Seconds after the start of the video.
    """
    length_s = info.duration_s
    if length_s is None and info.frames_hint and info.average_rate:
        length_s = float(info.frames_hint / info.average_rate)
    if length_s is None:
        return [start_s]
    range_s = max(0.0, length_s - start_s)
    if duration_s is not None:
        range_s = min(range_s, duration_s)
    if info.average_rate:
        num_frames = max(1, round(range_s * info.average_rate))
        count = min(count, num_frames)
    # The middle of each of `count` equal parts.
    return [start_s + range_s * (i + 0.5) / count for i in range(count)]


def read_nearest_frame(info: VideoInfo, time_s: float) -> Frame:
    """Read the frame whose time is nearest to a given time.

    Args:
        info: Properties of the video.
        time_s: Seconds after the start of the video.

    Raises:
        InputError: No frame can be decoded there.
    """
    target_s = info.start_s + time_s
    nearest: Frame | None = None
    nearest_distance_s = float("inf")
    with open_reader(info.source, start_s=max(0.0, time_s - _LEAD_S)) as reader:
        for frame in reader:
            distance_s = abs(frame.time_s - target_s)
            # Times increase: after the nearest frame, distances grow.
            if distance_s > nearest_distance_s:
                break
            nearest = frame
            nearest_distance_s = distance_s
    if nearest is None:
        raise InputError(f"{info.source}: no frame can be decoded at {time_s:.3f} s")
    return nearest
