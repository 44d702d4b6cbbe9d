"""Resample chroma by factors of two, with pairs of filters where down exactly inverts up.

siting    up (read)                                down (write)
cosited   linear: samples, and means of neighbors  LeGall 5/3 low-pass (-1 2 6 2 -1)/8, by lifting
center    c ∓ (next - previous)/8 on a pixel pair  mean of the pair

Both "up" filters reproduce linear ramps, and both pairs are biorthogonal (spline 5/3 and 1/3 of
Cohen, Daubechies and Feauveau, 1992). So an unchanged decoded image is encoded with exactly the
chroma codes of its source.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Siting",
    "Subsampling",
    "downsample",
    "downsample_chroma",
    "sitings_of",
    "upsample_chroma",
]

Siting = Literal["cosited", "center"]


class Subsampling(NamedTuple):
    """How a pixel format reduces chroma, along the width and along the height."""

    shifts: tuple[int, int]
    """log2 of the factors."""
    sitings: tuple[Siting, Siting]


# AVCHROMA_LOC_*: center, top and bottom are centered horizontally; topleft and top are cosited
# vertically.
_CENTERED_ACROSS = (2, 4, 6)
_COSITED_DOWN = (3, 4)


def sitings_of(location: int) -> tuple[Siting, Siting]:
    """Convert AVCHROMA_LOC_* to the horizontal and the vertical siting.

    Unspecified (0) means left, as in MPEG-2 and later standards. The bottom sitings of interlaced
    DV are treated as centered vertically.
    """
    across: Siting = "center" if location in _CENTERED_ACROSS else "cosited"
    down: Siting = "cosited" if location in _COSITED_DOWN else "center"
    return across, down


def upsample_chroma(
    chroma: Tensor,
    out: Tensor,
    *,
    shifts: tuple[int, int],
    sitings: tuple[Siting, Siting],
) -> None:
    """Interpolate subsampled chroma to the size of the luma.

    Args:
        chroma: Subsampled chroma, (C, h, w).
        out: Result, (C, H, W), is overwritten.
        shifts: log2 of the horizontal and the vertical subsampling.
        sitings: Horizontal and vertical siting.
    """
    # Each step doubles one axis: first all vertical steps, from the smallest size to the largest.
    shift_x, shift_y = shifts
    height, width = out.shape[-2:]
    steps: list[tuple[int, int]] = []
    for level in reversed(range(shift_y)):
        steps.append((-2, _ceil_shift(height, level)))
    for level in reversed(range(shift_x)):
        steps.append((-1, _ceil_shift(width, level)))
    if not steps:
        out.copy_(chroma)
    for number, (dim, size) in enumerate(steps):
        target = out
        is_last = number == len(steps) - 1
        if not is_last:
            shape = list(chroma.shape)
            shape[dim] = size
            target = chroma.new_empty(shape)
        siting = sitings[0] if dim == -1 else sitings[1]
        _upsample(chroma, target, dim, siting)
        chroma = target


def downsample_chroma(
    full: Tensor,
    *,
    shifts: tuple[int, int],
    sitings: tuple[Siting, Siting],
) -> Tensor:
    """Reduce full-size chroma; the exact left inverse of `upsample_chroma`.

    Args:
        full: Full-size chroma, (C, H, W).
        shifts: log2 of the horizontal and the vertical subsampling.
        sitings: Horizontal and vertical siting.

    Returns:
        (C, ceil(H / 2^vertical shift), ceil(W / 2^horizontal shift)).
    """
    for _ in range(shifts[1]):
        full = downsample(full, -2, sitings[1])
    for _ in range(shifts[0]):
        full = downsample(full, -1, sitings[0])
    return full


def downsample(x: Tensor, dim: int, siting: Siting) -> Tensor:
    """Halve one axis of length n, -1 or -2, to ceil(n / 2)."""
    even, odd = _even_and_odd(x, dim)
    if siting == "cosited":
        return _lift(even, odd, dim)
    if odd.shape[dim] == even.shape[dim]:
        return torch.add(even, odd).mul_(0.5)
    # The last pixel has no partner and stays.
    low = even.clone()
    pairs = low.narrow(dim, 0, odd.shape[dim])
    pairs.add_(odd).mul_(0.5)
    return low


def _lift(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    """Apply the 5/3 low-pass by lifting: predict odd samples, then update the even ones.

    Source: Le Gall and Tabatabai, ICASSP 1988; lifting: Sweldens, 1996.
    """
    low = even.clone(memory_format=torch.contiguous_format)
    high = odd.clone(memory_format=torch.contiguous_format)
    num_low = low.shape[dim]
    num_high = high.shape[dim]
    if num_high == 0:
        return low

    # Even samples with an odd one on their right, and those with an odd one on their left.
    low_with_right = low.narrow(dim, 0, num_high)
    low_with_left = low.narrow(dim, 1, num_low - 1)
    high_with_right = high.narrow(dim, 0, num_low - 1)
    first_low = low.narrow(dim, 0, 1)
    last_low = low.narrow(dim, -1, 1)
    first_high = high.narrow(dim, 0, 1)
    last_high = high.narrow(dim, -1, 1)

    # Predict: high[i] = odd[i] - (even[i] + even[i + 1]) / 2; the last even sample repeats.
    high.sub_(low_with_right, alpha=0.5)
    high_with_right.sub_(low_with_left, alpha=0.5)
    if num_high == num_low:
        last_high.sub_(last_low, alpha=0.5)

    # Update: low[i] = even[i] + (high[i - 1] + high[i]) / 4; the errors at both ends repeat.
    low_with_right.add_(high, alpha=0.25)
    low_with_left.add_(high_with_right, alpha=0.25)
    first_low.add_(first_high, alpha=0.25)
    if num_high < num_low:
        last_low.add_(last_high, alpha=0.25)
    return low


def _upsample(c: Tensor, out: Tensor, dim: int, siting: Siting) -> None:
    """Double one axis of `c` into `out`, which may have an odd length."""
    even, odd = _even_and_odd(out, dim)
    n = c.shape[dim]
    num_odd = odd.shape[dim]
    head = c.narrow(dim, 0, n - 1)
    tail = c.narrow(dim, 1, n - 1)
    first = c.narrow(dim, 0, 1)
    last = c.narrow(dim, -1, 1)

    if siting == "cosited":
        # Even pixels are the samples, odd ones the means of their neighbors.
        even.copy_(c)
        means = head.add(tail).mul_(0.5)
        odd.narrow(dim, 0, n - 1).copy_(means)
        if num_odd == n:
            odd.narrow(dim, -1, 1).copy_(last)
        return

    # An eighth of the central difference, with the samples at both ends repeated.
    slope = torch.zeros_like(c)
    first_slope = slope.narrow(dim, 0, 1)
    last_slope = slope.narrow(dim, -1, 1)
    slope.narrow(dim, 0, n - 1).add_(tail, alpha=0.125)
    last_slope.add_(last, alpha=0.125)
    slope.narrow(dim, 1, n - 1).sub_(head, alpha=0.125)
    first_slope.sub_(first, alpha=0.125)
    if num_odd < n:
        # The last pixel has no partner: it is the sample itself.
        last_slope.zero_()
    torch.sub(c, slope, out=even)
    paired = c.narrow(dim, 0, num_odd)
    paired_slope = slope.narrow(dim, 0, num_odd)
    torch.add(paired, paired_slope, out=odd)


def _even_and_odd(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return views of the even and the odd pixels along the last (-1) or second-last (-2) axis."""
    if dim == -1:
        return x[..., 0::2], x[..., 1::2]
    return x[..., 0::2, :], x[..., 1::2, :]


def _ceil_shift(size: int, shift: int) -> int:
    """Return ceil(size / 2^shift)."""
    return -(-size // (1 << shift))
