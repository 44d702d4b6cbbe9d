"""Conversions to and from 8-bit pixel values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["quantize", "to_float", "to_image_array", "to_uint8"]


def quantize(x: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to multiples of 1/255, as saving in 8 bit and reading again does.

    Args:
        x: Floating-point tensor of any shape.

    Returns:
        Tensor of the same shape and type. Halves are rounded to even, unlike in MATLAB, which
        `imresize(..., rounding="u8")` follows.
    """
    return (x.clamp(0, 1) * 255).round() / 255


def to_uint8(x: Tensor) -> Tensor:
    """Map values of [0, 1] to [0, 255], clamped and rounded: the same shape, uint8."""
    return (x.clamp(0, 1) * 255).round().byte()


def to_float(x: Tensor) -> Tensor:
    """Map uint8 values to [0, 1]: the same shape, float32."""
    return x.float().div_(255)


def to_image_array(rgb: Tensor) -> NDArray[np.uint8]:
    """Convert an image for Pillow and OpenCV.

    Args:
        rgb: (3, H, W) in [0, 1], on any device.

    Returns:
        (H, W, 3), uint8, contiguous, on the CPU.
    """
    image = to_uint8(rgb).movedim(0, -1)
    return image.contiguous().cpu().numpy()
