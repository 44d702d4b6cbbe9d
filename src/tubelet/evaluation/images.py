"""Convert tensors to images for pages and previews, and enlarge inputs to the size of a result."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

from tubelet.ops.pixels import to_image_array
from tubelet.ops.resize import Kernel, resample

__all__ = ["data_url", "enlarge", "to_image"]


def to_image(rgb: Tensor) -> Image.Image:
    """Convert (3, H, W) in [0, 1] to an 8-bit image."""
    return Image.fromarray(to_image_array(rgb))


def enlarge(
    rgb: Tensor,
    size: tuple[int, int],
    kernel: Kernel = "bicubic",
) -> Tensor:
    """Resize an image without a model, as a player does.

    Args:
        rgb: (3, H, W) in [0, 1].
        size: (H', W'), pixels.
        kernel: Resampling filter.

    Returns:
        (3, H', W') in [0, 1]; `rgb` itself if it has this size.
    """
    if tuple(rgb.shape[-2:]) == size:
        return rgb
    # Bicubic and Lanczos overshoot at edges.
    return resample(rgb, size, kernel=kernel).clamp(0, 1)


def data_url(image: Image.Image, *, lossless: bool = False) -> str:
    """Encode an image as a `data:` URL, for pages that consist of one file.

    Args:
        image: The image.
        lossless: PNG instead of JPEG of high quality and full color resolution.
    """
    buffer = io.BytesIO()
    if lossless:
        media_type = "image/png"
        image.save(buffer, "PNG", optimize=True)
    else:
        media_type = "image/jpeg"
        image.save(buffer, "JPEG", quality=94, subsampling=0, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:{media_type};base64,{encoded}"
