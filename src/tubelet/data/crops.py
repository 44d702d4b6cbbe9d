"""Random crops in space and time, for training.

The n-th sample depends only on the seed and n, so that a run can be resumed at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.cache import CachedClip
from tubelet.errors import InputError, require
from tubelet.ops.pixels import to_float

__all__ = ["CropSettings", "Crops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CropSettings:
    """Size and variety of the training samples."""

    batch: int = 8
    """Samples per step."""
    frames: int = 8
    """Consecutive frames of a sample; a shorter clip is played back and forth."""
    patch_px: int = 64
    """Side of the low-quality crop, pixels."""
    candidates: int = 2
    """Random crop positions per sample; the one with the highest detail is used."""
    direction: Literal["both", "forward"] = "both"
    """both: play half of the samples backward in time."""

    def __post_init__(self) -> None:
        min_field = min(self.batch, self.frames, self.patch_px, self.candidates)
        require(min_field >= 1, f"{self}: every field must be at least 1")


class Crops:
    """Draws batches of random crops from cached clips.

    Args:
        clips: Training clips. Clips with a low-quality side below `patch_px` are skipped.
        scale: Upscaling factor between lq and gt.
        settings: Size of the samples.
        seed: Seed of all samples.

    Raises:
        InputError: No clip is large enough.
    """

    def __init__(
        self, clips: Sequence[CachedClip], scale: int, settings: CropSettings, seed: int
    ) -> None:
        patch_px = settings.patch_px
        self.clips = [clip for clip in clips if min(clip.lqs[0].shape[-2:]) >= patch_px]
        if not self.clips:
            raise InputError(
                f"none of {len(clips)} clips has {patch_px} px on both sides at low quality"
            )
        self.scale = scale
        self.settings = settings
        self.seed = seed
        # Long clips are drawn more often, up to twice the length of a sample.
        max_frames = 2 * settings.frames
        num_frames = np.array([min(len(c.gt), max_frames) for c in self.clips], dtype=float)
        self._probabilities = num_frames / num_frames.sum()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the batch of a step.

        Returns:
            lq (B, T, 3, h, w) and gt (B, T, 3, sh, sw), float32 in [0, 1].
        """
        lq, gt = self.pixels(step)
        return to_float(lq), to_float(gt)

    def pixels(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the batch of a step like `batch`, but as uint8."""
        batch = self.settings.batch
        lqs: list[NDArray[np.uint8]] = []
        gts: list[NDArray[np.uint8]] = []
        for index in range(step * batch, (step + 1) * batch):
            lq, gt = self.sample(index)
            lqs.append(lq)
            gts.append(gt)
        return _stack(lqs), _stack(gts)

    def sample(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw one sample: lq (T, 3, h, w) and gt (T, 3, sh, sw), uint8."""
        rng = np.random.default_rng((self.seed, index))
        clip = self.clips[rng.choice(len(self.clips), p=self._probabilities)]
        lq = clip.lqs[rng.integers(len(clip.lqs))]
        times = self._times(rng, len(clip.gt))
        top, left = self._position(rng, lq, int(times[0]))
        bottom = top + self.settings.patch_px
        right = left + self.settings.patch_px
        s = self.scale
        lq_crop = lq[times, :, top:bottom, left:right]
        gt_crop = clip.gt[times, :, s * top : s * bottom, s * left : s * right]
        return _flip(lq_crop, gt_crop, rng)

    def _times(self, rng: np.random.Generator, clip_frames: int) -> NDArray[np.int64]:
        """Draw consecutive frames.

        A clip that is too short is played back and forth: 0 1 2 1 0 1 ...
        """
        frames = self.settings.frames
        start = int(rng.random() * max(1, clip_frames - frames + 1))
        period = max(1, 2 * clip_frames - 2)
        times = (start + np.arange(frames)) % period
        # The second half of the period runs backward.
        times = np.where(times < clip_frames, times, 2 * clip_frames - 2 - times)
        # Drawn for either direction, so that both have the same crops.
        is_backward = rng.random() < 0.5
        if is_backward and self.settings.direction == "both":
            return times[::-1]
        return times

    def _position(
        self, rng: np.random.Generator, lq: NDArray[np.uint8], time: int
    ) -> tuple[int, int]:
        """Draw the top and left of a crop: the candidate with the highest detail."""
        size = self.settings.patch_px
        height, width = lq.shape[-2:]
        best = (0, 0)
        best_detail = -1.0
        for _ in range(self.settings.candidates):
            top = int(rng.random() * (height - size + 1))
            left = int(rng.random() * (width - size + 1))
            crop = lq[time, 1, top : top + size, left : left + size]
            detail = _detail(torch.tensor(crop, dtype=torch.float32))
            if detail > best_detail:
                best = (top, left)
                best_detail = detail
        return best


def _stack(samples: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(samples))


def _detail(channel: Tensor) -> float:
    """Compute the mean absolute gradient of a channel (H, W)."""
    vertical = channel.diff(dim=0).abs().mean()
    horizontal = channel.diff(dim=1).abs().mean()
    return (vertical + horizontal).item()


def _flip(
    lq: NDArray[np.uint8], gt: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Flip and transpose both crops in the same random way."""
    flips_x, flips_y, transposes = rng.random(3) < 0.5
    if flips_x:
        lq = lq[..., ::-1]
        gt = gt[..., ::-1]
    if flips_y:
        lq = lq[..., ::-1, :]
        gt = gt[..., ::-1, :]
    if transposes:
        lq = lq.swapaxes(-1, -2)
        gt = gt.swapaxes(-1, -2)
    return np.ascontiguousarray(lq), np.ascontiguousarray(gt)
