"""Images for people: tensors to PNG and JPEG, and inputs enlarged to the size of a result."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

from tubelet.ops.pixels import to_image_array
from tubelet.ops.resize import Kernel, resample

__all__ = ["data_url", "enlarge", "to_image"]


def to_image(rgb: Tensor) -> Image.Image:
    """Round (3, H, W) in [0, 1] to an 8-bit image."""
    return Image.fromarray(to_image_array(rgb))


def enlarge(rgb: Tensor, size: tuple[int, int], kernel: Kernel = "bicubic") -> Tensor:
    """Resize (3, H, W) to `size` (H', W') as a player would: no model, values kept in [0, 1]."""
    return rgb if tuple(rgb.shape[-2:]) == size else resample(rgb, size, kernel=kernel).clamp(0, 1)


def data_url(image: Image.Image, *, lossless: bool = False) -> str:
    """Write an image into a `data:` address: PNG, or JPEG of high quality with full color resolution."""
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=94, subsampling=0, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
