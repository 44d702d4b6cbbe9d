"""From features to a larger picture: the end of most networks, and their largest tensors by far.

    x (B, C, H, W) ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 3, 4H, 4W)
    base (B, 3, 4H, 4W) ─────────────────────────────────────────────────────┘

is that of the networks after EDVR. Without gradients such ends are run in strips of lines: each step gets the lines
that the next one needs, so strips equal the whole.

Source: Wang et al. (EDVR), CVPRW 2019, Fig. 2; sub-pixel convolution: Shi et al., CVPR 2016; nearest neighbour and
convolution: Wang et al. (ESRGAN), ECCVW 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import convolve, convolve_doubled

__all__ = ["Convs", "Step", "enlarge", "repeat_and_convolve", "run_steps", "shuffle_x4"]

Convs = tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.Conv2d]
"""Two before the shuffles, two after."""

_LEAST_ROWS = 8  # of the input: less is mostly halo
_STRIP_BYTES = 2**25  # about a processor's last cache: strips of this size are faster than the whole, smaller are not
_STRIP_BYTES_DEVICE = 2**28


class Step(NamedTuple):
    """Something that makes features of features, and looks at most one line up and down."""

    run: Callable[[Tensor], Tensor]
    """(B, C, H, W) → (B, C', factor · H, factor · W)."""
    factor: int = 1


def enlarge(frame: Tensor, scale: int) -> Tensor:
    """Enlarge a picture bilinearly, as the skip of these networks: (B, C, H, W) → (B, C, sH, sW)."""
    return functional.interpolate(frame, scale_factor=float(scale), mode="bilinear", align_corners=False)


def shuffle_x4(x: Tensor, base: Tensor, convs: Convs) -> Tensor:
    """Turn features into the detail that a plain enlargement lacks, and add it.

    Args:
        x: (B, C, H, W).
        base: (B, 3, 4H, 4W), the plain enlargement.
        convs: 3×3 convolutions C → 4C' before the first shuffle, C' → 4C" before the second, C" → C", C" → 3.

    Returns:
        (B, 3, 4H, 4W), in the precision of `base` or better.
    """
    first, second, detail, last = convs
    steps = (
        Step(partial(_convolve_and_shuffle, first), 2),
        Step(partial(_convolve_and_shuffle, second), 2),
        Step(partial(convolve, detail, slope=0.1)),
        Step(partial(convolve, last)),
    )
    return run_steps(x, steps, widest=detail.in_channels, base=base)


def _convolve_and_shuffle(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return functional.pixel_shuffle(convolve(conv, x, 0.1), 2)


def repeat_and_convolve(x: Tensor, doublings: Sequence[nn.Conv2d], detail: nn.Conv2d, last: nn.Conv2d) -> Tensor:
    """Turn features into a picture as the networks after ESRGAN: (nearest ×2, conv) for each doubling, conv, conv.

    Args:
        x: (B, C, H, W).
        doublings: 3×3 convolutions C → C, n of them.
        detail: C → C, at the final size.
        last: C → C'.

    Returns:
        (B, C', sH, sW), s = 2ⁿ.
    """
    steps = [Step(partial(convolve_doubled, conv, slope=0.2), 2) for conv in doublings]
    steps += [Step(partial(convolve, detail, slope=0.2)), Step(partial(convolve, last))]
    return run_steps(x, steps, widest=detail.in_channels)


def run_steps(x: Tensor, steps: Sequence[Step], *, widest: int, base: Tensor | None = None) -> Tensor:
    """Run steps one after the other, without gradients in strips of lines.

    Args:
        x: (B, C, H, W).
        steps: their factors' product is s.
        widest: most channels of any result at the final size; what lies in memory at once is bounded by it.
        base: (B, C', sH, sW), added at the end.

    Returns:
        (B, C', sH, sW), equal to the steps run on the whole.
    """
    factor = math.prod(step.factor for step in steps)
    height, rows = x.shape[2], _strip_rows(x, widest * factor**2)
    if rows >= height or torch.is_grad_enabled() or torch.compiler.is_compiling():
        for step in steps:
            x = step.run(x)
        return x if base is None else base + x
    strips: list[Tensor] = []
    for top in range(0, height, rows):
        lines = slice(factor * top, factor * min(top + rows, height))
        strip = _run_strip(x, steps, lines)
        strips.append(strip if base is None else base[:, :, lines] + strip)
    return torch.cat(strips, 2)


def _strip_rows(x: Tensor, pixel_values: int) -> int:
    """Count the lines of `x` whose largest result, of so many values for each pixel of `x`, fills a strip."""
    bound = _STRIP_BYTES if x.device.type == "cpu" else _STRIP_BYTES_DEVICE
    line_bytes = x.shape[0] * pixel_values * x.shape[3] * x.element_size()
    return max(bound // line_bytes, _LEAST_ROWS)


def _run_strip(x: Tensor, steps: Sequence[Step], lines: slice) -> Tensor:
    """Run the steps for these lines of the end; no step takes more lines than the next one needs."""
    height = x.shape[2] * math.prod(step.factor for step in steps)
    spans = [(lines.start, lines.stop)]  # what each step takes, from the last one on
    for step in reversed(steps):
        top, bottom = spans[-1]
        height //= step.factor
        spans.append((max(top // step.factor - 1, 0), min(-(-bottom // step.factor) + 1, height)))
    first, *behind = reversed(spans)
    x, start = x[:, :, slice(*first)], first[0]
    for step, (top, bottom) in zip(steps, behind, strict=True):
        start *= step.factor
        x = step.run(x)[:, :, top - start : bottom - start]
        start = top
    return x
