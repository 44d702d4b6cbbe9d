"""3×3 convolution with half the multiplications: Winograd's F(4, 3) along the height.

Four rows of the result depend on six rows d of the input and on three rows w of the kernel. They
take six 1×3 convolutions (written * below, along the width) instead of four times three:

    t = Bᵀ d          input transform: six combinations of the six input rows
    u = G w           weight transform: six combinations of the three kernel rows
    mₚ = tₚ * uₚ      a 1×3 convolution each, p = 0 … 5, summed over the input channels
    y = Aᵀ m          output transform: four combinations of the six results

         4  0 −5  0  1  0           1/4     0    0           1  1  1  1  1  0
         0 −4 −4  1  1  0          −1/6  −1/6 −1/6           0  1 −1  2 −2  0
    Bᵀ = 0  4 −4 −1  1  0     G =  −1/6   1/6 −1/6     Aᵀ =  0  1  1  4  4  0
         0 −2 −1  2  1  0          1/24  1/12  1/6           0  1 −1  8 −8  1
         0  2 −1 −2  1  0          1/24 −1/12  1/6
         0 −4  0  5  0 −1             0     0   −1

The last rows of Bᵀ and G have the opposite signs of the paper's, which cancel.

A group is four adjacent rows of the result, beginning at row 0, 4, 8, … A strip is one or more
adjacent groups of one image. The transforms are passes over memory and cost a part of the time that
the multiplications save; computing strip by strip keeps them within the CPU cache. F(4×4, 3×3),
along both axes, would need a quarter of the multiplications, but its extra additions cost more than
that saves.

The functions are for inference on CPUs: they work in place and compute no gradients. In float32,
rounding errors are about 1e-5 of the largest output, about three times those of direct convolution;
an infinity or NaN in the input spreads over all four rows of its group.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "TRANSFORM_BYTES",
    "Conv1x3",
    "Region",
    "StripEpilogue",
    "TransformCache",
    "TransformedInput",
    "winograd_conv3x3",
]

_GROUP_ROWS = 4
TRANSFORM_BYTES = 2**20
"""Target size of one of the six transforms of a strip, for each thread: about the L2 cache of a CPU
core."""
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, -1),
)

Conv1x3 = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""Maps x (1, C, h, W), weight (C', C, 1, 3), bias or None, and total or None to conv(x),
(1, C', h, W).

The convolution runs along the width, with one zero column of padding on each side. If there is a
total, (1, C', h, W), the result is added to it in place, and the total is returned. The caller may
overwrite the returned tensor.
"""

Region = tuple[slice, slice, slice]
"""Images, channels and rows of (B, C, H, W), as an index."""

StripEpilogue = Callable[[Tensor, Region], object]
"""Applies a final operation, such as an activation, in place to a finished strip (1, C', h, W).

The region is the index of the strip in the result, to select the same part of another tensor.
"""

TransformedInput = Iterable[tuple[int, Tensor]]
"""Pairs of p and tₚ, (1, C, ⌈h / 4⌉, W), of h rows of a tensor, in any order of p.

It may be a generator, so iterate over it only once.
"""

TransformCache = dict[tuple[int, int, int, int], tuple[tuple[int, Tensor], ...]]
"""Input transforms that several convolutions share.

They are 1.5 times as large as the inputs: six transforms with a quarter of the rows. The key is the
number of the input, the image, the first row of the strip and the row after the last. It does not
identify the tensor: input i must be the same, unmodified tensor in all calls with one cache. Calls
share transforms only where they cut the image into the same strips.
"""


def winograd_conv3x3(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *,
    conv1x3: Conv1x3,
    epilogue: StripEpilogue,
    cache: TransformCache | None = None,
) -> Tensor:
    """Compute a 3×3 convolution of tensors concatenated along the channels, without copying them.

    Its stride is 1 and its zero padding 1.

    Args:
        inputs: (B, C₁, H, W), (B, C₂, H, W), …, channels last: the channels of the input, in order.
        weight: (C', C₁ + C₂ + …, 3, 3).
        bias: (C',), or None.
        conv1x3: Computes the 1×3 convolutions.
        epilogue: Called with every finished strip of the result while it is in the CPU cache.
        cache: Input transforms of earlier calls; those that it lacks are added. None stores none.

    Returns:
        (B, C', H, W), channels last.
    """
    batch, _, height, width = inputs[0].shape
    out_channels = len(weight)
    in_channels = [x.shape[1] for x in inputs]
    kernels = _transform_weight(weight, in_channels)
    # Channels last: (B, H, W, C') → (B, C', H, W).
    y = inputs[0].new_empty(batch, height, width, out_channels)
    y = y.movedim(3, 1)

    max_channels = max(out_channels, *in_channels)
    strip_rows = _count_strip_rows(width, max_channels, y.element_size())
    for image, top in itertools.product(range(batch), range(0, height, strip_rows)):
        bottom = min(top + strip_rows, height)
        # Without a cache these are generators, which compute nothing yet.
        transformed: list[TransformedInput] = []
        for i in range(len(inputs)):
            transformed.append(
                _transform_input_cached(
                    inputs,
                    i,
                    image,
                    top,
                    bottom,
                    cache,
                )
            )

        region = (
            slice(image, image + 1),
            slice(None),
            slice(top, bottom),
        )
        m = _convolve_transforms(transformed, kernels, bias, conv1x3)
        _transform_output(m, y[region])
        # Freed before `epilogue`, which may allocate.
        del m
        epilogue(y[region], region)
    return y


def _count_strip_rows(width: int, channels: int, element_bytes: int) -> int:
    """Return the number of rows of a strip, a multiple of four."""
    # A transform has one row for each group.
    transform_row_bytes = width * channels * element_bytes
    num_groups = TRANSFORM_BYTES * torch.get_num_threads() // transform_row_bytes
    return _GROUP_ROWS * max(1, num_groups)


def _transform_weight(weight: Tensor, in_channels: Sequence[int]) -> list[list[Tensor]]:
    """Compute u = G w.

    Returns:
        `kernels[p][i]`, (C', Cᵢ, 1, 3), channels last: the part of uₚ that applies to input i.
    """
    # (6, C', C, 3) → (6, C', C, 1, 3)
    u = torch.einsum("pk,ockw->pocw", weight.new_tensor(_G), weight)[..., None, :]
    kernels: list[list[Tensor]] = []
    for u_p in u:
        kernel_by_input: list[Tensor] = []
        for kernel in torch.split(u_p, list(in_channels), 1):
            kernel_by_input.append(kernel.contiguous(memory_format=torch.channels_last))
        kernels.append(kernel_by_input)
    return kernels


def _transform_input_cached(
    inputs: Sequence[Tensor],
    i: int,
    image: int,
    top: int,
    bottom: int,
    cache: TransformCache | None,
) -> TransformedInput:
    """Transform rows top to bottom of one image of input i, or reuse the cached transforms."""
    transforms = _transform_input(inputs[i][image : image + 1], top, bottom)
    if cache is None:
        # The generator itself, so that only one of the six transforms is in memory at a time.
        return transforms
    key = (i, image, top, bottom)
    if key not in cache:
        cache[key] = tuple(transforms)
    return cache[key]


def _transform_input(x: Tensor, top: int, bottom: int) -> Iterator[tuple[int, Tensor]]:
    """Compute t = Bᵀ d of rows top to bottom, one transform after the other.

    d1 … d4 are the rows of a group, d0 is the row above it and d5 the row below it. Terms that two
    transforms have in common are computed once, and in place where a buffer is free again.

    Yields:
        p and tₚ, (1, C, ⌈h / 4⌉, W), in the order 1, 2, 0, 3, 4, 5.
    """
    rows = x[:, :, top:bottom]
    num_padding = -rows.shape[2] % _GROUP_ROWS
    if num_padding:
        rows = functional.pad(rows, (0, 0, 0, num_padding))
    d1, d2, d3, d4 = _rows_by_position(rows)

    # t1, t2 = (d4 − 4·d2) ± (d3 − 4·d1)
    even_12 = torch.sub(d4, d2, alpha=4)
    odd_12 = torch.sub(d3, d1, alpha=4)
    yield 1, even_12 + odd_12
    yield 2, even_12.sub_(odd_12)
    # The caller is done with t2: free the buffers.
    del even_12, odd_12

    even_34 = d4 - d2
    odd_34 = d3 - d1

    # t0 = 4·d0 − 5·d2 + d4
    t0 = torch.sub(even_34, d2, alpha=4)
    if top > 0:
        t0.add_(x[:, :, top - 1 : bottom - 1 : _GROUP_ROWS], alpha=4)
    else:
        # The row above the image is zero, so the first group has no d0 term. The d0 of each other
        # group is the d4 of the group above it.
        t0[:, :, 1:].add_(d4[:, :, :-1], alpha=4)
    yield 0, t0

    # t3, t4 = (d4 − d2) ± 2·(d3 − d1)
    yield 3, torch.add(even_34, odd_34, alpha=2)
    yield 4, even_34.sub_(odd_34, alpha=2)

    # t5 = 4·(d3 − d1) + d3 − d5
    t5 = odd_34.mul_(4).add_(d3)
    if bottom < x.shape[2]:
        # All groups of this strip are complete: only the last strip of an image can lack rows.
        t5.sub_(x[:, :, top + _GROUP_ROWS : bottom + _GROUP_ROWS : _GROUP_ROWS])
    else:
        # The row below the image is zero, so the last group has no d5 term. The d5 of each other
        # group is the d1 of the group below it.
        t5[:, :, :-1].sub_(d1[:, :, 1:])
    yield 5, t5


def _convolve_transforms(
    transformed: Sequence[TransformedInput],
    kernels: Sequence[Sequence[Tensor]],
    bias: Tensor | None,
    conv1x3: Conv1x3,
) -> list[Tensor]:
    """Compute mₚ = Σᵢ tₚ * uₚ over the inputs i, for p = 0 … 5.

    Returns:
        Six tensors (1, C', ⌈h / 4⌉, W).
    """
    m: dict[int, Tensor] = {}
    for i, transforms in enumerate(transformed):
        for p, t_p in transforms:
            # m₁ enters all four rows with factor 1 (column 1 of Aᵀ), so a bias that is added to it
            # once reaches each row once.
            bias_p = bias if p == 1 and i == 0 else None
            m[p] = conv1x3(t_p, kernels[p][i], bias_p, m.get(p))
    return [m[p] for p in range(len(_G))]


def _transform_output(m: Sequence[Tensor], y: Tensor) -> None:
    """Write y = Aᵀ m. The tensors m are used as scratch memory: their contents are lost."""
    num_padding = -y.shape[2] % _GROUP_ROWS
    # Where the last group is incomplete, it is computed completely in another tensor and cut.
    out = functional.pad(y, (0, 0, 0, num_padding)) if num_padding else y
    y0, y1, y2, y3 = _rows_by_position(out)
    m0, m1, m2, m3, m4, m5 = m
    sum_12 = m1 + m2
    difference_12 = m1.sub_(m2)
    sum_34 = m3 + m4
    difference_34 = m3.sub_(m4)
    torch.add(difference_12, difference_34, alpha=2, out=y1)
    torch.add(sum_12, sum_34, alpha=4, out=y2)
    torch.add(m5.add_(difference_12), difference_34, alpha=8, out=y3)
    torch.add(sum_12.add_(sum_34), m0, out=y0)
    if num_padding:
        y.copy_(out[:, :, :-num_padding])


def _rows_by_position(rows: Tensor) -> tuple[Tensor, ...]:
    """View (B, C, h, W) as four tensors (B, C, h / 4, W): all first rows of a group, and so on."""
    return tuple(rows[:, :, position::_GROUP_ROWS] for position in range(_GROUP_ROWS))
