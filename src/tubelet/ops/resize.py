"""MATLAB-compatible resampling: the `imresize` that the field's low-resolution sets were made with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Kernel", "imresize", "resample"]

Kernel = Literal["bicubic", "lanczos3"]
_BLOCK = 64  # outputs of one matrix product: wide enough for the vector units, narrow enough to skip most zeros
_Band = tuple[int, int, Tensor]
"""First input, end of inputs, and the matrix (inputs, outputs) of a block of outputs."""


def imresize(x: Tensor, scale: float, *, rounding: Literal["float", "u8"] = "float") -> Tensor:
    """Resize as MATLAB's `imresize(x, scale)` does: bicubic, antialiased when it shrinks.

    Args:
        x: (..., H, W), values in [0, 1], floating point, any device; differentiable.
        scale: factor of both sides; the output has ceil(H·scale) × ceil(W·scale) pixels.
        rounding: "float" leaves the result as it is (it can overshoot [0, 1]: protocol `bi`, clip and round once at
            the end); "u8" rounds half up to 8 bit after the height pass and after the width pass, as MATLAB does
            with uint8 images (protocol `bi-u8`: REDS' `sharp_bicubic`).

    Returns:
        (..., ceil(H·scale), ceil(W·scale)).

    Raises:
        ValueError: `scale` is not positive, or `x` is not floating point.

    Source: Keys, IEEE TASSP 1981, with a = -0.5; coordinates and edge rule of MATLAB R2019 `imresize`.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")
    height, width = (math.ceil(n * scale - 1e-9) for n in x.shape[-2:])
    return resample(x, (height, width), scale=(scale, scale), rounding=rounding)


def resample(
    x: Tensor,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] | None = None,
    kernel: Kernel = "bicubic",
    rounding: Literal["float", "u8"] = "float",
) -> Tensor:
    """Resize to an exact size with an antialiased kernel, height first.

    Args:
        x: (..., H, W), floating point.
        size: (H', W') of the result, pixels.
        scale: (vertical, horizontal) factors; by default the ratios of the sizes.
        kernel: "bicubic" (Keys, a = -0.5) or "lanczos3".
        rounding: see `imresize`.

    Returns:
        (..., H', W').

    Raises:
        ValueError: `x` is not floating point.
    """
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; resample takes floating point in [0, 1]")
    scale = scale or (size[0] / x.shape[-2], size[1] / x.shape[-1])
    lead = x.shape[:-2]
    x = _rows(x.reshape(-1, *x.shape[-2:]), size[0], scale[0], kernel)
    if rounding == "u8":
        x = _to_u8_levels(x)
    x = _columns(x, size[1], scale[1], kernel)
    return (_to_u8_levels(x) if rounding == "u8" else x).reshape(*lead, *size)


def _to_u8_levels(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255 + 0.5).floor() / 255  # MATLAB rounds half up


def _rows(x: Tensor, out_size: int, scale: float, kernel: Kernel) -> Tensor:
    """Resample the height of (N, H, W)."""
    if scale == 1 and out_size == x.shape[-2]:
        return x
    blocks = _weights(x.shape[-2], out_size, scale, kernel)
    return torch.cat([matrix.to(x).T @ x[:, low:high] for low, high, matrix in blocks], -2)


def _columns(x: Tensor, out_size: int, scale: float, kernel: Kernel) -> Tensor:
    """Resample the width of (N, H, W)."""
    if scale == 1 and out_size == x.shape[-1]:
        return x
    blocks = _weights(x.shape[-1], out_size, scale, kernel)
    lines = x.flatten(0, 1)
    out = torch.cat([lines[:, low:high] @ matrix.to(x) for low, high, matrix in blocks], -1)
    return out.reshape(*x.shape[:2], out_size)


def _symmetric(index: Tensor, size: int) -> Tensor:
    """Reflect positions into 0..size-1, the edge sample repeated."""
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _cubic(x: Tensor) -> Tensor:
    a, a2, a3 = x.abs(), x.abs() ** 2, x.abs() ** 3
    near = (1.5 * a3 - 2.5 * a2 + 1) * (a <= 1)
    return near + (-0.5 * a3 + 2.5 * a2 - 4 * a + 2) * ((a > 1) & (a <= 2))


def _lanczos3(x: Tensor) -> Tensor:
    return torch.sinc(x) * torch.sinc(x / 3) * (x.abs() < 3)


_KERNELS: dict[Kernel, tuple[Callable[[Tensor], Tensor], int]] = {
    "bicubic": (_cubic, 4),
    "lanczos3": (_lanczos3, 6),
}


def _taps(out_index: Tensor, scale: float, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Input positions (N, taps), not yet reflected, and their float64 weights, for outputs `out_index` (from 0)."""
    function, support = _KERNELS[kernel]
    shrink = min(scale, 1.0)
    width = support / shrink
    center = (out_index.double() + 0.5) / scale - 0.5
    left = torch.floor(center - width / 2)
    index = left[:, None] + torch.arange(math.ceil(width) + 2)
    weights = shrink * function(shrink * (center[:, None] - index))
    return index.long(), weights / weights.sum(1, keepdim=True)


def _weights(in_size: int, out_size: int, scale: float, kernel: Kernel) -> list[_Band]:
    """Return the weights of all outputs, block by block."""
    if torch.compiler.is_compiling():
        # A traced tensor can neither say where it is zero nor stay in a cache: one block for all.
        return [(0, in_size, _dense_weights(in_size, out_size, scale, kernel).T)]
    return _banded_weights(in_size, out_size, scale, kernel)


@lru_cache(maxsize=64)
def _banded_weights(in_size: int, out_size: int, scale: float, kernel: Kernel) -> list[_Band]:
    """Cut the weights into blocks of outputs, and leave out inputs that none of a block sees."""
    matrix = _dense_weights(in_size, out_size, scale, kernel)
    blocks: list[_Band] = []
    for start in range(0, out_size, _BLOCK):
        rows = matrix[start : start + _BLOCK]
        used = rows.abs().sum(0).nonzero()
        low, high = int(used.min()), int(used.max()) + 1
        blocks.append((low, high, rows[:, low:high].T.contiguous()))
    return blocks


def _dense_weights(in_size: int, out_size: int, scale: float, kernel: Kernel) -> Tensor:
    """Compute the weight of every input in every output: (outputs, inputs), float64."""
    index, weights = _taps(torch.arange(out_size), scale, kernel)
    index = _symmetric(index, in_size)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    return matrix.scatter_add_(1, index, weights)
