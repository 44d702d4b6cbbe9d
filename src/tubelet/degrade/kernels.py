"""Blur kernels of real-world degradation: Gaussians, their generalized and flat-topped kin, and the sinc filter.

All are (taps, taps), float64, of sum 1, and symmetric about the middle.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from torch import Tensor

__all__ = ["KernelShape", "shaped_kernel", "sinc_kernel"]

KernelShape = Literal["gaussian", "generalized", "plateau"]


def shaped_kernel(
    shape: KernelShape, sigma_x: float, sigma_y: float, angle_rad: float, beta: float, taps: int
) -> Tensor:
    """Sample a rotated kernel whose profile depends on q, the squared distance in units of σ.

    Args:
        shape: "gaussian" is exp(-q/2), "generalized" exp(-qᵝ/2), "plateau" 1/(1 + qᵝ).
        sigma_x: along the first axis, pixels.
        sigma_y: along the second axis, pixels.
        angle_rad: by which the axes are turned.
        beta: exponent: below 1 a sharper peak with longer tails, above 1 a flatter top; a Gaussian has none.
        taps: side of the kernel, odd.

    Source: Wang et al., Real-ESRGAN, ICCVW 2021, section 3.2; Liu et al., Estimating Generalized Gaussian Blur Kernels
    for Out-of-Focus Image Deblurring, 2020.
    """
    axis = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
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
    """Sample the circular low-pass filter that rings, as sharpening and strong compression do.

    Args:
        cutoff_rad: frequency above which nothing passes, radians a pixel, in (0, π].
        taps: side of the kernel, odd.

    Source: Wang et al., Real-ESRGAN, ICCVW 2021, Eq. 6.
    """
    axis = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    radius = (axis[:, None].square() + axis.square()).sqrt()
    middle = taps // 2
    radius[middle, middle] = 1.0  # the limit of J1(x)/x at 0 follows
    ring = cast(Tensor, torch.special.bessel_j1(cutoff_rad * radius))
    weights = cutoff_rad * ring / (2 * math.pi * radius)
    weights[middle, middle] = cutoff_rad**2 / (4 * math.pi)
    return weights / weights.sum()
