"""Rounding of image sizes, and padding to them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["pad_to", "round_up"]


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Extend images to the right and below.

    Images are mirrored where they are large enough for that; otherwise their last line and column
    are repeated.

    Args:
        x: (..., C, H, W), four dimensions or more.
        height: Height of the result, not below H.
        width: Width of the result, not below W.

    Returns:
        (..., C, height, width); `x` itself if it already has this size.

    Raises:
        ValueError: The images are larger than the requested size.
    """
    missing_lines = height - x.shape[-2]
    missing_columns = width - x.shape[-1]
    if not missing_lines and not missing_columns:
        return x
    if missing_lines < 0 or missing_columns < 0:
        raise ValueError(
            f"images of {x.shape[-1]}x{x.shape[-2]} cannot be padded to {width}x{height}"
        )

    can_mirror = missing_lines < x.shape[-2] and missing_columns < x.shape[-1]
    # (N, C, H, W): torch mirrors four dimensions, not five.
    images = x.reshape(-1, *x.shape[-3:])
    padded = functional.pad(
        images,
        (0, missing_columns, 0, missing_lines),
        mode="reflect" if can_mirror else "replicate",
    )
    return padded.reshape(*x.shape[:-2], height, width)
