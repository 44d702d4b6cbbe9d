"""3×3 convolution with half of the products: Winograd's F(4, 3) along the columns.

Four lines of the result, which look at six of the input, take six rows of products instead of four times three:

    t = Bᵀ d          six sums of the six lines d
    mₚ = tₚ * uₚ      a 1×3 convolution of each, p = 0 … 5, with u = G w
    y = Aᵀ m          four sums of the six results

         4  0 −5  0  1  0           1/4     0    0           1  1  1  1  1  0
         0 −4 −4  1  1  0          −1/6  −1/6 −1/6           0  1 −1  2 −2  0
    Bᵀ = 0  4 −4 −1  1  0     G =  −1/6   1/6 −1/6     Aᵀ =  0  1  1  4  4  0
         0 −2 −1  2  1  0          1/24  1/12  1/6           0  1 −1  8 −8  1
         0  2 −1 −2  1  0          1/24 −1/12  1/6
         0 −4  0  5  0 −1             0     0   −1

The sums are passes over memory of their own and cost a part of what the products save; strips of lines keep them within
the cache. Along both axes there would be a quarter of the products, and more sums than that is worth. Errors are some
three times those of the plain sum, around 1e-5 of the values; what is not finite spreads over its four lines.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Finish", "LineSums", "Place", "RowConvolution", "convolve_columns"]

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
"""x (1, C, h, W), weight (C', C, 1, 3), bias, and a sum to add to in place, or None → conv(x), of the same size."""

Place = tuple[slice, slice, slice]
"""Which images, channels and lines."""

Finish = Callable[[Tensor, Place], object]
"""Changes part of the result (1, C', h, W), which lies at a place of the whole."""

Sums = Iterable[tuple[int, Tensor]]
"""Each p and tₚ (1, C, ⌈h / 4⌉, W) of some lines of a tensor."""


class LineSums:
    """The sums of lines of tensors that several convolutions look at, one and a half times as large as these.

    A tensor is known by itself, not by its values: it must not change, and a copy or another view of it is another one.
    """

    def __init__(self) -> None:
        # With each tensor, so that none takes another's place while its sums are here.
        self._kept: dict[tuple[int, int, int, int], tuple[Tensor, Sums]] = {}

    def keep(self, x: Tensor, image: int, lines: tuple[int, int], sums: Sums) -> Sums:
        """Give the sums of some lines of `x` (B, C, H, W) that are kept, or keep those that `sums` computes."""
        key = (id(x), image, *lines)
        if key not in self._kept:
            self._kept[key] = x, tuple(sums)
        return self._kept[key][1]


def convolve_columns(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *,
    convolve_rows: RowConvolution,
    finish: Finish,
    kept: LineSums | None = None,
) -> Tensor:
    """Convolve what lies in several tensors, padded by zeros to the same size.

    Args:
        parts: (B, C₁, H, W), (B, C₂, H, W), …, channels last: the channels of the input, in order.
        weight: (C', C, 3, 3).
        bias: (C',).
        convolve_rows: does the products.
        finish: called with every strip of the result while it is in the cache.
        kept: sums of earlier calls, to which those of these parts are added; None keeps nothing.

    Returns:
        (B, C', H, W), channels last.
    """
    batch, _, height, width = parts[0].shape
    kernels = _transform_weight(weight, [part.shape[1] for part in parts])
    y = parts[0].new_empty(batch, height, width, len(weight)).movedim(3, 1)
    line_bytes = width * max(len(weight), *(part.shape[1] for part in parts)) * y.element_size()
    rows = _GROUP * max(1, _STRIP_BYTES * torch.get_num_threads() // line_bytes)
    for i, top in itertools.product(range(batch), range(0, height, rows)):
        bottom = min(top + rows, height)
        sums: list[Sums] = [_sum_lines(part[i : i + 1], top, bottom) for part in parts]
        if kept is not None:
            sums = [kept.keep(part, i, (top, bottom), s) for part, s in zip(parts, sums, strict=True)]
        place = (slice(i, i + 1), slice(None), slice(top, bottom))
        _combine(_multiply(sums, kernels, bias, convolve_rows), y[place])
        finish(y[place], place)
    return y


def _transform_weight(weight: Tensor, widths: Sequence[int]) -> list[list[Tensor]]:
    """Make the kernels (C', C, 1, 3) of each of the six sums, for each part."""
    planes = torch.einsum("pk,oikw->poiw", weight.new_tensor(_G), weight)[..., None, :]
    return [
        [part.contiguous(memory_format=torch.channels_last) for part in torch.split(u, list(widths), 1)] for u in planes
    ]


def _sum_lines(part: Tensor, top: int, bottom: int) -> Iterator[tuple[int, Tensor]]:
    """Compute t of some lines, one after the other."""
    lines = part[:, :, top:bottom]
    missing = (top - bottom) % _GROUP
    d1, d2, d3, d4 = _group(functional.pad(lines, (0, 0, 0, missing)) if missing else lines)
    even, odd = torch.sub(d4, d2, alpha=4), torch.sub(d3, d1, alpha=4)
    yield 1, even + odd
    yield 2, even.sub_(odd)
    even, odd = d4 - d2, d3 - d1
    t0 = torch.sub(even, d2, alpha=4)
    if top > 0:
        t0.add_(part[:, :, top - 1 : bottom - 1 : _GROUP], alpha=4)
    else:  # above the picture is zero
        t0[:, :, 1:].add_(d4[:, :, :-1], alpha=4)
    yield 0, t0
    yield 3, torch.add(even, odd, alpha=2)
    yield 4, even.sub_(odd, alpha=2)
    t5 = odd.mul_(4).add_(d3)
    if bottom < part.shape[2]:  # and nothing is missing
        t5.sub_(part[:, :, top + _GROUP : bottom + _GROUP : _GROUP])
    else:  # and below
        t5[:, :, :-1].sub_(d1[:, :, 1:])
    yield 5, t5


def _multiply(
    sums: Sequence[Sums],
    kernels: Sequence[Sequence[Tensor]],
    bias: Tensor | None,
    convolve_rows: RowConvolution,
) -> list[Tensor]:
    """Compute m: six tensors (1, C', ⌈h / 4⌉, W)."""
    m: dict[int, Tensor] = {}
    for j, part in enumerate(sums):
        for p, t in part:
            # The bias belongs to each line of y, and m₁ is in each of them once.
            m[p] = convolve_rows(t, kernels[p][j], bias if (p, j) == (1, 0) else None, m.get(p))
    return [m[p] for p in range(len(_G))]


def _combine(m: Sequence[Tensor], y: Tensor) -> None:
    """Write y; m is used up."""
    missing = -y.shape[2] % _GROUP
    whole = functional.pad(y, (0, 0, 0, missing)) if missing else y
    y0, y1, y2, y3 = _group(whole)
    m0, m1, m2, m3, m4, m5 = m
    near_sum, near = m1 + m2, m1.sub_(m2)
    far_sum, far = m3 + m4, m3.sub_(m4)
    torch.add(near, far, alpha=2, out=y1)
    torch.add(near_sum, far_sum, alpha=4, out=y2)
    torch.add(m5.add_(near), far, alpha=8, out=y3)
    torch.add(near_sum.add_(far_sum), m0, out=y0)
    if missing:
        y.copy_(whole[:, :, :-missing])


def _group(lines: Tensor) -> tuple[Tensor, ...]:
    """Part lines (B, C, h, W) by their place in their group: four views (B, C, h / 4, W)."""
    return tuple(lines[:, :, i::_GROUP] for i in range(_GROUP))
