"""MATLAB-compatible resampling: the `imresize` that made the field's low-resolution datasets."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Kernel", "imresize", "resample", "resample_rows"]

Kernel = Literal["bicubic", "bilinear", "lanczos3"]
# Outputs of one matrix multiplication: enough for the vector units, few enough to skip most zeros.
_BLOCK = 64


class _Block(NamedTuple):
    """The weights of a range of outputs, restricted to the inputs that they use."""

    start: int
    """First input."""
    stop: int
    """End of the inputs."""
    weights: Tensor
    """(inputs, outputs)."""


def imresize(x: Tensor, scale: float, *, rounding: Literal["float", "u8"] = "float") -> Tensor:
    """Resize as MATLAB's `imresize(x, scale)` does: bicubic, antialiased when it shrinks.

    Args:
        x: (..., H, W), values in [0, 1], floating point, any device; differentiable.
        scale: Factor of both sides; the output has ceil(H·scale) × ceil(W·scale) pixels.
        rounding: "float" does not round (values can overshoot [0, 1]: protocol `bi`, clip and round
            once at the end); "u8" rounds half up to 8 bit after the height pass and after the width
            pass, as MATLAB does with uint8 images (protocol `bi-u8`: REDS' `sharp_bicubic`).

    Returns:
        (..., ceil(H·scale), ceil(W·scale)).

    Raises:
        ValueError: `scale` is not positive, or `x` is not floating point.

    Source: Keys, IEEE TASSP 1981, with a = -0.5; coordinates and edge rule of MATLAB R2019
    `imresize`.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")
    height, width = x.shape[-2:]
    # The tolerance absorbs the rounding error of exact products, such as 100 · 1.1.
    out_height = math.ceil(height * scale - 1e-9)
    out_width = math.ceil(width * scale - 1e-9)
    return resample(
        x,
        (out_height, out_width),
        scale=(scale, scale),
        rounding=rounding,
    )


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
        scale: (vertical, horizontal) factors; None: the ratios of the sizes.
        kernel: "bicubic" (Keys, a = -0.5), "bilinear" or "lanczos3".
        rounding: See `imresize`.

    Returns:
        (..., H', W').

    Raises:
        ValueError: `x` is not floating point.
    """
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; resample takes floating point in [0, 1]")
    *batch_shape, height, width = x.shape
    out_height, out_width = size
    scale = scale or (out_height / height, out_width / width)

    # (N, H, W)
    x = x.reshape(-1, height, width)
    # Autocast would compute the matrix products in half precision.
    with _full_precision(x):
        x = _resample_height(x, out_height, scale[0], kernel)
        if rounding == "u8":
            x = _round_to_u8_levels(x)
        x = _resample_width(x, out_width, scale[1], kernel)
        if rounding == "u8":
            x = _round_to_u8_levels(x)
    return x.reshape(*batch_shape, out_height, out_width)


def resample_rows(
    x: Tensor,
    size: tuple[int, int],
    start: int,
    stop: int,
    *,
    kernel: Kernel = "bicubic",
) -> Tensor:
    """Compute only some rows of `resample(x, size, kernel=kernel)`.

    Args:
        x: (C, H, W), floating point.
        size: (H', W') of the whole result, pixels.
        start: First row.
        stop: Row after the last.
        kernel: See `resample`.

    Returns:
        (C, stop - start, W').
    """
    _, height, width = x.shape
    out_height, out_width = size
    with _full_precision(x):
        rows = _resample_height(
            x,
            out_height,
            out_height / height,
            kernel,
            rows=range(start, stop),
        )
        return _resample_width(rows, out_width, out_width / width, kernel)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _round_to_u8_levels(x: Tensor) -> Tensor:
    """Round half up, as MATLAB does."""
    return (x.clamp(0, 1) * 255 + 0.5).floor() / 255


def _resample_height(
    x: Tensor,
    out_size: int,
    scale: float,
    kernel: Kernel,
    rows: range | None = None,
) -> Tensor:
    """Resample the height of (N, H, W), or compute only some rows of the result."""
    in_size = x.shape[-2]
    rows = rows or range(out_size)
    if scale == 1 and out_size == in_size:
        return x[:, rows.start : rows.stop]
    resampled: list[Tensor] = []
    first_output = 0
    for block in _weights(in_size, out_size, scale, kernel):
        num_outputs = block.weights.shape[1]
        start = max(rows.start - first_output, 0)
        stop = min(rows.stop - first_output, num_outputs)
        first_output += num_outputs
        if start >= stop:
            continue
        lines = x[:, block.start : block.stop]
        weights = block.weights[:, start:stop].to(x)
        resampled.append(weights.T @ lines)
    return torch.cat(resampled, -2)


def _resample_width(
    x: Tensor,
    out_size: int,
    scale: float,
    kernel: Kernel,
) -> Tensor:
    """Resample the width of (N, H, W)."""
    num_images, height, in_size = x.shape
    if scale == 1 and out_size == in_size:
        return x
    # (N·H, W)
    lines = x.flatten(0, 1)
    blocks = _weights(in_size, out_size, scale, kernel)
    if x.requires_grad or torch.compiler.is_compiling():
        products = [lines[:, b.start : b.stop] @ b.weights.to(x) for b in blocks]
        resampled = torch.cat(products, -1)
    else:
        # Each product is written to its place: a concatenation would copy the largest tensor.
        resampled = x.new_empty(len(lines), out_size)
        first_output = 0
        for block in blocks:
            num_outputs = block.weights.shape[1]
            torch.mm(
                lines[:, block.start : block.stop],
                block.weights.to(x),
                out=resampled[:, first_output : first_output + num_outputs],
            )
            first_output += num_outputs
    return resampled.view(num_images, height, out_size)


# Kernels.


def _cubic(x: Tensor) -> Tensor:
    """Evaluate Keys' kernel, a = -0.5: one cubic up to 1, another from 1 to 2."""
    a = x.abs()
    a2 = x.abs() ** 2
    a3 = x.abs() ** 3
    inner = 1.5 * a3 - 2.5 * a2 + 1
    outer = -0.5 * a3 + 2.5 * a2 - 4 * a + 2
    return inner * (a <= 1) + outer * ((a > 1) & (a <= 2))


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _lanczos3(x: Tensor) -> Tensor:
    return torch.sinc(x) * torch.sinc(x / 3) * (x.abs() < 3)


_KERNELS: dict[Kernel, tuple[Callable[[Tensor], Tensor], int]] = {
    "bicubic": (_cubic, 4),
    "bilinear": (_linear, 2),
    "lanczos3": (_lanczos3, 6),
}
"""Function and support (inputs) of each kernel."""


# Weights.


def _weights(
    in_size: int,
    out_size: int,
    scale: float,
    kernel: Kernel,
) -> list[_Block]:
    """Return the weights of all outputs, block by block."""
    if torch.compiler.is_compiling():
        # The values of a traced tensor are unknown, and it cannot be cached: one block for all.
        weights = _dense_weights(in_size, out_size, scale, kernel).T
        return [_Block(0, in_size, weights)]
    return _banded_weights(in_size, out_size, scale, kernel)


@lru_cache(maxsize=64)
def _banded_weights(
    in_size: int,
    out_size: int,
    scale: float,
    kernel: Kernel,
) -> list[_Block]:
    """Cut the weights into blocks of outputs, without the inputs that a block does not use."""
    dense = _dense_weights(in_size, out_size, scale, kernel)
    blocks: list[_Block] = []
    for first_output in range(0, out_size, _BLOCK):
        rows = dense[first_output : first_output + _BLOCK]
        used_inputs = rows.abs().sum(0).nonzero()
        start = int(used_inputs.min())
        stop = int(used_inputs.max()) + 1
        weights = rows[:, start:stop].T.contiguous()
        blocks.append(_Block(start, stop, weights))
    return blocks


def _dense_weights(
    in_size: int,
    out_size: int,
    scale: float,
    kernel: Kernel,
) -> Tensor:
    """Compute the weight of every input in every output: (outputs, inputs), float64."""
    index, weights = _taps(torch.arange(out_size), scale, kernel)
    index = _reflect(index, in_size)
    dense = torch.zeros(out_size, in_size, dtype=torch.float64)
    # Reflected taps can share an input: their weights are added.
    return dense.scatter_add_(1, index, weights)


def _taps(out_index: Tensor, scale: float, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Compute the inputs that contribute to each output.

    Args:
        out_index: (N,), outputs, from 0.
        scale: Factor of the size.
        kernel: Interpolation kernel.

    Returns:
        Input positions (N, taps), not yet reflected at the edges, and their weights (N, taps),
        float64.
    """
    function, support = _KERNELS[kernel]
    # Antialiasing: the kernel is stretched when the image shrinks.
    shrink = min(scale, 1.0)
    width = support / shrink
    center = (out_index.double() + 0.5) / scale - 0.5
    left = torch.floor(center - width / 2)
    num_taps = math.ceil(width) + 2
    index = left[:, None] + torch.arange(num_taps)
    weights = shrink * function(shrink * (center[:, None] - index))
    return index.long(), weights / weights.sum(1, keepdim=True)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Reflect positions into 0..size-1, the edge sample repeated."""
    index = index.remainder(2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)
