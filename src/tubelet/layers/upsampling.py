"""Upsampling ends of networks: from features to a larger image, with the largest tensors by far.

The end of the networks after EDVR:

    x (B, C, H, W) ── conv, shuffle ×2 ── conv, shuffle ×2 ── conv ── conv ──(+)── sr (B, 3, 4H, 4W)
    base (B, 3, 4H, 4W) ─────────────────────────────────────────────────────┘

Prepared for inference, such ends are run in strips of lines: each step gets the lines that the next
one needs, so that the strips together equal the result of one run.

Source: Wang et al. (EDVR), CVPRW 2019, Fig. 2; sub-pixel convolution: Shi et al., CVPR 2016;
nearest neighbor and convolution: Wang et al. (ESRGAN), ECCVW 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.convolution import ConvAct, LeakyReLU, ShuffleConv, UpsampleConv
from tubelet.ops.resize import resample

__all__ = [
    "STRIP_BYTES",
    "TailConvs",
    "UpsampleStep",
    "enlarge",
    "repeat_and_convolve",
    "run_in_strips",
    "run_shuffles",
    "run_steps",
    "shuffle_and_convolve",
    "shuffle_stages",
    "shuffle_to_image",
    "shuffle_x4",
    "shuffle_x4_convs",
]

TailConvs = tuple[ShuffleConv, ShuffleConv, ConvAct, ConvAct]
"""Two before the shuffles, two after; all but the last end with an activation."""

# Negative slope of the activations at the end of EDVR.
_SLOPE = 0.1
# Lines of the input in a strip: a shorter strip is mostly halo.
_MIN_ROWS = 8
_STRIP_BYTES_DEVICE = 2**28
# Features have more.
_IMAGE_CHANNELS = 4

STRIP_BYTES = 2**25
"""Memory of the widest result of a strip on a processor. About the size of its last-level cache:
faster than one run over the whole frame, and smaller strips are not faster."""


class UpsampleStep(NamedTuple):
    """A step from features to features whose result depends on at most one line up and down."""

    run: Callable[[Tensor], Tensor]
    """(B, C, H, W) → (B, C', factor · H, factor · W)."""
    factor: int = 1
    """Factor of both sides."""


def enlarge(frame: Tensor, scale: int) -> Tensor:
    """Enlarge an image bilinearly, as the skip of these networks: (B, C, H, W) → (B, C, sH, sW)."""
    _, channels, height, width = frame.shape
    is_image = channels <= _IMAGE_CHANNELS
    if is_image and frame.device.type == "cpu" and not torch.compiler.is_compiling():
        # Matrix products are two to four times faster. The result is laid out by planes.
        return resample(frame, (scale * height, scale * width), kernel="bilinear")
    return functional.interpolate(
        frame,
        scale_factor=float(scale),
        mode="bilinear",
        align_corners=False,
    )


def shuffle_to_image(x: Tensor, factor: int) -> Tensor:
    """Move groups of channels to pixels, as `pixel_shuffle`; the result is laid out by planes.

    On a CPU this is several times faster for features in channels-last layout.

    Args:
        x: (B, C·r², H, W).
        factor: r.

    Returns:
        (B, C, rH, rW), contiguous.
    """
    batch, _, height, width = x.shape
    by_pixel = x.reshape(batch, -1, factor, factor, height, width)  # (B, C, r, r, H, W)
    planes = by_pixel.permute(0, 1, 4, 2, 5, 3)  # (B, C, H, r, W, r)
    return planes.reshape(batch, -1, factor * height, factor * width)


def shuffle_x4_convs(channels: int, hr_channels: int) -> TailConvs:
    """Build the convolutions of `shuffle_x4`; networks register them under published names.

    Args:
        channels: C of the features.
        hr_channels: Width after the shuffles.

    Returns:
        3×3 convolutions C → 4C and C → 4·hr with their shuffles, then hr → hr and hr → 3.
    """
    act = LeakyReLU(_SLOPE)
    return (
        ShuffleConv(channels, channels, act=act),
        ShuffleConv(channels, hr_channels, act=act),
        ConvAct(hr_channels, hr_channels, act=act),
        ConvAct(hr_channels, 3),
    )


def shuffle_x4(x: Tensor, base: Tensor, convs: TailConvs) -> Tensor:
    """Reconstruct the detail that interpolation lacks, at four times the size, and add it.

    Args:
        x: Features, (B, C, H, W).
        base: Interpolated frame, (B, 3, 4H, 4W).
        convs: Convolutions of `shuffle_x4_convs`.

    Returns:
        (B, 3, 4H, 4W), in the precision of `base` or better.
    """
    first, second, detail, last = convs
    steps = (
        UpsampleStep(first, first.factor),
        UpsampleStep(second, second.factor),
        UpsampleStep(detail),
        UpsampleStep(last),
    )
    return _run_end(x, steps, last, base)


def shuffle_stages(channels: int, factors: Sequence[int]) -> nn.Sequential:
    """Build the sub-pixel convolutions of `shuffle_and_convolve`, each C → C.

    Published files number convolutions and shuffles in turn, so a layer without parameters follows
    each convolution, which includes its shuffle.
    """
    stages = nn.Sequential()
    for factor in factors:
        stages.append(ShuffleConv(channels, channels, factor=factor))
        stages.append(nn.Identity())
    return stages


def shuffle_and_convolve(x: Tensor, stages: nn.Sequential, last: ConvAct) -> Tensor:
    """Turn features into an image as EDSR and its successors: shuffles, then a convolution.

    Args:
        x: Features, (B, C, H, W).
        stages: Layers of `shuffle_stages`, with factors that multiply to s.
        last: 3×3 convolution C → C'.

    Returns:
        (B, C', sH, sW).

    Source: Lim et al. (EDSR), CVPRW 2017, Sec. 3.2.
    """
    convs = [stage for stage in stages if isinstance(stage, ShuffleConv)]
    return run_shuffles(x, convs, last)


def run_shuffles(x: Tensor, convs: Sequence[ShuffleConv], last: ConvAct) -> Tensor:
    """Run sub-pixel convolutions and a last convolution.

    Args:
        x: Features, (B, C, H, W).
        convs: Sub-pixel convolutions, with factors that multiply to s.
        last: 3×3 convolution → C'.

    Returns:
        (B, C', sH, sW).
    """
    steps = [UpsampleStep(conv, conv.factor) for conv in convs]
    steps.append(UpsampleStep(last))
    return _run_end(x, steps, last)


def repeat_and_convolve(
    x: Tensor,
    doublings: Sequence[UpsampleConv],
    detail: ConvAct,
    last: ConvAct,
) -> Tensor:
    """Turn features into an image as the networks after ESRGAN: doublings, then two convolutions.

    Args:
        x: Features, (B, C, H, W).
        doublings: n layers C → C, each of which doubles the size.
        detail: 3×3 convolution C → C, at the final size.
        last: 3×3 convolution C → C'.

    Returns:
        (B, C', sH, sW), s = 2ⁿ.
    """
    steps = [UpsampleStep(conv, 2) for conv in doublings]
    steps += [UpsampleStep(detail), UpsampleStep(last)]
    return _run_end(x, steps, last)


def _run_end(
    x: Tensor,
    steps: Sequence[UpsampleStep],
    last: ConvAct,
    base: Tensor | None = None,
) -> Tensor:
    """Run steps that end with the convolution `last`, in strips if it is prepared, and add `base`.

    The input of `last` is the widest tensor at the final size.
    """
    if last.is_prepared:
        return run_in_strips(x, steps, widest=last.in_channels, base=base)
    sr = run_steps(x, steps)
    return sr if base is None else base + sr


def run_steps(x: Tensor, steps: Sequence[UpsampleStep]) -> Tensor:
    """Run steps one after the other.

    Args:
        x: (B, C, H, W).
        steps: Steps whose factors multiply to s.

    Returns:
        (B, C', sH, sW).
    """
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
        steps: Steps whose factors multiply to s.
        widest: Largest channel count of any result at the final size, which bounds the memory.
        base: (B, C', sH, sW), added at the end.

    Returns:
        (B, C', sH, sW).
    """
    factor = math.prod(step.factor for step in steps)
    height = x.shape[2]
    strip_rows = _strip_rows(x, values_per_pixel=widest * factor**2)
    strips: list[Tensor] = []
    for top in range(0, height, strip_rows):
        bottom = min(top + strip_rows, height)
        lines = slice(factor * top, factor * bottom)
        strip = run_steps(x, steps) if strip_rows >= height else _run_strip(x, steps, lines)
        if base is not None:
            strip = base[:, :, lines] + strip
        strips.append(strip)
    return torch.cat(strips, 2) if len(strips) > 1 else strips[0]


def _strip_rows(x: Tensor, values_per_pixel: int) -> int:
    """Return the number of lines of `x` in a strip.

    Args:
        x: (B, C, H, W).
        values_per_pixel: Values of the widest result that each pixel of `x` becomes.
    """
    max_bytes = STRIP_BYTES if x.device.type == "cpu" else _STRIP_BYTES_DEVICE
    batch, _, _, width = x.shape
    line_bytes = batch * values_per_pixel * width * x.element_size()
    return max(max_bytes // line_bytes, _MIN_ROWS)


def _run_strip(x: Tensor, steps: Sequence[UpsampleStep], lines: slice) -> Tensor:
    """Run the steps for some lines of the result; no step gets more lines than the next one needs.

    Args:
        x: (B, C, H, W).
        steps: Steps whose factors multiply to s.
        lines: Lines of the result, of sH.

    Returns:
        (B, C', number of lines, sW).
    """
    # Backward from the result: the lines (top, bottom) that each step needs as its input.
    height = x.shape[2] * math.prod(step.factor for step in steps)
    top = lines.start
    bottom = lines.stop
    spans = [(top, bottom)]
    for step in reversed(steps):
        height //= step.factor
        # One line more on each side, within the image.
        top = max(top // step.factor - 1, 0)
        bottom = min(-(-bottom // step.factor) + 1, height)
        spans.append((top, bottom))

    # Forward: cut the result of each step to the lines that the next one needs.
    spans.reverse()
    first_line, last_line = spans[0]
    x = x[:, :, first_line:last_line]
    for step, (top, bottom) in zip(steps, spans[1:], strict=True):
        # Line of the full result at which the result of this step begins.
        first_line *= step.factor
        x = step.run(x)[:, :, top - first_line : bottom - first_line]
        first_line = top
    return x
