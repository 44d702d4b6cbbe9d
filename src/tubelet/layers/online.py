"""Run an online network over a clip, as the engine runs it over a stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Hidden", "Step", "run_online"]

Hidden = tuple[Tensor, ...]
Step = Callable[[Tensor, Hidden | None], tuple[Tensor, Hidden]]


def run_online(step: Step, lq: Tensor, *, lookahead: int) -> Tensor:
    """Restore a clip step by step.

    Args:
        step: of the network: lq (B, 1 + lookahead, 3, H, W) and the hidden state to sr (B, 3, sH, sW) and the next.
        lq: (B, T, 3, H, W).
        lookahead: frames after the current one that a step sees; beyond the end the last frame is repeated.

    Returns:
        (B, T, 3, sH, sW).
    """
    last = lq.shape[1] - 1
    hidden: Hidden | None = None
    out: list[Tensor] = []
    for t in range(lq.shape[1]):
        sr, hidden = step(lq[:, [min(t + i, last) for i in range(1 + lookahead)]], hidden)
        out.append(sr)
    return torch.stack(out, 1)
