"""Clips that are made frame by frame."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["stack_frames"]


def stack_frames(frames: Iterable[Tensor], num_frames: int) -> Tensor:
    """Stack frames as they come; without gradients, each is freed once it is copied to its place.

    Args:
        frames: `num_frames` tensors (B, C, H, W).
        num_frames: T, at least 1.

    Returns:
        (B, T, C, H, W).
    """
    if torch.is_grad_enabled():
        return torch.stack(list(frames), 1)
    stream = iter(frames)
    first = next(stream)
    clip = first.new_empty(first.shape[0], num_frames, *first.shape[1:])
    clip[:, 0] = first
    del first  # before the next one is made
    for t in range(1, num_frames):
        clip[:, t] = next(stream)
    return clip
