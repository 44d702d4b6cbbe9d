"""Scores of single frames, by their distance from the ends of a video.

What a recurrent network gains from long clips it gains far from the ends: there, states have seen
many frames.

    frame      0  1  2  3 … T-4 T-3 T-2 T-1
    distance   0  1  2  3 …  3   2   1   0
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import cast

import numpy as np
import torch
from torch import nn

from tubelet.data import CachedClip
from tubelet.files import atomic_write
from tubelet.metrics import psnr
from tubelet.metrics.fidelity import Channel
from tubelet.models.contracts import as_streaming
from tubelet.ops.pixels import to_float
from tubelet.plain_data import build, to_plain
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.lrti import LRTITraining, check_recorded_run, main
from tubelet.training.run_log import Log
from tubelet.zoo.checkpoint import load_model

__all__ = [
    "Arm",
    "FrameScores",
    "mean_psnr",
    "psnr_by_distance",
    "run_arm",
    "score_frames",
]

_SCORES_FILE = "frame-scores.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScores:
    """PSNR of every frame of a video, dB."""

    name: str
    """Name of the video."""
    psnr_y: tuple[float, ...]
    """Y-PSNR of each frame."""
    psnr_rgb: tuple[float, ...]
    """RGB-PSNR of each frame."""

    def of(self, channel: Channel) -> tuple[float, ...]:
        """Return the PSNR of each frame for "y" or "rgb"."""
        return self.psnr_y if channel == "y" else self.psnr_rgb


@dataclass(frozen=True, slots=True)
class Arm:
    """A finished training of a study.

    Attributes:
        path: The model.safetensors.
        scores: Scores of the held-out videos.
    """

    path: Path
    scores: tuple[FrameScores, ...]


def run_arm(
    config: LRTITraining,
    clips: Sequence[CachedClip],
    held_out: Sequence[CachedClip],
    *,
    num_frames: int,
    on_log: Log | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Arm:
    """Train one arm of a study, and score it on held-out videos.

    A finished arm is not trained again.

    Args:
        config: Configuration of the arm. Its `data` names the origin of the clips; it is not read.
        clips: Training clips.
        held_out: Videos that are scored, by their first low-quality version.
        num_frames: Frames of each video that are scored.
        on_log: See `tubelet.recipes.lrti.main`.
        on_progress: See `tubelet.recipes.lrti.main`.
        cancel: See `tubelet.recipes.lrti.main`.

    Raises:
        TubeletError: See `tubelet.recipes.lrti.main`.
    """
    path = config.out / "model.safetensors"
    scores_path = config.out / _SCORES_FILE
    # The state of a finished training may be gone, so it cannot always be resumed.
    if scores_path.is_file() and path.is_file():
        check_recorded_run(config)
        return Arm(path, _read_scores(scores_path))

    main(
        config,
        clips=clips,
        on_log=on_log,
        on_progress=on_progress,
        cancel=cancel,
    )
    network = load_model(path).to(config.loop.device)
    scores = tuple(score_frames(network, held_out, num_frames=num_frames))
    with atomic_write(scores_path) as part:
        part.write_text(json.dumps(to_plain(scores), indent=1), encoding="utf-8")
    return Arm(path, scores)


def _read_scores(path: Path) -> tuple[FrameScores, ...]:
    rows = cast("list[object]", json.loads(path.read_text(encoding="utf-8")))
    return tuple(build(FrameScores, row, str(path)) for row in rows)


@torch.inference_mode()
def score_frames(
    network: nn.Module,
    clips: Iterable[CachedClip],
    *,
    num_frames: int,
) -> list[FrameScores]:
    """Restore the beginning of each video as a whole video, and score every frame.

    Args:
        network: Streaming network without frames in between, on any device.
        clips: Videos; their first low-quality version is restored.
        num_frames: Frames of each video.

    Returns:
        The scores of each video, in order; border 0.
    """
    streaming = as_streaming(network.eval())
    device = next(network.parameters()).device
    all_scores: list[FrameScores] = []
    for clip in clips:
        # The arrays of a clip are mapped files, which tensors cannot share.
        lq = to_float(torch.from_numpy(np.array(clip.lqs[0][:num_frames])))
        psnr_y: list[float] = []
        psnr_rgb: list[float] = []
        # Frame by frame, so that memory does not grow with the video.
        for t, sr in enumerate(streaming.restore(lq[None].to(device))):
            gt = to_float(torch.from_numpy(np.array(clip.gt[t])))
            restored = sr[0].cpu()
            psnr_y.append(psnr(restored, gt).item())
            psnr_rgb.append(psnr(restored, gt, channel="rgb").item())
        scores = FrameScores(
            name=clip.name,
            psnr_y=tuple(psnr_y),
            psnr_rgb=tuple(psnr_rgb),
        )
        all_scores.append(scores)
    return all_scores


def mean_psnr(
    scores: Iterable[FrameScores],
    *,
    channel: Channel = "y",
    margin: int = 0,
) -> float:
    """Return the mean over videos of the mean over their frames, dB.

    Args:
        scores: Scores of the videos.
        channel: "y" or "rgb".
        margin: Frames left out at both ends of each video.
    """
    means: list[float] = []
    for video in scores:
        values = video.of(channel)
        means.append(fmean(values[margin : len(values) - margin]))
    return fmean(means)


def psnr_by_distance(
    scores: Iterable[FrameScores],
    *,
    channel: Channel = "y",
) -> list[float]:
    """Return the mean PSNR of all frames at each distance from the nearer end of their video, dB.

    Args:
        scores: Scores of the videos.
        channel: "y" or "rgb".

    Returns:
        The mean at distance 0, 1, 2, …, up to the middle of the longest video.
    """
    at_distance: list[list[float]] = []
    for video in scores:
        values = video.of(channel)
        for t, value in enumerate(values):
            # 0 at both ends.
            distance = min(t, len(values) - 1 - t)
            while len(at_distance) <= distance:
                at_distance.append([])
            at_distance[distance].append(value)
    return [fmean(values) for values in at_distance]
