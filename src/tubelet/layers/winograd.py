"""3×3 convolution with half the multiplications: Winograd's F(4, 3) along the columns.

Four lines of the result depend on six of the input. They take six 1×3 convolutions instead of four
times three:

    t = Bᵀ d          input transform: six combinations of the six input lines d
    mₚ = tₚ * uₚ      a 1×3 convolution of each, p = 0 … 5, with u = G w
    y = Aᵀ m          output transform: four combinations of the six results

         4  0 −5  0  1  0           1/4     0    0           1  1  1  1  1  0
         0 −4 −4  1  1  0          −1/6  −1/6 −1/6           0  1 −1  2 −2  0
    Bᵀ = 0  4 −4 −1  1  0     G =  −1/6   1/6 −1/6     Aᵀ =  0  1  1  4  4  0
         0 −2 −1  2  1  0          1/24  1/12  1/6           0  1 −1  8 −8  1
         0  2 −1 −2  1  0          1/24 −1/12  1/6
         0 −4  0  5  0 −1             0     0   −1

The transforms are passes over memory and cost a part of the time that the multiplications save;
strips of lines keep them within the cache. Along both axes there would be a quarter of the
multiplications, and more additions than that is worth. Errors are some three times those of the
direct sum, around 1e-5 of the values; an infinite or undefined value spreads over its four lines.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Conv1x3",
    "Region",
    "StripEpilogue",
    "TransformCache",
    "TransformedInput",
    "winograd_conv3x3",
]

# Lines of the result that are computed together.
_GROUP = 4
# Size of one of the six transforms for each thread: about the cache of a core.
_STRIP_BYTES = 2**20
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, -1),
)

Conv1x3 = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""x (1, C, h, W), weight (C', C, 1, 3), bias, and a total to add to in place, or None →
conv(x), (1, C', h, W)."""

Region = tuple[slice, slice, slice]
"""Images, channels and lines of (B, C, H, W), as an index."""

StripEpilogue = Callable[[Tensor, Region], object]
"""Changes a strip (1, C', h, W) of the result in place; the region is its index in the result."""

TransformedInput = Iterable[tuple[int, Tensor]]
"""Each p and tₚ (1, C, ⌈h / 4⌉, W) of some lines of a tensor."""

TransformCache = dict[tuple[int, int, int, int], TransformedInput]
"""Input transforms that several convolutions share, 1.5 times as large as their inputs. The key is
the number of the input, the image, the first line and the line after the last: input i must be the
same tensor in all calls with this cache."""


def winograd_conv3x3(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *,
    conv1x3: Conv1x3,
    epilogue: StripEpilogue,
    cache: TransformCache | None = None,
) -> Tensor:
    """Convolve the concatenation of several tensors, padded by zeros to the same size.

    Args:
        inputs: (B, C₁, H, W), (B, C₂, H, W), …, channels last: the channels of the input, in order.
        weight: (C', C, 3, 3).
        bias: (C',).
        conv1x3: Computes the 1×3 convolutions.
        epilogue: Called with every strip of the result while it is in the cache of the processor.
        cache: Transforms of earlier calls, to which those of these inputs are added; None stores
            none.

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
    strip_lines = _count_strip_lines(width, max_channels, y.element_size())
    for image, top in itertools.product(range(batch), range(0, height, strip_lines)):
        bottom = min(top + strip_lines, height)
        transformed: list[TransformedInput] = []
        for i in range(len(inputs)):
            transformed.append(
                _transform(
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
        m = _multiply(transformed, kernels, bias, conv1x3)
        _output_transform(m, y[region])
        # Freed before `epilogue`, which may allocate.
        del m
        epilogue(y[region], region)
    return y


def _count_strip_lines(width: int, channels: int, element_bytes: int) -> int:
    """Return the number of lines of a strip, a multiple of the group."""
    line_bytes = width * channels * element_bytes
    num_groups = _STRIP_BYTES * torch.get_num_threads() // line_bytes
    return _GROUP * max(1, num_groups)


def _transform_weight(weight: Tensor, in_channels: Sequence[int]) -> list[list[Tensor]]:
    """Compute u = G w.

    Returns:
        `kernels[p][i]` (C', Cᵢ, 1, 3), channels last: the kernel of transform p of input i.
    """
    u = torch.einsum("pk,oikw->poiw", weight.new_tensor(_G), weight)[..., None, :]
    kernels: list[list[Tensor]] = []
    for u_p in u:
        by_input: list[Tensor] = []
        for kernel in torch.split(u_p, list(in_channels), 1):
            by_input.append(kernel.contiguous(memory_format=torch.channels_last))
        kernels.append(by_input)
    return kernels


def _transform(
    inputs: Sequence[Tensor],
    i: int,
    image: int,
    top: int,
    bottom: int,
    cache: TransformCache | None,
) -> TransformedInput:
    """Transform lines top to bottom of one image of input i, or take them from the cache."""
    transforms = _input_transform(inputs[i][image : image + 1], top, bottom)
    if cache is None:
        # Lazily, so that only one of the six transforms is in memory.
        return transforms
    key = (i, image, top, bottom)
    if key not in cache:
        cache[key] = tuple(transforms)
    return cache[key]


def _input_transform(x: Tensor, top: int, bottom: int) -> Iterator[tuple[int, Tensor]]:
    """Compute t = Bᵀ d of lines top to bottom, one transform after the other.

    The six input lines d0 … d5 of a group begin one line above it. Terms that two transforms have
    in common are computed once, and in place where a buffer is free again.
    """
    lines = x[:, :, top:bottom]
    missing = (top - bottom) % _GROUP
    if missing:
        lines = functional.pad(lines, (0, 0, 0, missing))
    d1, d2, d3, d4 = _split_groups(lines)

    # t1, t2 = (d4 − 4·d2) ± (d3 − 4·d1)
    even = torch.sub(d4, d2, alpha=4)
    odd = torch.sub(d3, d1, alpha=4)
    yield 1, even + odd
    yield 2, even.sub_(odd)

    # t0 = 4·d0 − 5·d2 + d4
    even = d4 - d2
    odd = d3 - d1
    t0 = torch.sub(even, d2, alpha=4)
    if top > 0:
        t0.add_(x[:, :, top - 1 : bottom - 1 : _GROUP], alpha=4)
    else:
        # Above the image is zero: d0 of the first group is left out; that of the others is d4 of
        # the group above.
        t0[:, :, 1:].add_(d4[:, :, :-1], alpha=4)
    yield 0, t0

    # t3, t4 = (d4 − d2) ± 2·(d3 − d1)
    yield 3, torch.add(even, odd, alpha=2)
    yield 4, even.sub_(odd, alpha=2)

    # t5 = 4·(d3 − d1) + d3 − d5
    t5 = odd.mul_(4).add_(d3)
    if bottom < x.shape[2]:
        # The strip consists of full groups: only the last strip of an image can lack lines.
        t5.sub_(x[:, :, top + _GROUP : bottom + _GROUP : _GROUP])
    else:
        # Below the image is zero; d5 of the other groups is d1 of the group below.
        t5[:, :, :-1].sub_(d1[:, :, 1:])
    yield 5, t5


def _multiply(
    transformed: Sequence[TransformedInput],
    kernels: Sequence[Sequence[Tensor]],
    bias: Tensor | None,
    conv1x3: Conv1x3,
) -> list[Tensor]:
    """Compute m, six tensors (1, C', ⌈h / 4⌉, W): sums over the inputs."""
    m: dict[int, Tensor] = {}
    for i, transforms in enumerate(transformed):
        for p, t in transforms:
            # m₁ is in each line of y once: with the bias in it, each line gets the bias once.
            sum_bias = bias if p == 1 and i == 0 else None
            m[p] = conv1x3(t, kernels[p][i], sum_bias, m.get(p))
    return [m[p] for p in range(len(_G))]


def _output_transform(m: Sequence[Tensor], y: Tensor) -> None:
    """Write y = Aᵀ m; the six tensors are overwritten."""
    missing = -y.shape[2] % _GROUP
    out = functional.pad(y, (0, 0, 0, missing)) if missing else y
    y0, y1, y2, y3 = _split_groups(out)
    m0, m1, m2, m3, m4, m5 = m
    sum_12 = m1 + m2
    difference_12 = m1.sub_(m2)
    sum_34 = m3 + m4
    difference_34 = m3.sub_(m4)
    torch.add(difference_12, difference_34, alpha=2, out=y1)
    torch.add(sum_12, sum_34, alpha=4, out=y2)
    torch.add(m5.add_(difference_12), difference_34, alpha=8, out=y3)
    torch.add(sum_12.add_(sum_34), m0, out=y0)
    if missing:
        y.copy_(out[:, :, :-missing])


def _split_groups(lines: Tensor) -> tuple[Tensor, ...]:
    """View lines (B, C, h, W) by their position in their group: four of (B, C, h / 4, W)."""
    return tuple(lines[:, :, i::_GROUP] for i in range(_GROUP))
