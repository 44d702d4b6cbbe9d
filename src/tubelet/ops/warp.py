"""Backward warp: sample an image, or features, at the positions that a flow field gives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["backward_warp"]

_MIN_CHANNELS = 16
"""From this channel count on, gathering all channels of a pixel at once is faster than sampling
channel by channel."""


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
        mode: Interpolation between pixels.
        padding: Values outside of the image: zero, the nearest pixel of the border, or the mirrored
            image (about the centers of its outermost pixels).

    Returns:
        (B, C, H, W) in the type of `feat`. The positions are computed in float32 or better: half
        precision cannot distinguish neighboring pixels of a large image.

    Raises:
        ValueError: The shapes do not fit.

    Source: Jaderberg et al., NeurIPS 2015, Eq. 5; pixel (x, y) of the result is `feat` at
    (x + dx, y + dy).
    """
    if feat.ndim != 4 or flow.shape != (feat.shape[0], 2, *feat.shape[2:]):
        raise ValueError(
            f"flow {tuple(flow.shape)} does not fit feat {tuple(feat.shape)}; "
            "they are (B, 2, H, W) and (B, C, H, W)"
        )
    height, width = feat.shape[-2:]
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    lines = torch.arange(height, dtype=flow.dtype, device=flow.device)
    # Positions to sample, pixels: (B, H, W).
    x = columns + flow[:, 0]
    y = lines[:, None] + flow[:, 1]

    if _has_rows(feat):
        if mode == "bilinear" and padding != "reflection":
            return _gather_rows(feat, x, y, padding)
        if mode == "nearest" and padding != "reflection":
            return _copy_rows(feat, x, y, padding)

    # align_corners: -1 and 1 are the centers of the first and the last pixel.
    # (B, H, W, 2)
    grid = torch.stack(
        [
            x * (2 / max(width - 1, 1)) - 1,
            y * (2 / max(height - 1, 1)) - 1,
        ],
        -1,
    )
    sampled = functional.grid_sample(
        feat.to(grid.dtype),
        grid,
        mode=mode,
        padding_mode=padding,
        align_corners=True,
    )
    return sampled.to(feat.dtype)


def _has_rows(feat: Tensor) -> bool:
    """Return whether the channels of a pixel are adjacent in the memory of a CPU."""
    if feat.device.type != "cpu" or feat.shape[1] < _MIN_CHANNELS:
        return False
    return feat.is_contiguous(memory_format=torch.channels_last)


def _gather_rows(
    feat: Tensor,
    x: Tensor,
    y: Tensor,
    padding: Literal["zeros", "border"],
) -> Tensor:
    """Interpolate bilinearly: for every pixel, sum the weighted rows of its four neighbors.

    Args:
        feat: (B, C, H, W) in channels_last; used as a table of B·H·W rows of C values.
        x: (B, H, W), columns to sample, pixels.
        y: (B, H, W), lines to sample, pixels.
        padding: See `backward_warp`.

    Returns:
        (B, C, H, W) in channels_last.
    """
    batch, channels, height, width = feat.shape

    # Further out nothing changes; clamped positions cannot overflow as indexes.
    margin = 0 if padding == "border" else 2
    x = x.clamp(-margin, width - 1 + margin)
    y = y.clamp(-margin, height - 1 + margin)

    # The two columns and the two lines around each position, with their weights: (B, H, W).
    left = x.detach().floor()
    top = y.detach().floor()
    x_fraction = x - left
    y_fraction = y - top
    columns = (
        (left.long(), 1 - x_fraction),
        (left.long() + 1, x_fraction),
    )
    lines = (
        (top.long(), 1 - y_fraction),
        (top.long() + 1, y_fraction),
    )

    # Row of each of the four neighbors in the table, and its weight.
    images = torch.arange(batch, device=feat.device)[:, None, None]
    first_row = images * (height * width)
    indexes: list[Tensor] = []
    weights: list[Tensor] = []
    for line, line_weight in lines:
        for column, column_weight in columns:
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            indexes.append(
                first_row + line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            )
            weights.append(line_weight * column_weight * inside)

    table = feat.permute(0, 2, 3, 1).reshape(-1, channels)
    # (B·H·W, C)
    sampled = functional.embedding_bag(
        torch.stack(indexes, -1).view(-1, 4),
        table,
        mode="sum",
        per_sample_weights=torch.stack(weights, -1).view(-1, 4).to(feat.dtype),
    )
    return sampled.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _copy_rows(
    feat: Tensor,
    x: Tensor,
    y: Tensor,
    padding: Literal["zeros", "border"],
) -> Tensor:
    """Copy the row of the nearest pixel.

    Args:
        feat: (B, C, H, W) in channels_last; used as a table of B·H·W rows of C values.
        x: (B, H, W), columns to sample, pixels.
        y: (B, H, W), lines to sample, pixels.
        padding: See `backward_warp`.

    Returns:
        (B, C, H, W) in channels_last.
    """
    batch, channels, height, width = feat.shape
    # Further out nothing changes; clamped positions cannot overflow as indexes.
    column = x.round().clamp(-1, width).long()
    line = y.round().clamp(-1, height).long()
    images = torch.arange(batch, device=feat.device)[:, None, None]
    index = (images * height + line.clamp(0, height - 1)) * width + column.clamp(0, width - 1)
    table = feat.permute(0, 2, 3, 1).reshape(-1, channels)
    # (B·H·W, C)
    rows = table.index_select(0, index.flatten())
    if padding == "zeros":
        inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
        rows = rows.masked_fill(~inside.view(-1, 1), 0)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
