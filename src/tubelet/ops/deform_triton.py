"""The columns of a deformable convolution on a GPU, by one Triton kernel.

    x (B, C, H, W), offset (B, 2·G·K, H', W'), mask (B, G·K, H', W') ── columns (B, C·K, H'·W')

A program computes a block of output pixels of one tap of one group of one image; all channels of
the group share the bilinear weights. Positions are float32 for features of any type: half precision
cannot distinguish neighbors.
"""

# Triton's language has no types.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tubelet.ops.row_sampler import Taps

__all__ = ["sample_columns"]

_BLOCK = 128
"""Output pixels of a program."""


def sample_columns(x: Tensor, offset: Tensor, mask: Tensor | None, taps: Taps) -> Tensor:
    """Sample an image at moved taps.

    Args:
        x: (B, C, H, W), float32, float16 or bfloat16.
        offset: (B, 2·G·K, H', W').
        mask: (B, G·K, H', W'); None: no factors.
        taps: Geometry of the kernel and number of groups.

    Returns:
        (B, C·K, H'·W') in the type of `x`.
    """
    batch, channels, height, width = x.shape
    out_h, out_w = offset.shape[2:]
    num_pixels = out_h * out_w
    x = x.contiguous()
    offset = offset.contiguous()
    # Without a mask the kernel needs some pointer, which it does not read.
    factors = offset if mask is None else mask.contiguous()
    columns = torch.empty(batch, channels * taps.num, num_pixels, dtype=x.dtype, device=x.device)

    num_blocks = -(-num_pixels // _BLOCK)
    programs = (num_blocks, taps.groups * taps.num, batch)
    kernel: Any = _sample
    kernel[programs](
        x,
        offset,
        factors,
        columns,
        height,
        width,
        num_pixels,
        out_w,
        *taps.stride,
        *taps.padding,
        *taps.dilation,
        groups=taps.groups,
        taps=taps.num,
        kernel_w=taps.kernel[1],
        depth=channels // taps.groups,
        has_mask=mask is not None,
        original=taps.border == "original",
        block=_BLOCK,
    )
    return columns


@triton.jit
def _load_pixel(plane_ptr, line, column, height, width, valid):
    inside = valid & (line >= 0) & (line < height) & (column >= 0) & (column < width)
    return tl.load(plane_ptr + line * width + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _sample(
    x_ptr,
    offset_ptr,
    mask_ptr,
    out_ptr,
    height,
    width,
    pixels,
    out_w,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    step_y,
    step_x,
    groups: tl.constexpr,
    taps: tl.constexpr,
    kernel_w: tl.constexpr,
    depth: tl.constexpr,
    has_mask: tl.constexpr,
    original: tl.constexpr,
    block: tl.constexpr,
):
    # `step` is the dilation, `depth` the channels of a group, `pixels` H'·W'.
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    # sample = group · K + tap
    sample = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    valid = pixel < pixels
    tap = sample % taps

    # Position of each sample, pixels.
    moved = offset_ptr + (image * groups * taps + sample) * 2 * pixels + pixel
    dy = tl.load(moved, mask=valid, other=0.0).to(tl.float32)
    dx = tl.load(moved + pixels, mask=valid, other=0.0).to(tl.float32)
    y = (pixel // out_w) * stride_y - pad_y + (tap // kernel_w) * step_y + dy
    x = (pixel % out_w) * stride_x - pad_x + (tap % kernel_w) * step_x + dx

    # Factor of each sample: zero where it sees no pixel of the image, otherwise the mask.
    visible = (y > -1) & (y < height) & (x > -1) & (x < width) & valid
    factor = tl.where(visible, 1.0, 0.0)
    if original:
        # The original border: zero outside, and the last pixel repeated beyond it.
        factor = tl.where((y >= 0) & (x >= 0), factor, 0.0)
        y = tl.minimum(y, height - 1.0)
        x = tl.minimum(x, width - 1.0)
    if has_mask:
        factors = mask_ptr + (image * groups * taps + sample) * pixels + pixel
        factor *= tl.load(factors, mask=valid, other=0.0).to(tl.float32)

    # Bilinear interpolation: the first of the two lines and columns, and the weight of the second.
    top = tl.where(visible, tl.floor(y), 0.0)
    left = tl.where(visible, tl.floor(x), 0.0)
    lower = tl.where(visible, y - top, 0.0)
    right = tl.where(visible, x - left, 0.0)
    line = top.to(tl.int32)
    column = left.to(tl.int32)
    for channel in range(depth):
        plane = image * groups * depth + (sample // taps) * depth + channel
        plane_ptr = x_ptr + plane * height * width
        upper_row = _load_pixel(plane_ptr, line, column, height, width, visible) * (1 - right)
        upper_row += _load_pixel(plane_ptr, line, column + 1, height, width, visible) * right
        lower_row = _load_pixel(plane_ptr, line + 1, column, height, width, visible) * (1 - right)
        lower_row += _load_pixel(plane_ptr, line + 1, column + 1, height, width, visible) * right
        value = (upper_row * (1 - lower) + lower_row * lower) * factor
        tl.store(
            out_ptr + (plane * taps + tap) * pixels + pixel,
            value.to(out_ptr.dtype.element_ty),
            mask=valid,
        )
