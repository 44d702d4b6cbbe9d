"""Chroma resampling by factors of two, in pairs of filters where down-sampling exactly undoes up-sampling.

siting    up (read)                                      down (write)
cosited   linear: the samples, and means of neighbors   LeGall 5/3 low-pass (-1 2 6 2 -1)/8, by lifting
center    c ∓ (next - previous)/8 on a pair of pixels    mean of the pair

Both "up" filters reproduce straight ramps, and both pairs are biorthogonal (spline 5/3 and 1/3 of Cohen,
Daubechies and Feauveau, 1992), so a decoded image that is not changed gives back the chroma that was coded.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Siting", "downsample_chroma", "sitings_of", "upsample_chroma"]

Siting = Literal["cosited", "center"]


def sitings_of(location: int) -> tuple[Siting, Siting]:
    """Translate AVCHROMA_LOC_* to the siting across and the siting down.

    Unspecified (0) means left, as MPEG-2 and later have it. The bottom sitings of interlaced DV are read as
    centered vertically.
    """
    across: Siting = "center" if location in (2, 4, 6) else "cosited"
    down: Siting = "cosited" if location in (3, 4) else "center"
    return across, down


def upsample_chroma(
    chroma: Tensor, out: Tensor, *, shifts: tuple[int, int], sitings: tuple[Siting, Siting]
) -> None:
    """Interpolate subsampled chroma to the size of the luma.

    Args:
        chroma: (C, h, w).
        out: (C, H, W), is filled.
        shifts: log2 of the subsampling across and down.
        sitings: across and down.
    """
    heights = [-(-out.shape[-2] // (1 << level)) for level in range(shifts[1])]
    widths = [-(-out.shape[-1] // (1 << level)) for level in range(shifts[0])]
    steps = [(-2, size) for size in reversed(heights)] + [(-1, size) for size in reversed(widths)]
    if not steps:
        out.copy_(chroma)
    for number, (dim, size) in enumerate(steps):
        target = out
        if number < len(steps) - 1:
            shape = list(chroma.shape)
            shape[dim] = size
            target = chroma.new_empty(shape)
        _upsample(chroma, target, dim, sitings[0] if dim == -1 else sitings[1])
        chroma = target


def downsample_chroma(
    full: Tensor, *, shifts: tuple[int, int], sitings: tuple[Siting, Siting]
) -> Tensor:
    """Reduce full-size chroma; the exact left inverse of `upsample_chroma`.

    Args:
        full: (C, H, W).
        shifts: log2 of the subsampling across and down.
        sitings: across and down.

    Returns:
        (C, ceil(H / 2^down), ceil(W / 2^across)).
    """
    for _ in range(shifts[1]):
        full = downsample(full, -2, sitings[1])
    for _ in range(shifts[0]):
        full = downsample(full, -1, sitings[0])
    return full


def downsample(x: Tensor, dim: int, siting: Siting) -> Tensor:
    """Halve one axis of length n to ceil(n / 2)."""
    even, odd = _alternate(x, dim)
    if siting == "center":
        if odd.shape[dim] == even.shape[dim]:
            return torch.add(even, odd).mul_(0.5)
        low = even.clone()  # the last pixel has no partner
        low.narrow(dim, 0, odd.shape[dim]).add_(odd).mul_(0.5)
        return low
    return _lift(even, odd, dim)


def _lift(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    """Low-pass by lifting: predict odd samples from even ones, then update the even ones with the error."""
    low, high = (
        even.clone(memory_format=torch.contiguous_format),
        odd.clone(memory_format=torch.contiguous_format),
    )
    lows, highs = low.shape[dim], high.shape[dim]
    if highs == 0:
        return low
    high.sub_(low.narrow(dim, 0, highs), alpha=0.5)
    high.narrow(dim, 0, lows - 1).sub_(low.narrow(dim, 1, lows - 1), alpha=0.5)
    if highs == lows:
        high.narrow(dim, -1, 1).sub_(low.narrow(dim, -1, 1), alpha=0.5)
    low.narrow(dim, 0, highs).add_(high, alpha=0.25)
    low.narrow(dim, 1, lows - 1).add_(high.narrow(dim, 0, lows - 1), alpha=0.25)
    low.narrow(dim, 0, 1).add_(high.narrow(dim, 0, 1), alpha=0.25)
    if highs < lows:
        low.narrow(dim, -1, 1).add_(high.narrow(dim, -1, 1), alpha=0.25)
    return low


def _upsample(c: Tensor, out: Tensor, dim: int, siting: Siting) -> None:
    even, odd = _alternate(out, dim)
    n, odds = c.shape[dim], odd.shape[dim]
    if siting == "cosited":
        even.copy_(c)
        means = c.narrow(dim, 0, n - 1).add(c.narrow(dim, 1, n - 1)).mul_(0.5)
        odd.narrow(dim, 0, n - 1).copy_(means)
        if odds == n:
            odd.narrow(dim, -1, 1).copy_(c.narrow(dim, -1, 1))
        return
    slope = torch.zeros_like(c)  # an eighth of the central difference; ends repeat
    slope.narrow(dim, 0, n - 1).add_(c.narrow(dim, 1, n - 1), alpha=0.125)
    slope.narrow(dim, -1, 1).add_(c.narrow(dim, -1, 1), alpha=0.125)
    slope.narrow(dim, 1, n - 1).sub_(c.narrow(dim, 0, n - 1), alpha=0.125)
    slope.narrow(dim, 0, 1).sub_(c.narrow(dim, 0, 1), alpha=0.125)
    if odds < n:
        slope.narrow(dim, -1, 1).zero_()  # alone in its pair, the last pixel is the sample itself
    torch.sub(c, slope, out=even)
    torch.add(c.narrow(dim, 0, odds), slope.narrow(dim, 0, odds), out=odd)


def _alternate(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    if dim == -1:
        return x[..., 0::2], x[..., 1::2]
    return x[..., 0::2, :], x[..., 1::2, :]
