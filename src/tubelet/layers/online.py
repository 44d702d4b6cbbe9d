"""Run an online network over a clip, as the engine runs it over a stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tubelet.layers.recurrence import Edge

__all__ = ["Hidden", "OnlineStep", "run_online"]

Hidden = tuple[Tensor, ...]
"""State of an online network; at the start of the video it is None instead."""

OnlineStep = Callable[[Tensor, Hidden | None], tuple[Tensor, Hidden]]
"""Maps lq (B, 1 + lookahead, 3, H, W) and the last state to sr (B, 3, sH, sW) and the next one."""


def run_online(
    step: OnlineStep,
    lq: Tensor,
    hidden: Hidden | None = None,
    *,
    lookahead: int,
    after: Edge = Edge(),
) -> tuple[Tensor, Hidden]:
    """Restore a clip step by step.

    Args:
        step: Step of the network.
        lq: Low-quality clip, (B, T, 3, H, W), T at least 1.
        hidden: State after the frame before the clip; None where the video begins.
        lookahead: Number of frames after the current one that a step takes.
        after: `lookahead` frames after the clip, fewer where the video ends; the last frame of the
            video is repeated beyond its end.

    Returns:
        sr (B, T, 3, sH, sW), and the state after the last frame.
    """
    num_frames = lq.shape[1]
    following = after.frames[:lookahead]
    if following:
        lq = torch.cat([lq, torch.stack(following, 1)], 1)
    last = lq.shape[1] - 1
    out: list[Tensor] = []
    for t in range(num_frames):
        window = [min(t + i, last) for i in range(1 + lookahead)]
        sr, hidden = step(lq[:, window], hidden)
        out.append(sr)
    assert hidden is not None
    return torch.stack(out, 1), hidden
