"""The columns of a deformable convolution on a GPU: one Triton kernel, bilinear weights shared by a group's channels.

    x (B, C, H, W), offset (B, 2·G·K, H', W'), mask (B, G·K, H', W') ── columns (B, C·K, H'·W')

A program fills a block of output pixels of one tap of one group of one image. Positions are float32 whatever the
features are: half precision cannot tell neighbors apart.
"""

# Triton's language has no types.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportMissingTypeStubs=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tubelet.ops.deform_rows import Taps

__all__ = ["sample_columns"]

_BLOCK = 128
"""Output pixels of a program."""


def sample_columns(x: Tensor, offset: Tensor, mask: Tensor | None, taps: Taps) -> Tensor:
    """Sample x (B, C, H, W) at the moved taps: (B, C·K, H'·W') in the type of x.

    Args:
        x: (B, C, H, W), float32, float16 or bfloat16.
        offset: (B, 2·G·K, H', W').
        mask: (B, G·K, H', W'); None is one.
        taps: where the taps lie, and how many groups there are.
    """
    batch, channels, height, width = x.shape
    out_h, out_w = offset.shape[2:]
    x, offset = x.contiguous(), offset.contiguous()
    factors = offset if mask is None else mask.contiguous()
    columns = torch.empty(batch, channels * taps.num, out_h * out_w, dtype=x.dtype, device=x.device)
    programs = (-(-out_h * out_w // _BLOCK), taps.groups * taps.num, batch)
    kernel: Any = _sample
    kernel[programs](
        *(x, offset, factors, columns, height, width, out_h * out_w, out_w),
        *(*taps.stride, *taps.padding, *taps.dilation),
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
def _corner(plane_ptr, line, column, height, width, valid):
    inside = valid & (line >= 0) & (line < height) & (column >= 0) & (column < width)
    return tl.load(plane_ptr + line * width + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _sample(
    x_ptr, offset_ptr, mask_ptr, out_ptr, height, width, pixels, out_w,
    stride_y, stride_x, pad_y, pad_x, step_y, step_x,
    groups: tl.constexpr, taps: tl.constexpr, kernel_w: tl.constexpr, depth: tl.constexpr,
    has_mask: tl.constexpr, original: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    sample = tl.program_id(1)  # group · K + tap
    image = tl.program_id(2).to(tl.int64)
    valid = pixel < pixels
    tap = sample % taps
    moved = offset_ptr + (image * groups * taps + sample) * 2 * pixels + pixel
    dy = tl.load(moved, mask=valid, other=0.0).to(tl.float32)
    dx = tl.load(moved + pixels, mask=valid, other=0.0).to(tl.float32)
    y = (pixel // out_w) * stride_y - pad_y + (tap // kernel_w) * step_y + dy
    x = (pixel % out_w) * stride_x - pad_x + (tap % kernel_w) * step_x + dx
    near = (y > -1) & (y < height) & (x > -1) & (x < width) & valid
    factor = tl.where(near, 1.0, 0.0)
    if original:
        factor = tl.where((y >= 0) & (x >= 0), factor, 0.0)
        y = tl.minimum(y, height - 1.0)
        x = tl.minimum(x, width - 1.0)
    if has_mask:
        factors = mask_ptr + (image * groups * taps + sample) * pixels + pixel
        factor *= tl.load(factors, mask=valid, other=0.0).to(tl.float32)
    top = tl.where(near, tl.floor(y), 0.0)
    left = tl.where(near, tl.floor(x), 0.0)
    lower = tl.where(near, y - top, 0.0)
    right = tl.where(near, x - left, 0.0)
    line = top.to(tl.int32)
    column = left.to(tl.int32)
    for channel in range(depth):
        plane = image * groups * depth + (sample // taps) * depth + channel
        plane_ptr = x_ptr + plane * height * width
        upper_row = _corner(plane_ptr, line, column, height, width, near) * (1 - right)
        upper_row += _corner(plane_ptr, line, column + 1, height, width, near) * right
        lower_row = _corner(plane_ptr, line + 1, column, height, width, near) * (1 - right)
        lower_row += _corner(plane_ptr, line + 1, column + 1, height, width, near) * right
        value = (upper_row * (1 - lower) + lower_row * lower) * factor
        tl.store(
            out_ptr + (plane * taps + tap) * pixels + pixel,
            value.to(out_ptr.dtype.element_ty),
            mask=valid,
        )
