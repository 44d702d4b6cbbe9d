"""Read a few frames of a video without reading all of it."""

from __future__ import annotations

from tubelet.errors import InputError
from tubelet.types import Frame
from tubelet.video.info import VideoInfo
from tubelet.video.reader import open_reader

__all__ = ["read_nearest_frame", "sample_times"]

_LEAD_S = (
    0.5  # reading starts this much earlier, so that the frame before the wanted time is seen too
)


def sample_times(
    info: VideoInfo, count: int, *, start_s: float = 0.0, duration_s: float | None = None
) -> list[float]:
    """Spread times evenly over a video, none at its very ends.

    Args:
        info: of the video; without a known length the result is the start alone.
        count: how many, at most one per frame where the number of frames is known.
        start_s: begin of the part to sample, seconds after the start of the video.
        duration_s: length of that part; by default to the end.

    Returns:
        Seconds after the start of the video.
    """
    length_s = info.duration_s
    if length_s is None and info.frames_hint and info.average_rate:
        length_s = float(info.frames_hint / info.average_rate)
    if length_s is None:
        return [start_s]
    part_s = max(0.0, length_s - start_s)
    part_s = part_s if duration_s is None else min(part_s, duration_s)
    if info.average_rate:
        count = min(count, max(1, round(part_s * info.average_rate)))
    return [start_s + part_s * (i + 0.5) / count for i in range(count)]


def read_nearest_frame(info: VideoInfo, time_s: float) -> Frame:
    """Read the frame whose time is nearest.

    Args:
        info: of the video.
        time_s: seconds after the start of the video.

    Raises:
        InputError: no frame can be decoded there.
    """
    wanted_s = info.start_s + time_s
    nearest: Frame | None = None
    with open_reader(info.source, start_s=max(0.0, time_s - _LEAD_S)) as reader:
        for frame in reader:
            if nearest is not None and abs(frame.time_s - wanted_s) > abs(
                nearest.time_s - wanted_s
            ):
                break
            nearest = frame
    if nearest is None:
        raise InputError(f"{info.source}: no frame can be decoded at {time_s:.3f} s")
    return nearest
