"""RGB to a palette of 256 colors, for GIF."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

__all__ = ["rgb_to_palette"]

_TRANSPARENT = 255


def rgb_to_palette(rgb: Tensor, alpha: Tensor | None) -> VideoFrame:
    """Choose colors for one image by median cut and spread the error.

    Args:
        rgb: (3, H, W) in [0, 1].
        alpha: (1, H, W) in [0, 1]; below one half is transparent. None is opaque.

    Returns:
        A pal8 frame without pts.
    """
    pixels = (rgb.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy()  # (H, W, 3)
    colors = 256 if alpha is None else _TRANSPARENT
    image = Image.fromarray(pixels).quantize(colors, dither=Image.Dither.FLOYDSTEINBERG)
    listed: Any = image.getpalette() or []
    palette = np.zeros((256, 4), np.uint8)  # A, R, G, B
    palette[:, 0] = 255
    entries = np.asarray(listed, np.uint8).reshape(-1, 3)
    palette[: len(entries), 1:] = entries
    indexes = np.array(image, np.uint8)
    if alpha is not None:
        indexes[alpha[0].numpy() < 0.5] = _TRANSPARENT
        palette[_TRANSPARENT] = 0
    return VideoFrame.from_ndarray((indexes, palette), format="pal8")  # pyright: ignore[reportArgumentType]
