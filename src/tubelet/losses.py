"""Training losses: each maps two tensors of one shape (sr and gt, or two flows) to a scalar."""

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
    """Compute the mean of sqrt(error² + eps²): L1 that is smooth at 0.

    Args:
        sr: Restored frames, any shape.
        gt: Ground truth, the same shape.
        eps: Width of the smooth range, in units of the pixels.

    Returns:
        Scalar.

    Source: Charbonnier et al., ICIP 1994; in VSR since Lai et al., CVPR 2017.
    """
    squared_error = (sr - gt).square()
    return (squared_error + eps**2).sqrt().mean()


def l1(sr: Tensor, gt: Tensor) -> Tensor:
    """Compute the mean absolute error of two tensors of one shape: scalar."""
    return (sr - gt).abs().mean()


def mse(sr: Tensor, gt: Tensor) -> Tensor:
    """Compute the mean squared error (the basis of PSNR) of two tensors of one shape: scalar."""
    return (sr - gt).square().mean()


def end_point_error(flow: Tensor, gt: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Compute the mean distance between the end points of estimated and true flow vectors.

    Args:
        flow: (B, 2, H, W), pixels.
        gt: True flow, the same shape.
        weight: (B, 1, H, W), weight of each pixel; if all are 0, so is the error. None: equal
            weights.

    Returns:
        Scalar, pixels. The gradient is finite where the two flows agree.

    Source: Otte and Nagel, ECCV 1994; Baker et al., IJCV 2011, Sec. 4.1.
    """
    squared_distance = (flow - gt).square().sum(1, keepdim=True)
    # The square root has no finite gradient at 0.
    distance = (squared_distance + 1e-12).sqrt()
    if weight is None:
        return distance.mean()
    total_weight = weight.sum().clamp_min(1e-12)
    return (distance * weight).sum() / total_weight


def structural_similarity(sr: Tensor, gt: Tensor) -> Tensor:
    """Compute the mean structural similarity of RGB, differentiably.

    This is `metrics.ssim` without the rounding to 8 bit, in the type of `sr`.

    Args:
        sr: (..., C, H, W) in [0, 1], at least 11×11 pixels.
        gt: Ground truth, the same shape.

    Returns:
        Scalar, 1 for equal images: mean over all pixels whose 11×11 window (Gaussian, σ 1.5) is
        within the image.

    Raises:
        ValueError: The images are smaller than the window.

    Source: Wang et al., IEEE TIP 2004, Eq. 13; constants for a data range of 1.
    """
    # (N, H, W)
    a = sr.reshape(-1, *sr.shape[-2:])
    b = gt.reshape(-1, *gt.shape[-2:])
    # Variances are differences of large numbers: they need full precision.
    with torch.autocast(sr.device.type, enabled=False):
        return similarity_map(a, b, peak=1.0, blur=_blur).mean()


def _blur(x: Tensor) -> Tensor:
    """Convolve (4, N, H, W) with the window of SSIM, valid area only."""
    num_moments, num_images, height, width = x.shape
    kernel = x.new_tensor(gaussian_taps())
    images = x.reshape(-1, 1, height, width)
    blurred = functional.conv2d(images, kernel.view(1, 1, -1, 1))
    blurred = functional.conv2d(blurred, kernel.view(1, 1, 1, -1))
    return blurred.view(num_moments, num_images, *blurred.shape[-2:])


def l1_and_ssim(sr: Tensor, gt: Tensor, *, alpha: float) -> Tensor:
    """Mix absolute error and structural similarity: alpha · MAE + (1 - alpha) · (1 - SSIM).

    Args:
        sr: (..., C, H, W) in [0, 1], at least 11×11 pixels.
        gt: Ground truth, the same shape.
        alpha: From 0 (only SSIM) to 1 (only MAE).

    Returns:
        Scalar.

    Source: two-step video super-resolution, Eq. 8.
    """
    absolute_error = l1(sr, gt)
    dissimilarity = 1 - structural_similarity(sr, gt)
    # Eq. 8.
    return alpha * absolute_error + (1 - alpha) * dissimilarity


def encoder_distance(
    left: Tensor,
    middle: Tensor,
    right: Tensor,
    *,
    alpha: float,
) -> Tensor:
    """Compute the distance of the features of a frame from those of its two neighbors.

    Args:
        left: Features of the frame before, any shape.
        middle: Features of the frame, the same shape.
        right: Features of the frame after, the same shape.
        alpha: Weight of the right neighbor, from 0 to 0.1; that of the left one is 0.1 - alpha.

    Returns:
        Scalar: alpha · MAE(right, middle) + (0.1 - alpha) · MAE(middle, left).

    Source: two-step video super-resolution, the terms that Eq. 11 adds to the MAE of the result.
    """
    right_distance = l1(right, middle)
    left_distance = l1(middle, left)
    return alpha * right_distance + (0.1 - alpha) * left_distance


def luma(x: Tensor) -> Tensor:
    """Convert R'G'B' to full-range BT.601 luma: (..., 3, H, W) to (..., 1, H, W)."""
    red, green, blue = x.unbind(-3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma.unsqueeze(-3)


LOSSES: dict[LossName, Loss] = {"charbonnier": charbonnier, "l1": l1, "mse": mse}
