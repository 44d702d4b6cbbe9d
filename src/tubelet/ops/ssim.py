"""Structural similarity of every window of two images: what the metric and the loss have in common."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SSIM_TAPS", "gaussian_taps", "require_window", "similarity_map"]

SSIM_TAPS = 11
"""Side of the window, pixels."""
_SIGMA_PX = 1.5
_K1, _K2 = 0.01, 0.03


def gaussian_taps() -> list[float]:
    """Return one side of the window: its weights, which sum to 1."""
    taps = [math.exp(-((i - SSIM_TAPS // 2) ** 2) / (2 * _SIGMA_PX**2)) for i in range(SSIM_TAPS)]
    total = math.fsum(taps)
    return [tap / total for tap in taps]


def require_window(x: Tensor) -> None:
    """Refuse images (..., H, W) that are smaller than the window.

    Raises:
        ValueError: they are.
    """
    height, width = x.shape[-2:]
    if min(height, width) < SSIM_TAPS:
        raise ValueError(
            f"SSIM needs at least {SSIM_TAPS}×{SSIM_TAPS} pixels, got {width}×{height}"
        )


def similarity_map(
    a: Tensor, b: Tensor, *, peak: float, blur: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compare each 11×11 window of two images.

    Args:
        a: (N, H, W).
        b: the same shape.
        peak: largest value that a pixel can have.
        blur: weighs (4, N, H, W) by the window, valid area only: (4, N, H - 10, W - 10).

    Returns:
        (N, H - 10, W - 10), 1 where the windows are equal.

    Raises:
        ValueError: the images are smaller than the window.

    Source: Wang et al., IEEE TIP 2004, Eq. 13.
    """
    require_window(a)
    mean_a, mean_b, squares, product = blur(torch.stack([a, b, a * a + b * b, a * b]))
    c1 = (_K1 * peak) ** 2
    c2 = (_K2 * peak) ** 2
    squared_means = mean_a * mean_a + mean_b * mean_b
    product_of_means = mean_a * mean_b
    variances = squares - squared_means
    covariance = product - product_of_means
    return (
        (2 * product_of_means + c1)
        * (2 * covariance + c2)
        / ((squared_means + c1) * (variances + c2))
    )
