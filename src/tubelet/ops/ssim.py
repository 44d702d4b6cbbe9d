"""Structural similarity of every window of two images, shared by the metric and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SSIM_TAPS", "gaussian_taps", "require_window", "similarity_map"]

SSIM_TAPS = 11
"""Side of the window, pixels."""
_SIGMA_PX = 1.5
_K1 = 0.01
_K2 = 0.03


def gaussian_taps() -> list[float]:
    """Return the weights along one side of the separable window, which sum to 1."""
    taps: list[float] = []
    for i in range(SSIM_TAPS):
        distance_px = i - SSIM_TAPS // 2
        exponent = -(distance_px**2) / (2 * _SIGMA_PX**2)
        taps.append(math.exp(exponent))
    total = math.fsum(taps)
    return [tap / total for tap in taps]


def require_window(x: Tensor) -> None:
    """Check that images (..., H, W) are not smaller than the window.

    Raises:
        ValueError: They are smaller.
    """
    height, width = x.shape[-2:]
    if min(height, width) < SSIM_TAPS:
        raise ValueError(
            f"SSIM needs at least {SSIM_TAPS}×{SSIM_TAPS} pixels, got {width}×{height}"
        )


def similarity_map(
    a: Tensor,
    b: Tensor,
    *,
    peak: float,
    blur: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute the similarity of each 11×11 window of two images.

    Args:
        a: (N, H, W).
        b: The other images, the same shape.
        peak: Largest possible value of a pixel.
        blur: Convolves (4, N, H, W) with the window, valid area only: (4, N, H - 10, W - 10).

    Returns:
        (N, H - 10, W - 10), 1 where the windows are equal.

    Raises:
        ValueError: The images are smaller than the window.

    Source: Wang et al., IEEE TIP 2004, Eq. 13.
    """
    require_window(a)
    moments = blur(torch.stack([a, b, a * a + b * b, a * b]))
    mean_a, mean_b, mean_squares, mean_product = moments
    c1 = (_K1 * peak) ** 2
    c2 = (_K2 * peak) ** 2
    squared_means = mean_a * mean_a + mean_b * mean_b
    product_of_means = mean_a * mean_b
    # σa² + σb², and σab.
    variances = mean_squares - squared_means
    covariance = mean_product - product_of_means
    # Eq. 13.
    return (
        (2 * product_of_means + c1)
        * (2 * covariance + c2)
        / ((squared_means + c1) * (variances + c2))
    )
