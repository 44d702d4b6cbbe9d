"""Find the regions of an image that show most: where the fine detail is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor
from torch.nn import functional

__all__ = ["Region", "detailed_regions"]


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image, in its pixels, and how much detail it has (mean gradient of luma)."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    detail: float

    def crop(self, rgb: Tensor) -> Tensor:
        """Cut it out of (..., H, W)."""
        return rgb[
            ..., self.y_px : self.y_px + self.height_px, self.x_px : self.x_px + self.width_px
        ]

    def overlaps(self, other: Region) -> bool:
        """Say whether the two share a pixel."""
        return (
            abs(self.x_px - other.x_px) < (self.width_px + other.width_px) / 2
            and abs(self.y_px - other.y_px) < (self.height_px + other.height_px) / 2
        )


def detailed_regions(rgb: Tensor, *, width_px: int, height_px: int, count: int) -> list[Region]:
    """Pick the regions with most detail, none over another, the best first.

    Args:
        rgb: (3, H, W) in [0, 1].
        width_px: of a region; at most that of the image is used.
        height_px: likewise.
        count: how many at most; a small image has fewer.
    """
    height, width = min(height_px, rgb.shape[-2]), min(width_px, rgb.shape[-1])
    luma = rgb.mean(0, keepdim=True)
    gradient = (luma[..., :-1, 1:] - luma[..., :-1, :-1]).abs() + (
        luma[..., 1:, :-1] - luma[..., :-1, :-1]
    ).abs()
    gradient = functional.pad(gradient[None], (0, 1, 0, 1))  # (1, 1, H, W)
    step = max(1, min(height, width) // 8)
    score = functional.avg_pool2d(gradient, (height, width), step)[
        0, 0
    ]  # one per place on a grid of `step`
    found: list[Region] = []
    order = cast(list[int], score.flatten().argsort(descending=True).tolist())
    for flat in order:
        row, column = divmod(flat, score.shape[1])
        region = Region(column * step, row * step, width, height, float(score[row, column]))
        if not any(region.overlaps(other) for other in found):
            found.append(region)
        if len(found) == count:
            break
    return found
