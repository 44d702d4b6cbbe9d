"""PSNR and SSIM as the field computes them: 8-bit rounding, BT.601 luma, float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tubelet.ops.ssim import SSIM_TAPS, gaussian_taps, require_window, similarity_map

__all__ = ["Channel", "psnr", "ssim", "to_channel"]

Channel = Literal["y", "rgb"]
_STRIP_ROWS = 64  # of an image at once: what is computed on the way stays in the processor's cache


def to_channel(x: Tensor, channel: Channel) -> Tensor:
    """Round to 8 bit, then take luma (BT.601 limited range, not rounded) or all three channels.

    Args:
        x: (..., 3, H, W) in [0, 1].
        channel: "y" or "rgb".

    Returns:
        (..., 1 or 3, H, W), float64, in [0, 255].

    Raises:
        ValueError: the channel is unknown.
    """
    if channel not in ("y", "rgb"):
        raise ValueError(f"channel={channel!r} must be 'y' or 'rgb'")
    x = (
        x.to(torch.float64, copy=True).clamp_(0, 1).mul_(255).round_()
    )  # in place: pages are dearer than sums
    if channel == "rgb":
        return x
    red, green, blue = (x.narrow(-3, index, 1) for index in range(3))
    return (
        (65.481 / 255 * red)
        .add_(green, alpha=128.553 / 255)
        .add_(blue, alpha=24.966 / 255)
        .add_(16)
    )


def _crop(x: Tensor, border: int) -> Tensor:
    return x[..., border : x.shape[-2] - border, border : x.shape[-1] - border]


def psnr(sr: Tensor, gt: Tensor, *, channel: Channel = "y", border: int = 0) -> Tensor:
    """Peak signal-to-noise ratio; higher is better, infinite for equal images.

    Args:
        sr: (..., 3, H, W) in [0, 1].
        gt: as `sr`.
        channel: "y" (BT.601 limited, not rounded) or "rgb".
        border: pixels left out on each side.

    Returns:
        (...), dB, float64.

    Raises:
        ValueError: the shapes differ or are not (..., 3, H, W), the channel is unknown, or the border leaves nothing.

    Source: docs/protocols.md; the convention of BasicSR and KAIR.
    """
    _check(sr, gt, border)
    error = _crop(to_channel(sr, channel), border) - _crop(to_channel(gt, channel), border)
    mse = error.square().mean((-3, -2, -1))
    return 10 * torch.log10(255.0**2 / mse)


def ssim(sr: Tensor, gt: Tensor, *, channel: Channel = "y", border: int = 0) -> Tensor:
    """Structural similarity, 11×11 Gaussian window σ 1.5, valid area only; higher is better, 1 for equal images.

    Args and conventions: as `psnr`.

    Returns:
        (...), float64, the mean over pixels and channels.

    Raises:
        ValueError: as `psnr`, or fewer than 11×11 pixels are left.

    Source: Wang et al., IEEE TIP 2004.
    """
    _check(sr, gt, border)
    a, b = (_crop(to_channel(x, channel), border) for x in (sr, gt))
    shape, (height, width) = a.shape[:-3], a.shape[-2:]
    require_window(a)
    a, b = (x.reshape(-1, height, width) for x in (a, b))
    rows, columns = height - SSIM_TAPS + 1, width - SSIM_TAPS + 1
    total = a.new_zeros(len(a))
    for top in range(0, rows, _STRIP_ROWS):
        strip = slice(top, top + _STRIP_ROWS + SSIM_TAPS - 1)
        total = total + similarity_map(a[:, strip], b[:, strip], peak=255.0, blur=_blur).sum((1, 2))
    return (total / (rows * columns)).reshape(*shape, -1).mean(-1)


def _blur(x: Tensor) -> Tensor:
    """Weigh (..., H, W) by the window of SSIM, valid area only.

    Sums of shifted images: the convolutions of torch take twenty times as long in float64.
    """
    taps = gaussian_taps()
    for axis in (-2, -1):
        size = x.shape[axis] - SSIM_TAPS + 1
        blurred = x.narrow(axis, 0, size) * taps[0]
        for start, tap in enumerate(taps[1:], start=1):
            blurred = blurred.add_(x.narrow(axis, start, size), alpha=tap)
        x = blurred
    return x


def _check(sr: Tensor, gt: Tensor, border: int) -> None:
    if sr.shape != gt.shape:
        raise ValueError(f"sr is {tuple(sr.shape)} but gt is {tuple(gt.shape)}; they must agree")
    if sr.ndim < 3 or sr.shape[-3] != 3:
        raise ValueError(f"sr is {tuple(sr.shape)}; it must be (..., 3, H, W)")
    if border < 0 or min(sr.shape[-2:]) <= 2 * border:
        raise ValueError(f"border={border} leaves nothing of {sr.shape[-1]}×{sr.shape[-2]} pixels")
