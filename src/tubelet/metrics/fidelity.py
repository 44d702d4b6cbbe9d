"""PSNR and SSIM as the field computes them: 8-bit rounding, BT.601 luma, float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Channel", "psnr", "ssim", "to_channel"]

Channel = Literal["y", "rgb"]


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
    x = (x.double().clamp(0, 1) * 255).round()
    if channel == "rgb":
        return x
    weights = x.new_tensor([65.481, 128.553, 24.966]) / 255
    return 16 + torch.einsum("...chw,c->...hw", x, weights).unsqueeze(-3)


def _crop(x: Tensor, border: int) -> Tensor:
    return x[..., border : x.shape[-2] - border, border : x.shape[-1] - border]


def psnr(sr: Tensor, gt: Tensor, *, channel: Channel = "y", border: int = 0) -> Tensor:
    """Peak signal-to-noise ratio; higher is better, infinite for equal pictures.

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
    """Structural similarity, 11×11 Gaussian window σ 1.5, valid area only; higher is better, 1 for equal pictures.

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
    if min(height, width) < 11:
        raise ValueError(f"SSIM needs at least 11×11 pixels, got {width}×{height}")
    a, b = (x.reshape(-1, 1, height, width) for x in (a, b))
    mean_a, mean_b, aa, bb, ab = _window(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return value.mean((-2, -1)).reshape(*shape, -1).mean(-1)


def _window(x: Tensor) -> Tensor:
    taps = torch.exp(-((torch.arange(11, dtype=x.dtype, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    return functional.conv2d(functional.conv2d(x, taps.reshape(1, 1, 11, 1)), taps.reshape(1, 1, 1, 11))


def _check(sr: Tensor, gt: Tensor, border: int) -> None:
    if sr.shape != gt.shape:
        raise ValueError(f"sr is {tuple(sr.shape)} but gt is {tuple(gt.shape)}; they must agree")
    if sr.ndim < 3 or sr.shape[-3] != 3:
        raise ValueError(f"sr is {tuple(sr.shape)}; it must be (..., 3, H, W)")
    if border < 0 or min(sr.shape[-2:]) <= 2 * border:
        raise ValueError(f"border={border} leaves nothing of {sr.shape[-1]}×{sr.shape[-2]} pixels")
