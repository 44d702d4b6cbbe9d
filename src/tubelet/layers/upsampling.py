"""From features to a larger image: the end of most networks, and their largest tensors by far.

    x (B, C, H, W) ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 3, 4H, 4W)
    base (B, 3, 4H, 4W) ─────────────────────────────────────────────────────┘

is that of the networks after EDVR. Prepared for inference, such ends are run in strips of lines:
each step gets the lines that the next one needs, so strips equal the whole.

Source: Wang et al. (EDVR), CVPRW 2019, Fig. 2; sub-pixel convolution: Shi et al., CVPR 2016;
nearest neighbor and convolution: Wang et al. (ESRGAN), ECCVW 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.layers.convolution import ConvAct, LeakyReLU, UpsampleConv

__all__ = [
    "TailConvs",
    "UpsampleStep",
    "enlarge",
    "repeat_and_convolve",
    "run_in_strips",
    "run_steps",
    "shuffle_x4",
    "shuffle_x4_convs",
]

TailConvs = tuple[ConvAct, ConvAct, ConvAct, ConvAct]
"""Two before the shuffles, two after; all but the last end with an activation."""

_SLOPE = 0.1  # of the activations of EDVR's end
_MIN_ROWS = 8  # of the input: less is mostly halo
_STRIP_BYTES = 2**25  # about a processor's last cache: faster than the whole, smaller ones are not
_STRIP_BYTES_DEVICE = 2**28


class UpsampleStep(NamedTuple):
    """Something that makes features of features, and looks at most one line up and down."""

    run: Callable[[Tensor], Tensor]
    """(B, C, H, W) → (B, C', factor · H, factor · W)."""
    factor: int = 1


def enlarge(frame: Tensor, scale: int) -> Tensor:
    """Enlarge an image bilinearly, as the skip of these networks: (B, C, H, W) → (B, C, sH, sW)."""
    return functional.interpolate(
        frame, scale_factor=float(scale), mode="bilinear", align_corners=False
    )


def shuffle_x4_convs(channels: int, hr_channels: int) -> TailConvs:
    """Build the convolutions of `shuffle_x4`; networks register them under published names.

    Args:
        channels: C of the features.
        hr_channels: width after the shuffles.

    Returns:
        3×3 convolutions C → 4C and C → 4·hr before the two shuffles, hr → hr and hr → 3 after them.
    """
    act = LeakyReLU(_SLOPE)
    return (
        ConvAct(channels, 4 * channels, act=act),
        ConvAct(channels, 4 * hr_channels, act=act),
        ConvAct(hr_channels, hr_channels, act=act),
        ConvAct(hr_channels, 3),
    )


def shuffle_x4(x: Tensor, base: Tensor, convs: TailConvs) -> Tensor:
    """Turn features into the detail that a plain enlargement lacks, and add it.

    Args:
        x: (B, C, H, W).
        base: (B, 3, 4H, 4W), the plain enlargement.
        convs: of `shuffle_x4_convs`.

    Returns:
        (B, 3, 4H, 4W), in the precision of `base` or better.
    """
    first, second, detail, last = convs
    steps = (
        UpsampleStep(partial(_convolve_and_shuffle, first), 2),
        UpsampleStep(partial(_convolve_and_shuffle, second), 2),
        UpsampleStep(detail),
        UpsampleStep(last),
    )
    if last.is_prepared:
        return run_in_strips(x, steps, widest=detail.in_channels, base=base)
    return base + run_steps(x, steps)


def _convolve_and_shuffle(conv: ConvAct, x: Tensor) -> Tensor:
    return functional.pixel_shuffle(conv(x), 2)


def repeat_and_convolve(
    x: Tensor,
    doublings: Sequence[UpsampleConv],
    detail: ConvAct,
    last: ConvAct,
) -> Tensor:
    """Turn features into an image as the networks after ESRGAN: doublings, then two convolutions.

    Args:
        x: (B, C, H, W).
        doublings: C → C, n of them.
        detail: 3×3 convolution C → C, at the final size.
        last: 3×3 convolution C → C'.

    Returns:
        (B, C', sH, sW), s = 2ⁿ.
    """
    steps = [UpsampleStep(conv, 2) for conv in doublings]
    steps += [UpsampleStep(detail), UpsampleStep(last)]
    if last.is_prepared:
        return run_in_strips(x, steps, widest=detail.in_channels)
    return run_steps(x, steps)


def run_steps(x: Tensor, steps: Sequence[UpsampleStep]) -> Tensor:
    """Run steps one after the other: (B, C, H, W) → (B, C', sH, sW), s of all factors."""
    for step in steps:
        x = step.run(x)
    return x


def run_in_strips(
    x: Tensor,
    steps: Sequence[UpsampleStep],
    *,
    widest: int,
    base: Tensor | None = None,
) -> Tensor:
    """Run steps in strips of lines, with the result of `run_steps` and less memory.

    Args:
        x: (B, C, H, W).
        steps: their factors' product is s.
        widest: most channels of any result at the final size; memory at once is bounded by it.
        base: (B, C', sH, sW), added at the end.

    Returns:
        (B, C', sH, sW).
    """
    factor = math.prod(step.factor for step in steps)
    height = x.shape[2]
    rows = _strip_rows(x, widest * factor**2)
    strips: list[Tensor] = []
    for top in range(0, height, rows):
        lines = slice(factor * top, factor * min(top + rows, height))
        strip = run_steps(x, steps) if rows >= height else _run_strip(x, steps, lines)
        strips.append(strip if base is None else base[:, :, lines] + strip)
    return torch.cat(strips, 2) if len(strips) > 1 else strips[0]


def _strip_rows(x: Tensor, pixel_values: int) -> int:
    """Count the lines of `x` that fill a strip, by the values that each pixel of `x` becomes."""
    bound = _STRIP_BYTES if x.device.type == "cpu" else _STRIP_BYTES_DEVICE
    line_bytes = x.shape[0] * pixel_values * x.shape[3] * x.element_size()
    return max(bound // line_bytes, _MIN_ROWS)


def _run_strip(x: Tensor, steps: Sequence[UpsampleStep], lines: slice) -> Tensor:
    """Run the steps for these lines of the result; no step takes more than the next one needs."""
    height = x.shape[2] * math.prod(step.factor for step in steps)
    spans = [(lines.start, lines.stop)]  # lines that each step takes, from the last step on
    for step in reversed(steps):
        top, bottom = spans[-1]
        height //= step.factor
        spans.append((max(top // step.factor - 1, 0), min(-(-bottom // step.factor) + 1, height)))
    first, *behind = reversed(spans)
    start = first[0]
    x = x[:, :, slice(*first)]
    for step, (top, bottom) in zip(steps, behind, strict=True):
        start *= step.factor
        x = step.run(x)[:, :, top - start : bottom - start]
        start = top
    return x
