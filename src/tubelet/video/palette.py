"""Convert RGB to a palette of 256 colors, for GIF."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

__all__ = ["rgb_to_palette"]

_PALETTE_SIZE = 256
# Palette index of transparent pixels.
_TRANSPARENT = 255


def rgb_to_palette(rgb: Tensor, alpha: Tensor | None) -> VideoFrame:
    """Choose a palette for one image by median cut, and diffuse the error (Floyd-Steinberg).

    Args:
        rgb: (3, H, W) in [0, 1].
        alpha: (1, H, W) in [0, 1]; below one half is transparent. None is opaque.

    Returns:
        A pal8 frame without pts.
    """
    codes = (rgb.clamp(0, 1) * 255).round().byte()
    # (H, W, 3)
    pixels = codes.movedim(0, -1).contiguous().numpy()
    num_colors = _PALETTE_SIZE if alpha is None else _TRANSPARENT
    image = Image.fromarray(pixels).quantize(num_colors, dither=Image.Dither.FLOYDSTEINBERG)

    # The columns of the palette are A, R, G, B.
    palette = np.zeros((_PALETTE_SIZE, 4), np.uint8)
    palette[:, 0] = 255
    flat_colors: Any = image.getpalette() or []
    colors = np.asarray(flat_colors, np.uint8).reshape(-1, 3)
    palette[: len(colors), 1:] = colors
    indexes = np.array(image, np.uint8)
    if alpha is not None:
        indexes[alpha[0].numpy() < 0.5] = _TRANSPARENT
        palette[_TRANSPARENT] = 0
    # The stubs do not know the pair of arrays that PyAV takes for pal8.
    planes: Any = (indexes, palette)
    return VideoFrame.from_ndarray(planes, format="pal8")
