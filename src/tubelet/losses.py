"""Training losses; each maps sr and gt, or a flow and the true one, of one shape to a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops.ssim import gaussian_taps, similarity_map

__all__ = [
    "LOSSES",
    "Loss",
    "LossName",
    "charbonnier",
    "encoder_distance",
    "end_point_error",
    "l1",
    "l1_and_ssim",
    "luma",
    "mse",
    "structural_similarity",
]

LossName = Literal["charbonnier", "l1", "mse"]
Loss = Callable[[Tensor, Tensor], Tensor]


def charbonnier(sr: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(error² + eps²): L1 that is smooth at 0.

    Args:
        sr: any shape.
        gt: the same shape.
        eps: width of the smooth part, in units of the pixels.

    Returns:
        scalar.

    Source: Charbonnier et al., ICIP 1994; in VSR since Lai et al., CVPR 2017.
    """
    return ((sr - gt).square() + eps**2).sqrt().mean()


def l1(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean absolute error: scalar, for two tensors of one shape."""
    return (sr - gt).abs().mean()


def mse(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean squared error, which PSNR measures: scalar, for two tensors of one shape."""
    return (sr - gt).square().mean()


def end_point_error(flow: Tensor, gt: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean distance between where a flow points and where it should.

    Args:
        flow: (B, 2, H, W), pixels.
        gt: the true flow, the same shape.
        weight: (B, 1, H, W), of each pixel; where all are 0, so is the error. Default: all alike.

    Returns:
        scalar, pixels. The gradient is finite where the two agree.

    Source: Otte and Nagel, ECCV 1994; Baker et al., IJCV 2011, Sec. 4.1.
    """
    distance = ((flow - gt).square().sum(1, keepdim=True) + 1e-12).sqrt()
    if weight is None:
        return distance.mean()
    return (distance * weight).sum() / weight.sum().clamp_min(1e-12)


def structural_similarity(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean structural similarity of RGB, to learn from: `metrics.ssim` without the rounding, in the type of `sr`.

    Args:
        sr: (..., C, H, W) in [0, 1], H and W at least 11.
        gt: the same shape.

    Returns:
        scalar, 1 for equal images: mean over all pixels whose 11×11 window (Gaussian, σ 1.5) lies within.

    Raises:
        ValueError: the images are smaller than the window.

    Source: Wang et al., IEEE TIP 2004, Eq. 13; constants for a data range of 1.
    """
    a = sr.reshape(-1, *sr.shape[-2:])
    b = gt.reshape(-1, *gt.shape[-2:])
    with torch.autocast(sr.device.type, enabled=False):
        return similarity_map(a, b, peak=1.0, blur=_blur).mean()


def _blur(x: Tensor) -> Tensor:
    """Weigh (4, N, H, W) by the window of SSIM, valid area only."""
    kernel = x.new_tensor(gaussian_taps())
    columns = functional.conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel.view(1, 1, -1, 1))
    blurred = functional.conv2d(columns, kernel.view(1, 1, 1, -1))
    return blurred.view(*x.shape[:2], *blurred.shape[-2:])


def l1_and_ssim(sr: Tensor, gt: Tensor, *, alpha: float) -> Tensor:
    """Mix absolute error and structure: alpha · MAE + (1 - alpha) · (1 - SSIM).

    Args:
        sr: (..., C, H, W) in [0, 1], H and W at least 11.
        gt: the same shape.
        alpha: from 0, SSIM alone, to 1, MAE alone.

    Returns:
        scalar.

    Source: two-step video super-resolution, Eq. 8.
    """
    return alpha * l1(sr, gt) + (1 - alpha) * (1 - structural_similarity(sr, gt))


def encoder_distance(left: Tensor, middle: Tensor, right: Tensor, *, alpha: float) -> Tensor:
    """Tell how far the features of the neighbors are from those of the frame that they help.

    Args:
        left: features of the frame before, any shape.
        middle: of the frame, the same shape.
        right: of the frame after, the same shape.
        alpha: weight of the right one, from 0 to 0.1; the left one has the rest of 0.1.

    Returns:
        scalar: alpha · MAE(right, middle) + (0.1 - alpha) · MAE(middle, left).

    Source: two-step video super-resolution, the terms that Eq. 11 adds to the MAE of the result.
    """
    return alpha * l1(right, middle) + (0.1 - alpha) * l1(middle, left)


def luma(x: Tensor) -> Tensor:
    """Weigh R'G'B' to full-range BT.601 luma: (..., 3, H, W) to (..., 1, H, W)."""
    red, green, blue = x.unbind(-3)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)


LOSSES: dict[LossName, Loss] = {"charbonnier": charbonnier, "l1": l1, "mse": mse}
