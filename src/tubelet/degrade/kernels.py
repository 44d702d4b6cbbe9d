"""Blur kernels of real-world degradation: Gaussian, generalized, plateau-shaped and sinc.

All are (taps, taps), float64, of sum 1, and symmetric about the center.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor

__all__ = ["KernelShape", "shaped_kernel", "sinc_kernel"]

KernelShape = Literal["gaussian", "generalized", "plateau"]


def shaped_kernel(
    shape: KernelShape,
    sigma_x: float,
    sigma_y: float,
    angle_rad: float,
    beta: float,
    taps: int,
) -> Tensor:
    """Sample a rotated kernel that is a function of q, the squared distance in units of σ.

    Args:
        shape: "gaussian" is exp(-q/2), "generalized" exp(-qᵝ/2), "plateau" 1/(1 + qᵝ).
        sigma_x: Width along the first axis, pixels.
        sigma_y: Width along the second axis, pixels.
        angle_rad: Rotation of the axes, radians.
        beta: Exponent: below 1, a sharper peak with longer tails; above 1, a flatter top.
            A Gaussian ignores it.
        taps: Side of the kernel, odd.

    Source: Wang et al., Real-ESRGAN, ICCVW 2021, section 3.2; Liu et al., Estimating Generalized
    Gaussian Blur Kernels for Out-of-Focus Image Deblurring, 2020.
    """
    axis = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    # Coordinates along the rotated axes, in units of σ.
    u = (x * math.cos(angle_rad) + y * math.sin(angle_rad)) / sigma_x
    v = (y * math.cos(angle_rad) - x * math.sin(angle_rad)) / sigma_y
    q = u.square() + v.square()
    if shape == "gaussian":
        weights = torch.exp(-q / 2)
    elif shape == "generalized":
        weights = torch.exp(-q.pow(beta) / 2)
    else:
        weights = 1 / (1 + q.pow(beta))
    return weights / weights.sum()


def sinc_kernel(cutoff_rad: float, taps: int) -> Tensor:
    """Sample a circular low-pass filter, which rings as sharpening and strong compression do.

    Args:
        cutoff_rad: Cut-off frequency, radians per pixel, in (0, π].
        taps: Side of the kernel, odd.

    Source: Wang et al., Real-ESRGAN, ICCVW 2021, Eq. 6.
    """
    axis = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    radius = (axis[:, None].square() + axis.square()).sqrt()
    center = taps // 2
    # Avoid 0/0 at the center, whose value is set below.
    radius[center, center] = 1.0
    # Eq. 6.
    bessel = cast(Tensor, torch.special.bessel_j1(cutoff_rad * radius))
    weights = cutoff_rad * bessel / (2 * math.pi * radius)
    # The limit for a radius of 0, as J1(x)/x → 1/2.
    weights[center, center] = cutoff_rad**2 / (4 * math.pi)
    return weights / weights.sum()
