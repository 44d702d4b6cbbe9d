"""PSNR and SSIM as the field computes them: 8-bit rounding, BT.601 luma, float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tubelet.ops.ssim import SSIM_TAPS, gaussian_taps, require_window, similarity_map

__all__ = ["Channel", "psnr", "ssim", "to_channel"]

Channel = Literal["y", "rgb"]
# Lines of an image that SSIM processes at once: intermediate results stay in the cache.
_STRIP_ROWS = 64


def to_channel(x: Tensor, channel: Channel) -> Tensor:
    """Round to 8 bit, then convert to luma (BT.601 limited range, not rounded) or keep RGB.

    Args:
        x: (..., 3, H, W) in [0, 1].
        channel: "y" or "rgb".

    Returns:
        (..., 1 or 3, H, W), float64, in [0, 255].

    Raises:
        ValueError: The channel is unknown.
    """
    if channel not in ("y", "rgb"):
        raise ValueError(f"channel={channel!r} must be 'y' or 'rgb'")
    # In place: allocating pages takes longer than the arithmetic.
    levels = x.to(torch.float64, copy=True)
    levels.clamp_(0, 1).mul_(255).round_()
    if channel == "rgb":
        return levels

    red = levels.narrow(-3, 0, 1)
    green = levels.narrow(-3, 1, 1)
    blue = levels.narrow(-3, 2, 1)
    luma = 65.481 / 255 * red
    luma.add_(green, alpha=128.553 / 255)
    luma.add_(blue, alpha=24.966 / 255)
    return luma.add_(16)


def _crop(x: Tensor, border: int) -> Tensor:
    height, width = x.shape[-2:]
    return x[..., border : height - border, border : width - border]


def psnr(
    sr: Tensor,
    gt: Tensor,
    *,
    channel: Channel = "y",
    border: int = 0,
) -> Tensor:
    """Compute the peak signal-to-noise ratio; higher is better, infinite for equal images.

    Args:
        sr: Restored image, (..., 3, H, W) in [0, 1].
        gt: Ground truth, the same shape.
        channel: "y" (BT.601 limited, not rounded) or "rgb".
        border: Pixels left out on each side.

    Returns:
        (...), dB, float64.

    Raises:
        ValueError: The shapes differ or are not (..., 3, H, W), the channel is unknown, or the
            border leaves no pixels.

    Source: docs/protocols.md; the convention of BasicSR and KAIR.
    """
    _check(sr, gt, border)
    sr_values = _crop(to_channel(sr, channel), border)
    gt_values = _crop(to_channel(gt, channel), border)
    error = sr_values - gt_values
    mse = error.square().mean((-3, -2, -1))
    return 10 * torch.log10(255.0**2 / mse)


def ssim(
    sr: Tensor,
    gt: Tensor,
    *,
    channel: Channel = "y",
    border: int = 0,
) -> Tensor:
    """Compute the structural similarity; higher is better, 1 for equal images.

    The window is a Gaussian of 11×11 pixels with σ 1.5; only windows within the image count.

    Args:
        sr: Restored image, (..., 3, H, W) in [0, 1].
        gt: Ground truth, the same shape.
        channel: "y" (BT.601 limited, not rounded) or "rgb".
        border: Pixels left out on each side.

    Returns:
        (...), float64, the mean over pixels and channels.

    Raises:
        ValueError: As `psnr`, or fewer than 11×11 pixels are left.

    Source: Wang et al., IEEE TIP 2004.
    """
    _check(sr, gt, border)
    a = _crop(to_channel(sr, channel), border)
    b = _crop(to_channel(gt, channel), border)
    *batch_shape, _, height, width = a.shape
    require_window(a)
    # (N, H, W), images and channels
    a = a.reshape(-1, height, width)
    b = b.reshape(-1, height, width)

    num_rows = height - SSIM_TAPS + 1
    num_columns = width - SSIM_TAPS + 1
    total = a.new_zeros(len(a))
    for top in range(0, num_rows, _STRIP_ROWS):
        # The lines under the windows of these rows.
        lines = slice(top, top + _STRIP_ROWS + SSIM_TAPS - 1)
        similarity = similarity_map(a[:, lines], b[:, lines], peak=255.0, blur=_blur)
        total = total + similarity.sum((1, 2))
    mean = total / (num_rows * num_columns)
    return mean.reshape(*batch_shape, -1).mean(-1)


def _blur(x: Tensor) -> Tensor:
    """Convolve (..., H, W) with the window of SSIM, valid area only.

    The convolution is a sum of shifted images: those of torch take twenty times as long in float64.
    """
    taps = gaussian_taps()
    for axis in (-2, -1):
        size = x.shape[axis] - SSIM_TAPS + 1
        blurred = x.narrow(axis, 0, size) * taps[0]
        for start, tap in enumerate(taps[1:], start=1):
            blurred.add_(x.narrow(axis, start, size), alpha=tap)
        x = blurred
    return x


def _check(sr: Tensor, gt: Tensor, border: int) -> None:
    if sr.shape != gt.shape:
        raise ValueError(f"sr is {tuple(sr.shape)} but gt is {tuple(gt.shape)}; they must agree")
    if sr.ndim < 3 or sr.shape[-3] != 3:
        raise ValueError(f"sr is {tuple(sr.shape)}; it must be (..., 3, H, W)")
    height, width = sr.shape[-2:]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"border={border} leaves nothing of {width}×{height} pixels")
