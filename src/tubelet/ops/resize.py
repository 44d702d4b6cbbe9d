"""MATLAB-compatible resampling: the `imresize` that made the field's low-resolution datasets."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "AxisWeights",
    "Kernel",
    "axis_weights",
    "imresize",
    "resample",
    "weigh",
]

Kernel = Literal["bicubic", "bilinear", "lanczos3"]
# Outputs of one matrix multiplication: enough for the vector units, few enough to skip most zeros.
_BLOCK = 64


class _Block(NamedTuple):
    """The weights of a range of outputs, without the inputs that none of them uses."""

    start: int
    """First input."""
    stop: int
    """End of the inputs."""
    weights: Tensor
    """(inputs, outputs)."""


class AxisWeights(NamedTuple):
    """A linear map along one axis of an image, such as a resampling."""

    num_outputs: int
    blocks: list[_Block]
    """Blocks that cover the outputs in order."""

    def to(self, dtype: torch.dtype) -> AxisWeights:
        """Convert the weights, once for all images of this type."""
        blocks = [block._replace(weights=block.weights.to(dtype)) for block in self.blocks]
        return self._replace(blocks=blocks)


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
        if not _is_identity(height, out_height, scale[0]):
            x = _weigh_height(x, _cached_weights(height, out_height, scale[0], kernel))
        if rounding == "u8":
            x = _round_to_u8_levels(x)
        if not _is_identity(width, out_width, scale[1]):
            x = _weigh_width(x, _cached_weights(width, out_width, scale[1], kernel))
        if rounding == "u8":
            x = _round_to_u8_levels(x)
    return x.reshape(*batch_shape, out_height, out_width)


def axis_weights(
    in_size: int,
    out_size: int,
    *,
    kernel: Kernel = "bicubic",
    scale: float | None = None,
    then: Callable[[Tensor], Tensor] | None = None,
) -> AxisWeights:
    """Build the weights by which `resample` computes one axis.

    Args:
        in_size: Pixels along the axis of the input.
        out_size: Pixels along the axis of the output.
        kernel: See `resample`.
        scale: Factor of the size; None: the ratio of the sizes.
        then: Linear map along the first axis of a tensor, which follows the resampling, such as a
            reduction to half the size. Both become one map.
    """
    if scale is None:
        scale = out_size / in_size
    dense = _dense_weights(in_size, out_size, scale, kernel)
    if then is not None:
        dense = then(dense)
    return _cut_into_blocks(dense)


def weigh(
    x: Tensor,
    vertical: AxisWeights,
    horizontal: AxisWeights,
    rows: range | None = None,
) -> Tensor:
    """Apply linear maps along both axes of an image, height first.

    Args:
        x: (C, H, W), floating point.
        vertical: Weights along the height.
        horizontal: Weights along the width.
        rows: Rows of the result to compute; None: all.

    Returns:
        (C, rows, W').
    """
    with _full_precision(x):
        return _weigh_width(_weigh_height(x, vertical, rows), horizontal)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _round_to_u8_levels(x: Tensor) -> Tensor:
    """Round half up, as MATLAB does."""
    return (x.clamp(0, 1) * 255 + 0.5).floor() / 255


def _is_identity(in_size: int, out_size: int, scale: float) -> bool:
    return scale == 1 and out_size == in_size


def _weigh_height(x: Tensor, weights: AxisWeights, rows: range | None = None) -> Tensor:
    """Apply weights along the height of (N, H, W); compute all or only some rows."""
    if rows is None:
        rows = range(weights.num_outputs)
    weighted: list[Tensor] = []
    first_output = 0
    for block in weights.blocks:
        num_outputs = block.weights.shape[1]
        start = max(rows.start - first_output, 0)
        stop = min(rows.stop - first_output, num_outputs)
        first_output += num_outputs
        if start >= stop:
            continue
        lines = x[:, block.start : block.stop]
        used_weights = block.weights[:, start:stop].to(x)
        weighted.append(used_weights.T @ lines)
    return torch.cat(weighted, -2)


def _weigh_width(x: Tensor, weights: AxisWeights) -> Tensor:
    """Apply weights along the width of (N, H, W)."""
    num_images, height, _ = x.shape
    # (N·H, W)
    lines = x.flatten(0, 1)
    if x.requires_grad or torch.compiler.is_compiling():
        products = [lines[:, b.start : b.stop] @ b.weights.to(x) for b in weights.blocks]
        weighted = torch.cat(products, -1)
    else:
        # Each product is written to its place: a concatenation would copy the largest tensor.
        weighted = x.new_empty(len(lines), weights.num_outputs)
        first_output = 0
        for block in weights.blocks:
            num_outputs = block.weights.shape[1]
            torch.mm(
                lines[:, block.start : block.stop],
                block.weights.to(x),
                out=weighted[:, first_output : first_output + num_outputs],
            )
            first_output += num_outputs
    return weighted.view(num_images, height, weights.num_outputs)


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


def _cached_weights(
    in_size: int,
    out_size: int,
    scale: float,
    kernel: Kernel,
) -> AxisWeights:
    """Return the weights of all outputs; build them once."""
    if torch.compiler.is_compiling():
        # The values of a traced tensor are unknown, and it cannot be cached: one block for all.
        weights = _dense_weights(in_size, out_size, scale, kernel).T
        return AxisWeights(out_size, [_Block(0, in_size, weights)])
    return _built_weights(in_size, out_size, scale, kernel)


@lru_cache(maxsize=64)
def _built_weights(
    in_size: int,
    out_size: int,
    scale: float,
    kernel: Kernel,
) -> AxisWeights:
    # Tensors of inference mode could not be used in a training of the same process.
    with torch.inference_mode(mode=False):
        return axis_weights(in_size, out_size, kernel=kernel, scale=scale)


def _cut_into_blocks(dense: Tensor) -> AxisWeights:
    """Cut weights (outputs, inputs) into blocks, without the inputs that a block does not use."""
    blocks: list[_Block] = []
    for first_output in range(0, len(dense), _BLOCK):
        rows = dense[first_output : first_output + _BLOCK]
        used_inputs = rows.abs().sum(0).nonzero()
        start = int(used_inputs.min())
        stop = int(used_inputs.max()) + 1
        weights = rows[:, start:stop].T.contiguous()
        blocks.append(_Block(start, stop, weights))
    return AxisWeights(len(dense), blocks)


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
