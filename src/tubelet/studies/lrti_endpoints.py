"""What is compared: the mean PSNR of some frames of each held-out video.

frame       0  1  2  3  4 … T-5 T-4 T-3 T-2 T-1
all         ■  ■  ■  ■  ■    ■   ■   ■   ■   ■
inner       .  .  .  .  ■    ■   .   .   .   .     counted from 1: frames 5 … T-4
ends        ■  ■  .  .  .    .   .   .   ■   ■
growth      mean far from both ends, minus mean near them
"""

from __future__ import annotations

from statistics import fmean
from typing import Literal

from tubelet.metrics.fidelity import Channel
from tubelet.recipes.frame_scores import FrameScores

__all__ = ["ENDPOINT_NAMES", "Endpoint", "endpoint_db"]

Endpoint = Literal["all", "inner", "ends", "growth"]

ENDPOINT_NAMES: dict[Endpoint, str] = {
    "all": "all frames",
    "inner": "frames 5 to T-4",
    "ends": "first and last two frames",
    "growth": "far minus near",
}
"""Short description of each endpoint, for the report."""

_INNER_MARGIN = 4
_END_FRAMES = 2


def endpoint_db(video: FrameScores, endpoint: Endpoint, channel: Channel = "y") -> float:
    """Return the score of a video, dB.

    Args:
        video: Scores of its frames; at least 10 frames.
        endpoint: Frames that count.
        channel: "y" or "rgb".
    """
    values = video.of(channel)
    num_frames = len(values)
    match endpoint:
        case "all":
            return fmean(values)
        case "inner":
            return fmean(values[_INNER_MARGIN : num_frames - _INNER_MARGIN])
        case "ends":
            return fmean([*values[:_END_FRAMES], *values[-_END_FRAMES:]])
        case "growth":
            far = num_frames // 4
            near = num_frames // 10
            inner = values[far : num_frames - far]
            outer = [*values[:near], *values[num_frames - near :]]
            return fmean(inner) - fmean(outer)
