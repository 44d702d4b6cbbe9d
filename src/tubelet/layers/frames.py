"""Clips that are assembled frame by frame."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["stack_frames"]


def stack_frames(
    frames: Iterable[Tensor], num_frames: int, *, like: Tensor | None = None
) -> Tensor:
    """Stack frames as they are computed; each is freed once copied, unless autograd needs it.

    Args:
        frames: `num_frames` tensors (B, C, H, W).
        num_frames: T, at least 1.
        like: (B, T, C, H, W), whose memory layout the result takes; None: channels first.

    Returns:
        (B, T, C, H, W).
    """
    stream = iter(frames)
    first = next(stream)
    if first.requires_grad:
        return torch.stack([first, *stream], 1)

    if like is None:
        batch, *image_shape = first.shape
        clip = first.new_empty((batch, num_frames, *image_shape))
    else:
        clip = torch.empty_like(like)
    clip[:, 0] = first
    # Free it before the next one is computed.
    del first
    for t in range(1, num_frames):
        clip[:, t] = next(stream)
    return clip
