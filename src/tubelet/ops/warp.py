"""Backward warp: sample an image, or features, where a flow field points."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["backward_warp"]

_MIN_ROW = 16
"""Channels from which gathering whole rows of them is faster than sampling channel by channel."""


def backward_warp(
    feat: Tensor,
    flow: Tensor,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border", "reflection"] = "zeros",
) -> Tensor:
    """Sample `feat` where `flow` points; differentiable in both.

    Args:
        feat: (B, C, H, W).
        flow: (B, 2, H, W), pixels of `feat`, dx then dy.
        mode: how to sample between pixels.
        padding: what lies outside: zero, the nearest pixel of the edge, or the mirrored image (about the centers of
            its outermost pixels).

    Returns:
        (B, C, H, W) in the type of `feat`. The positions are computed in float32 or better: half precision cannot
        tell neighbors apart in a large image.

    Raises:
        ValueError: the shapes do not fit.

    Source: Jaderberg et al., NeurIPS 2015, Eq. 5; pixel (x, y) of the result is `feat` at (x + dx, y + dy).
    """
    if feat.ndim != 4 or flow.shape != (feat.shape[0], 2, *feat.shape[2:]):
        raise ValueError(
            f"flow {tuple(flow.shape)} does not fit feat {tuple(feat.shape)}; they are (B, 2, H, W) and (B, C, H, W)"
        )
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    height, width = feat.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]  # (B, H, W)
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    if mode == "bilinear" and padding != "reflection" and _has_rows(feat):
        return _gather_rows(feat, x, y, padding)
    # align_corners: -1 and 1 are the centers of the first and the last pixel
    grid = torch.stack(
        [x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1
    )  # (B, H, W, 2)
    sampled = functional.grid_sample(
        feat.to(grid.dtype), grid, mode=mode, padding_mode=padding, align_corners=True
    )
    return sampled.to(feat.dtype)


def _has_rows(feat: Tensor) -> bool:
    """Tell whether a pixel's channels lie together in the memory of a CPU."""
    last = feat.is_contiguous(memory_format=torch.channels_last)
    return feat.device.type == "cpu" and feat.shape[1] >= _MIN_ROW and last


def _gather_rows(feat: Tensor, x: Tensor, y: Tensor, padding: Literal["zeros", "border"]) -> Tensor:
    """Sum, for every pixel, the rows of its four neighbors with their bilinear weights.

    Args:
        feat: (B, C, H, W) in channels_last; seen as a table of B·H·W rows of C values.
        x: (B, H, W), columns to sample, pixels.
        y: (B, H, W), lines to sample, pixels.
        padding: see `backward_warp`.

    Returns:
        (B, C, H, W) in channels_last.
    """
    batch, channels, height, width = feat.shape
    beyond = 0 if padding == "border" else 2  # further out nothing changes: indexes cannot overflow
    x, y = x.clamp(-beyond, width - 1 + beyond), y.clamp(-beyond, height - 1 + beyond)
    left, top = x.detach().floor(), y.detach().floor()
    right_part, lower_part = x - left, y - top
    first = torch.arange(batch, device=feat.device)[:, None, None] * (height * width)
    columns = ((left.long(), 1 - right_part), (left.long() + 1, right_part))
    lines = ((top.long(), 1 - lower_part), (top.long() + 1, lower_part))
    indexes: list[Tensor] = []
    weights: list[Tensor] = []
    for line, line_weight in lines:
        for column, column_weight in columns:
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            indexes.append(first + line.clamp(0, height - 1) * width + column.clamp(0, width - 1))
            weights.append(line_weight * column_weight * inside)
    rows = feat.permute(0, 2, 3, 1).reshape(-1, channels)
    sampled = functional.embedding_bag(
        torch.stack(indexes, -1).view(-1, 4),
        rows,
        mode="sum",
        per_sample_weights=torch.stack(weights, -1).view(-1, 4).to(feat.dtype),
    )
    return sampled.view(batch, height, width, channels).permute(0, 3, 1, 2)
