"""Find the regions of an image that are richest in fine detail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor
from torch.nn import functional

__all__ = ["Region", "detailed_regions"]


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image.

    Attributes:
        x_px: Left edge.
        y_px: Top edge.
        width_px: Width.
        height_px: Height.
        detail: Amount of fine detail, as the mean gradient of luma.
    """

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    detail: float

    def crop(self, rgb: Tensor) -> Tensor:
        """Cut the region out of an image (..., H, W)."""
        bottom = self.y_px + self.height_px
        right = self.x_px + self.width_px
        return rgb[..., self.y_px : bottom, self.x_px : right]

    def overlaps(self, other: Region) -> bool:
        """Return whether the two regions share a pixel."""
        # Regions of an image have one size, so this is also the distance of their centers.
        distance_x = abs(self.x_px - other.x_px)
        distance_y = abs(self.y_px - other.y_px)
        overlap_x = distance_x < (self.width_px + other.width_px) / 2
        overlap_y = distance_y < (self.height_px + other.height_px) / 2
        return overlap_x and overlap_y


def detailed_regions(
    rgb: Tensor,
    *,
    width_px: int,
    height_px: int,
    count: int,
) -> list[Region]:
    """Find regions of high detail that do not overlap, sorted by decreasing detail.

    Args:
        rgb: (3, H, W) in [0, 1].
        width_px: Width of a region, limited to that of the image.
        height_px: Height of a region, limited to that of the image.
        count: Upper limit on the number of regions; a small image has fewer.
    """
    height = min(height_px, rgb.shape[-2])
    width = min(width_px, rgb.shape[-1])

    # Gradient of luma, from the differences to the neighbors at the right and below.
    # (1, H, W) → (1, H - 1, W - 1) → (1, 1, H, W)
    luma = rgb.mean(0, keepdim=True)
    center = luma[..., :-1, :-1]
    gradient_x = (luma[..., :-1, 1:] - center).abs()
    gradient_y = (luma[..., 1:, :-1] - center).abs()
    gradient = gradient_x + gradient_y
    gradient = functional.pad(gradient[None], (0, 1, 0, 1))

    # Mean gradient of each region on a grid of `step` pixels: (rows, columns).
    step = max(1, min(height, width) // 8)
    detail = functional.avg_pool2d(gradient, (height, width), step)[0, 0]
    columns = detail.shape[1]

    regions: list[Region] = []
    order = cast(list[int], detail.flatten().argsort(descending=True).tolist())
    for index in order:
        row, column = divmod(index, columns)
        region = Region(
            x_px=column * step,
            y_px=row * step,
            width_px=width,
            height_px=height,
            detail=float(detail[row, column]),
        )
        if not any(map(region.overlaps, regions)):
            regions.append(region)
        if len(regions) == count:
            break
    return regions
