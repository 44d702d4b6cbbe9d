"""Clips that are made frame by frame."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["stack_frames"]


def stack_frames(
    frames: Iterable[Tensor], num_frames: int, *, like: Tensor | None = None
) -> Tensor:
    """Stack frames as they come; each is freed once it is copied, unless a graph needs it.

    Args:
        frames: `num_frames` tensors (B, C, H, W).
        num_frames: T, at least 1.
        like: (B, T, C, H, W), whose layout in memory the copies take; None is channels first.

    Returns:
        (B, T, C, H, W).
    """
    stream = iter(frames)
    first = next(stream)
    if first.requires_grad:
        return torch.stack([first, *stream], 1)
    shape = (first.shape[0], num_frames, *first.shape[1:])
    clip = first.new_empty(shape) if like is None else torch.empty_like(like)
    clip[:, 0] = first
    del first  # before the next one is made
    for t in range(1, num_frames):
        clip[:, t] = next(stream)
    return clip
