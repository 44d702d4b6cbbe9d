"""Sizes that networks take, and padding to them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["pad_to", "round_up"]


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a value."""
    return -(-value // multiple) * multiple


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Extend images to the right and below: mirrored where they are large enough for that, otherwise repeated.

    Args:
        x: (..., C, H, W) of at least four dimensions.
        height: of the result, at least H.
        width: of the result, at least W.

    Returns:
        (..., C, height, width); `x` itself where nothing is missing.

    Raises:
        ValueError: the images are larger than that.
    """
    down = height - x.shape[-2]
    across = width - x.shape[-1]
    if not down and not across:
        return x
    if down < 0 or across < 0:
        raise ValueError(
            f"images of {x.shape[-1]}x{x.shape[-2]} cannot be padded to {width}x{height}"
        )
    can_mirror = down < x.shape[-2] and across < x.shape[-1]
    images = x.reshape(-1, *x.shape[-3:])  # torch mirrors four dimensions, not five
    padded = functional.pad(
        images, (0, across, 0, down), mode="reflect" if can_mirror else "replicate"
    )
    return padded.reshape(*x.shape[:-2], height, width)
