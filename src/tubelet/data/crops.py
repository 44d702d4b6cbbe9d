"""Random crops in space and time; the n-th sample depends on the seed and n alone, so a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.cache import CachedClip
from tubelet.errors import ConfigError, InputError

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

    def __post_init__(self) -> None:
        if min(self.batch, self.frames, self.patch_px, self.candidates) < 1:
            raise ConfigError(f"{self}: every field must be at least 1")


class Crops:
    """Draws batches from cached clips.

    Args:
        clips: those below `patch_px` in height or width at low quality are left out.
        scale: factor between lq and gt.
        settings: size of the samples.
        seed: of all draws.

    Raises:
        InputError: no clip is large enough.
    """

    def __init__(
        self, clips: Sequence[CachedClip], scale: int, settings: CropSettings, seed: int
    ) -> None:
        self.clips = [c for c in clips if min(c.lqs[0].shape[-2:]) >= settings.patch_px]
        if not self.clips:
            raise InputError(
                f"none of {len(clips)} clips has {settings.patch_px} px on both sides at low quality"
            )
        self.scale, self.settings, self.seed = scale, settings, seed
        frames = np.array([min(len(c.gt), 2 * settings.frames) for c in self.clips], dtype=float)
        self._weights = frames / frames.sum()  # long clips count more, up to a point

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the batch of a step: lq (B, T, 3, h, w) and gt (B, T, 3, sh, sw), float32 in [0, 1]."""
        pairs = [self.sample(step * self.settings.batch + i) for i in range(self.settings.batch)]
        lq, gt = (
            torch.from_numpy(np.stack(arrays)).float().div_(255)
            for arrays in zip(*pairs, strict=True)
        )
        return lq, gt

    def sample(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw one sample: lq (T, 3, h, w) and gt (T, 3, sh, sw), uint8."""
        rng = np.random.default_rng((self.seed, index))
        clip = self.clips[rng.choice(len(self.clips), p=self._weights)]
        lq = clip.lqs[rng.integers(len(clip.lqs))]
        times = self._times(rng, len(clip.gt))
        top, left = self._position(rng, lq, int(times[0]))
        size, s = self.settings.patch_px, self.scale
        lq_crop = lq[times, :, top : top + size, left : left + size]
        gt_crop = clip.gt[times, :, top * s : (top + size) * s, left * s : (left + size) * s]
        return _flip(lq_crop, gt_crop, rng)

    def _times(self, rng: np.random.Generator, length: int) -> NDArray[np.int64]:
        """Consecutive frames, forwards or backwards; a short clip turns round at its ends."""
        frames = self.settings.frames
        start = int(rng.random() * max(1, length - frames + 1))
        times = (start + np.arange(frames)) % max(1, 2 * length - 2)
        times = np.where(times < length, times, 2 * length - 2 - times)
        return times[::-1] if rng.random() < 0.5 else times

    def _position(
        self, rng: np.random.Generator, lq: NDArray[np.uint8], time: int
    ) -> tuple[int, int]:
        size = self.settings.patch_px
        height, width = lq.shape[-2:]
        best, most = (0, 0), -1.0
        for _ in range(self.settings.candidates):
            top, left = (int(rng.random() * (n - size + 1)) for n in (height, width))
            green = torch.tensor(
                lq[time, 1, top : top + size, left : left + size], dtype=torch.float32
            )
            detail = (green.diff(dim=0).abs().mean() + green.diff(dim=1).abs().mean()).item()
            if detail > most:
                best, most = (top, left), detail
        return best


def _flip(
    lq: NDArray[np.uint8], gt: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Mirror and transpose both alike."""
    horizontal, vertical, transpose = rng.random(3) < 0.5
    if horizontal:
        lq, gt = lq[..., ::-1], gt[..., ::-1]
    if vertical:
        lq, gt = lq[..., ::-1, :], gt[..., ::-1, :]
    if transpose:
        lq, gt = lq.swapaxes(-1, -2), gt.swapaxes(-1, -2)
    return np.ascontiguousarray(lq), np.ascontiguousarray(gt)
