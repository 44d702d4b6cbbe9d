"""Gaussian blur, in the conventions with which the BD benchmark sets were created."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["blur", "gaussian_kernel", "gaussian_taps"]


def gaussian_taps(sigma: float, taps: int) -> Tensor:
    """Sample a normalized 1-D Gaussian at `taps` positions around 0.

    Args:
        sigma: Standard deviation, pixels.
        taps: Number of samples, one pixel apart.

    Returns:
        (taps,), float64, of sum 1.
    """
    x = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def gaussian_kernel(
    sigma_x: float,
    sigma_y: float,
    angle_rad: float,
    taps: int,
) -> Tensor:
    """Sample a normalized, rotated, anisotropic 2-D Gaussian.

    Args:
        sigma_x: Standard deviation along the first axis, pixels.
        sigma_y: Standard deviation along the second axis, pixels.
        angle_rad: Rotation of the axes, radians.
        taps: Side of the kernel.

    Returns:
        (taps, taps), float64, of sum 1.
    """
    axis = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    # Coordinates along the rotated axes.
    u = x * math.cos(angle_rad) + y * math.sin(angle_rad)
    v = y * math.cos(angle_rad) - x * math.sin(angle_rad)
    weights = torch.exp(-(u**2) / (2 * sigma_x**2) - v**2 / (2 * sigma_y**2))
    return weights / weights.sum()


def blur(
    clip: Tensor,
    kernel: Tensor,
    *,
    stride: int = 1,
    phase: int = 0,
    edge: Literal["reflect", "replicate"] = "reflect",
) -> Tensor:
    """Correlate every channel with a kernel and keep every `stride`-th sample.

    Args:
        clip: (T, C, H, W).
        kernel: (K,) for a separable kernel, or (K, K). An even K is anchored at its index K/2 - 1.
        stride: Distance between output samples, pixels of `clip`.
        phase: Index of the first output sample.
        edge: "reflect" mirrors without repeating the edge sample, "replicate" repeats the edge
            sample without end.

    Returns:
        (T, C, ceil((H - phase)/stride), ceil((W - phase)/stride)).
    """
    taps = kernel.shape[-1]
    pad_before = (taps - 1) // 2
    pad_after = taps // 2
    frames, channels, height, width = clip.shape

    x = functional.pad(clip, (pad_before, pad_after, pad_before, pad_after), mode=edge)
    # (1, T·C, H', W'): one depthwise convolution over all frames fills the vector units.
    x = x.flatten(0, 1)[None, :, phase:, phase:]

    kernel = kernel.to(x)
    # A separable kernel filters the rows, (1, K), and then the columns, (K, 1).
    separable = kernel.ndim == 1
    passes = [kernel[None, :], kernel[:, None]] if separable else [kernel]
    for weight in passes:
        # Each pass strides along the axes on which it filters.
        stride_y = stride if weight.shape[0] > 1 else 1
        stride_x = stride if weight.shape[1] > 1 else 1
        x = functional.conv2d(
            x,
            weight.expand(frames * channels, 1, *weight.shape),
            stride=(stride_y, stride_x),
            groups=frames * channels,
        )

    # An even kernel pads one sample more than its first tap needs.
    out_height = math.ceil((height - phase) / stride)
    out_width = math.ceil((width - phase) / stride)
    x = x[..., :out_height, :out_width]
    return x.reshape(frames, channels, out_height, out_width)
