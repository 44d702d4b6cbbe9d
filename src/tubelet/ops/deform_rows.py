"""Deformable convolution on rows: columns are samples of rows of a table, strip by strip.

    x (B, C, H, W), strip of n output pixels (`row_sampler.py`):
      columns (n, G·K·C/G), samples at the moved taps
      out (n, O) = columns · weight + bias

A strip stays in the cache. Features in bfloat16 are sampled in float32, and multiplied in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tubelet.ops.row_sampler import RowSampler, Strip, Taps

__all__ = ["Reader", "convolve", "multiply", "read_offsets", "rows_of"]

Reader = Callable[[int, slice], Strip]
"""Reads the strip of an image of the batch and of a range of its output pixels."""


def rows_of(plane: Tensor, pixels: slice, scratch: Tensor | None = None) -> Tensor:
    """Read pixels of an image as rows.

    Args:
        plane: (C, H, W).
        pixels: Range of n pixels.
        scratch: (at least n, C), memory for rows that must be copied; None allocates.

    Returns:
        (n, C), the values of a pixel adjacent in memory.
    """
    rows = plane.permute(1, 2, 0).flatten(0, 1)[pixels]
    if rows.stride(1) == 1:
        return rows
    if scratch is None:
        return rows.contiguous()
    return scratch[: len(rows)].copy_(rows)


def read_offsets(offset: Tensor, mask: Tensor | None) -> Reader:
    """Return a reader of offsets (B, 2·G·K, H', W') and a mask (B, G·K, H', W')."""

    def read(image: int, pixels: slice) -> Strip:
        strip_mask = None if mask is None else rows_of(mask[image], pixels)
        return Strip(
            offset=rows_of(offset[image], pixels),
            gain=1.0,
            origin_y=None,
            origin_x=None,
            mask=strip_mask,
        )

    return read


def convolve(
    x: Tensor,
    read: Reader,
    out_size: tuple[int, int],
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
) -> Tensor:
    """Convolve with moved taps.

    Args:
        x: (B, C, H, W), float32 or bfloat16.
        read: Reader of the offsets and masks, float32.
        out_size: (H', W').
        weight: (O, C, kh, kw).
        bias: (O,).
        taps: Geometry of the kernel.

    Returns:
        (B, O, H', W') in the layout and number format of `x`.
    """
    batch, channels, height, width = x.shape
    out_channels = len(weight)
    num_pixels = out_size[0] * out_size[1]
    group_channels = channels // taps.groups
    channels_last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)

    # (O, G, C/G, K) → (G·K·C/G, O), in the order of the columns.
    matrix = weight.view(-1, taps.groups, group_channels, taps.num)
    matrix = matrix.permute(1, 3, 2, 0).reshape(-1, out_channels).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if channels_last:
        out = x.new_empty((batch, num_pixels, out_channels))
    else:
        out = x.new_empty((batch, out_channels, num_pixels))

    sampler = RowSampler((channels, height, width), taps, out_size, like=x)
    for image in range(batch):
        sampler.fill(x[image])
        for pixels in sampler.strips():
            columns = sampler.sample(read(image, pixels), pixels).to(x.dtype)
            if channels_last:
                multiply(columns, matrix, bias, out[image, pixels])
            else:
                multiply(
                    matrix.t(),
                    columns.t(),
                    None if bias is None else bias[:, None],
                    out[image, :, pixels],
                )

    if channels_last:
        return out.view(batch, *out_size, -1).permute(0, 3, 1, 2)
    return out.view(batch, -1, *out_size)


def multiply(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """Write a · b + bias into `out`."""
    if bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)
