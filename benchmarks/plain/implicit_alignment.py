"""The alignment of IART in the published formulation: gather the four neighbors, then project each of them.

With the weights of ours, and equal to it within rounding. The comparison of `benchmarks/zoo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tubelet.layers.implicit_alignment import ImplicitAlignment, sine_code

__all__ = ["plain_implicit_alignment"]


def plain_implicit_alignment(
    layer: ImplicitAlignment,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function of the state and current (B, C, H, W) and the flow (B, 2, H, W), for all pixels at once."""

    def align(state: Tensor, flow: Tensor, current: Tensor) -> Tensor:
        batch, channels, height, width = current.shape
        lines, columns = torch.meshgrid(
            torch.arange(height, device=flow.device),
            torch.arange(width, device=flow.device),
            indexing="ij",
        )
        target = torch.stack([lines, columns], -1) + flow.flip(1).permute(0, 2, 3, 1)
        corner = target.floor()
        code = sine_code((target - corner) / (2 + 1e-6) * 2 * math.pi, channels)
        query = (current.permute(0, 2, 3, 1) + code).reshape(-1, 1, channels)

        places = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], device=flow.device)
        index = corner.long()[..., None, :] + places  # (B, H, W, 4, 2)
        line = index[..., 0].clamp(0, height - 1)
        column = index[..., 1].clamp(0, width - 1)
        images = torch.arange(batch, device=flow.device)[:, None, None, None]
        neighbors = state.permute(0, 2, 3, 1)[images, line, column]  # (B, H, W, 4, C)
        neighbors = neighbors.reshape(-1, 4, channels) + layer.position_bias

        q, k, v = (
            linear(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for linear, x in ((layer.q, query), (layer.k, neighbors), (layer.v, neighbors))
        )
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(batch, height, width, channels)
        return out.permute(0, 3, 1, 2)

    return align
