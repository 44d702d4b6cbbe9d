"""Gaussian blur in the conventions that the literature's BD sets were made with."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["blur", "gaussian_kernel", "gaussian_taps"]


def gaussian_taps(sigma: float, taps: int) -> Tensor:
    """Sample a normalized Gaussian at `taps` positions around 0: (taps,), float64."""
    x = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def gaussian_kernel(sigma_x: float, sigma_y: float, angle_rad: float, taps: int) -> Tensor:
    """Sample a normalized, rotated, anisotropic Gaussian: (taps, taps), float64."""
    axis = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
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
        stride: distance of the samples kept.
        phase: index of the first sample kept.
        edge: "reflect" does not repeat the edge sample, "replicate" repeats it without end.

    Returns:
        (T, C, ceil((H - phase)/stride), ceil((W - phase)/stride)).
    """
    taps = kernel.shape[-1]
    before, after = (taps - 1) // 2, taps // 2
    frames, channels, height, width = clip.shape
    x = functional.pad(clip, (before, after, before, after), mode=edge)
    x = x.flatten(0, 1)[
        None, :, phase:, phase:
    ]  # (1, T·C, ...): a depthwise convolution fills the vector units
    kernel = kernel.to(x)
    passes = [kernel[None, :], kernel[:, None]] if kernel.ndim == 1 else [kernel]
    for weight in passes:
        step = tuple(stride if n > 1 else 1 for n in weight.shape)
        x = functional.conv2d(
            x,
            weight.expand(frames * channels, 1, *weight.shape),
            stride=step,
            groups=frames * channels,
        )
    rows, columns = math.ceil((height - phase) / stride), math.ceil((width - phase) / stride)
    return x[..., :rows, :columns].reshape(frames, channels, rows, columns)
