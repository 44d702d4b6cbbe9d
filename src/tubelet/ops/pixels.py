"""Pixels as files of 8 bit hold them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["quantize", "to_image_array", "to_uint8"]


def quantize(x: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to multiples of 1/255, as saving in 8 bit and reading again does.

    Args:
        x: any shape, floating point.

    Returns:
        the same shape and type. Halves go to the even neighbor; `imresize(..., rounding="u8")` has MATLAB's way.
    """
    return (x.clamp(0, 1) * 255).round() / 255


def to_uint8(x: Tensor) -> Tensor:
    """Round values of [0, 1] to whole numbers of [0, 255], those outside to the ends: the same shape, uint8."""
    return (x.clamp(0, 1) * 255).round().byte()


def to_image_array(rgb: Tensor) -> NDArray[np.uint8]:
    """Round an image (3, H, W) in [0, 1] to the array that Pillow and OpenCV take: (H, W, 3) uint8, on the CPU."""
    return to_uint8(rgb).movedim(0, -1).contiguous().cpu().numpy()
