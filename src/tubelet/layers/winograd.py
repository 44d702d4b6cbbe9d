"""3×3 convolution with half the multiplications: Winograd's F(4, 3) along the columns.

Four lines of the result, which look at six of the input, take six rows of products instead of four
times three:

    t = Bᵀ d          input transform: six sums of the six lines d
    mₚ = tₚ * uₚ      a 1×3 convolution of each, p = 0 … 5, with u = G w
    y = Aᵀ m          output transform: four sums of the six results

         4  0 −5  0  1  0           1/4     0    0           1  1  1  1  1  0
         0 −4 −4  1  1  0          −1/6  −1/6 −1/6           0  1 −1  2 −2  0
    Bᵀ = 0  4 −4 −1  1  0     G =  −1/6   1/6 −1/6     Aᵀ =  0  1  1  4  4  0
         0 −2 −1  2  1  0          1/24  1/12  1/6           0  1 −1  8 −8  1
         0  2 −1 −2  1  0          1/24 −1/12  1/6
         0 −4  0  5  0 −1             0     0   −1

The transforms are passes over memory and cost a part of what the products save; strips of lines
keep them within the cache. Along both axes there would be a quarter of the products, and more sums
than that is worth. Errors are some three times those of the plain sum, around 1e-5 of the values;
an infinite or undefined value spreads over its four lines.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Finish",
    "Region",
    "RowConvolution",
    "TransformCache",
    "TransformedInput",
    "convolve_columns",
]

_GROUP = 4  # lines of the result that are made together
_STRIP_BYTES = 2**20  # of one of the six sums, for each thread: about the cache of a core
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, -1),
)

RowConvolution = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""x (1, C, h, W), weight (C', C, 1, 3), bias, and a sum to add to in place, or None → conv(x), of
the same size."""

Region = tuple[slice, slice, slice]
"""Which images, channels and lines of (B, C, H, W)."""

Finish = Callable[[Tensor, Region], object]
"""Changes a part (1, C', h, W) of the result in place; the region tells which part it is."""

TransformedInput = Iterable[tuple[int, Tensor]]
"""Each p and tₚ (1, C, ⌈h / 4⌉, W) of some lines of a tensor."""

TransformCache = dict[tuple[int, int, int, int], TransformedInput]
"""Transforms that several convolutions share, half as large again as their inputs. The key is the
number of the part, the image, the first line and the line after the last: part i must be the same
tensor in all calls with this cache."""


def convolve_columns(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *,
    convolve_rows: RowConvolution,
    finish: Finish,
    cache: TransformCache | None = None,
) -> Tensor:
    """Convolve the concatenation of several tensors, padded by zeros to the same size.

    Args:
        parts: (B, C₁, H, W), (B, C₂, H, W), …, channels last: the channels of the input, in order.
        weight: (C', C, 3, 3).
        bias: (C',).
        convolve_rows: does the products.
        finish: called with every strip of the result while it is in the cache of the processor.
        cache: transforms of earlier calls, to which those of these parts are added; None keeps
            nothing.

    Returns:
        (B, C', H, W), channels last.
    """
    batch, _, height, width = parts[0].shape
    kernels = _transform_weight(weight, [part.shape[1] for part in parts])
    y = parts[0].new_empty(batch, height, width, len(weight)).movedim(3, 1)
    widest = max(len(weight), *(part.shape[1] for part in parts))
    rows = _strip_rows(width, widest, y.element_size())
    for image, top in itertools.product(range(batch), range(0, height, rows)):
        bottom = min(top + rows, height)
        transformed = [_transform(parts, i, image, top, bottom, cache) for i in range(len(parts))]
        region = (slice(image, image + 1), slice(None), slice(top, bottom))
        _output_transform(_multiply(transformed, kernels, bias, convolve_rows), y[region])
        finish(y[region], region)
    return y


def _strip_rows(width: int, channels: int, element_bytes: int) -> int:
    """Count the lines of a strip, a multiple of the group."""
    line_bytes = width * channels * element_bytes
    return _GROUP * max(1, _STRIP_BYTES * torch.get_num_threads() // line_bytes)


def _transform(
    parts: Sequence[Tensor], i: int, image: int, top: int, bottom: int, cache: TransformCache | None
) -> TransformedInput:
    """Transform lines top to bottom of one image of part i, or take them from the cache."""
    one_by_one = _input_transform(parts[i][image : image + 1], top, bottom)
    if cache is None:
        return one_by_one  # so that only one of the six sums is in memory
    key = (i, image, top, bottom)
    if key not in cache:
        cache[key] = tuple(one_by_one)
    return cache[key]


def _transform_weight(weight: Tensor, widths: Sequence[int]) -> list[list[Tensor]]:
    """Compute u = G w: the kernels (C', C, 1, 3) of each of the six sums, for each part."""
    planes = torch.einsum("pk,oikw->poiw", weight.new_tensor(_G), weight)[..., None, :]
    return [_split_channels_last(u, widths) for u in planes]


def _split_channels_last(weight: Tensor, widths: Sequence[int]) -> list[Tensor]:
    parts = torch.split(weight, list(widths), 1)
    return [part.contiguous(memory_format=torch.channels_last) for part in parts]


def _input_transform(part: Tensor, top: int, bottom: int) -> Iterator[tuple[int, Tensor]]:
    """Compute t = Bᵀ d of lines top to bottom, one sum after the other."""
    lines = part[:, :, top:bottom]
    missing = (top - bottom) % _GROUP
    d1, d2, d3, d4 = _group(functional.pad(lines, (0, 0, 0, missing)) if missing else lines)
    even = torch.sub(d4, d2, alpha=4)
    odd = torch.sub(d3, d1, alpha=4)
    yield 1, even + odd
    yield 2, even.sub_(odd)
    even = d4 - d2
    odd = d3 - d1
    t0 = torch.sub(even, d2, alpha=4)
    if top > 0:
        t0.add_(part[:, :, top - 1 : bottom - 1 : _GROUP], alpha=4)
    else:  # above the image is zero
        t0[:, :, 1:].add_(d4[:, :, :-1], alpha=4)
    yield 0, t0
    yield 3, torch.add(even, odd, alpha=2)
    yield 4, even.sub_(odd, alpha=2)
    t5 = odd.mul_(4).add_(d3)
    if bottom < part.shape[2]:  # and nothing is missing
        t5.sub_(part[:, :, top + _GROUP : bottom + _GROUP : _GROUP])
    else:  # below the image is zero
        t5[:, :, :-1].sub_(d1[:, :, 1:])
    yield 5, t5


def _multiply(
    transformed: Sequence[TransformedInput],
    kernels: Sequence[Sequence[Tensor]],
    bias: Tensor | None,
    convolve_rows: RowConvolution,
) -> list[Tensor]:
    """Compute m: six tensors (1, C', ⌈h / 4⌉, W)."""
    m: dict[int, Tensor] = {}
    for i, sums in enumerate(transformed):
        for p, t in sums:
            # The bias belongs to each line of y, and m₁ is in each of them once.
            own_bias = bias if (p, i) == (1, 0) else None
            m[p] = convolve_rows(t, kernels[p][i], own_bias, m.get(p))
    return [m[p] for p in range(len(_G))]


def _output_transform(m: Sequence[Tensor], y: Tensor) -> None:
    """Write y = Aᵀ m; the six tensors are overwritten."""
    missing = -y.shape[2] % _GROUP
    whole = functional.pad(y, (0, 0, 0, missing)) if missing else y
    y0, y1, y2, y3 = _group(whole)
    m0, m1, m2, m3, m4, m5 = m
    near_sum = m1 + m2
    near_difference = m1.sub_(m2)
    far_sum = m3 + m4
    far_difference = m3.sub_(m4)
    torch.add(near_difference, far_difference, alpha=2, out=y1)
    torch.add(near_sum, far_sum, alpha=4, out=y2)
    torch.add(m5.add_(near_difference), far_difference, alpha=8, out=y3)
    torch.add(near_sum.add_(far_sum), m0, out=y0)
    if missing:
        y.copy_(whole[:, :, :-missing])


def _group(lines: Tensor) -> tuple[Tensor, ...]:
    """Split lines (B, C, h, W) by their place in their group: four views (B, C, h / 4, W)."""
    return tuple(lines[:, :, i::_GROUP] for i in range(_GROUP))
