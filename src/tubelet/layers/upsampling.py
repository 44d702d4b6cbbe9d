"""From features to a picture four times as large, as the networks after EDVR end.

    x (B, C, H, W) ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 3, 4H, 4W)
    base (B, 3, 4H, 4W) ─────────────────────────────────────────────────────┘

Source: Wang et al. (EDVR), CVPRW 2019, Fig. 2; sub-pixel convolution: Shi et al., CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import convolve

__all__ = ["Convs", "enlarge", "shuffle_x4"]

Convs = tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.Conv2d]
"""Two before the shuffles, two after."""

_HALO_PX = 2  # lines of the input that two convolutions at ×4, one at ×2 and one at ×1 reach, rounded up
_STRIP_BYTES = 2**25  # about a processor's last cache: strips of this size are faster than the whole, smaller are not
_STRIP_BYTES_DEVICE = 2**28


def enlarge(frame: Tensor, scale: int) -> Tensor:
    """Enlarge a picture bilinearly, as the skip of these networks: (B, C, H, W) → (B, C, sH, sW)."""
    return functional.interpolate(frame, scale_factor=float(scale), mode="bilinear", align_corners=False)


def shuffle_x4(x: Tensor, base: Tensor, convs: Convs) -> Tensor:
    """Turn features into the detail that a plain enlargement lacks, and add it.

    At four times the size features are the largest thing in memory by far: without gradients they are made in strips of
    lines, whose halo makes them equal to the whole.

    Args:
        x: (B, C, H, W).
        base: (B, 3, 4H, 4W), the plain enlargement.
        convs: 3×3 convolutions C → 4C' before the first shuffle, C' → 4C" before the second, C" → C", C" → 3.

    Returns:
        (B, 3, 4H, 4W), in the precision of `base` or better.
    """
    height = x.shape[2]
    rows = _strip_rows(x, convs)
    if rows >= height or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return base + _detail(x, convs, (0, 0))
    sr = torch.empty_like(base)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - _HALO_PX, 0), min(bottom + _HALO_PX, height)
        detail = _detail(x[:, :, first:last], convs, (top - first, last - bottom))
        torch.add(base[:, :, 4 * top : 4 * bottom], detail, out=sr[:, :, 4 * top : 4 * bottom])
    return sr


def _strip_rows(x: Tensor, convs: Convs) -> int:
    """Count the lines of `x` whose features at four times the size fill a strip."""
    bound = _STRIP_BYTES if x.device.type == "cpu" else _STRIP_BYTES_DEVICE
    line_bytes = x.shape[0] * convs[2].in_channels * 16 * x.shape[3] * x.element_size()
    return max(bound // line_bytes, 4 * _HALO_PX)


def _detail(x: Tensor, convs: Convs, halo: tuple[int, int]) -> Tensor:
    """Compute the detail of the lines between those of the halo, of which no step takes more than it needs."""
    first, second, detail, last = convs
    x = functional.pixel_shuffle(convolve(first, x, 0.1), 2)
    x = _crop(x, [max(2 * lines - 2, 0) for lines in halo])  # the next three steps look one line further each
    x = functional.pixel_shuffle(convolve(second, x, 0.1), 2)
    ends = [min(1, lines) for lines in halo]
    x = convolve(detail, _crop(x, [2 * lines for lines in ends]), 0.1)
    return _crop(last(_crop(x, ends)), ends)


def _crop(x: Tensor, lines: Sequence[int]) -> Tensor:
    above, below = lines
    return x[:, :, above : x.shape[2] - below]
