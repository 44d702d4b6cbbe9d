"""Keep of a clip what a page shows of it: crops of one frame, and a column of pixels over time.

The places are chosen on the original alone, so they are the same for every model. What is kept in memory is a column
per frame and a few crops.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tubelet.evaluation.crops import Region, detailed_regions
from tubelet.evaluation.images import enlarge, to_image
from tubelet.evaluation.results import Showcase
from tubelet.files import atomic_write
from tubelet.ops.pixels import to_uint8

__all__ = ["CropCollector", "image_path"]

ORIGINAL, BICUBIC = "original", "input-bicubic"
_CROP_PX = (
    128,
    96,
)  # width, height: four side by side fit a desktop at twice their size, two a phone
_CANDIDATES = 8
_COLUMN_PX = 160
_MAX_COLUMNS = 240  # frames of a profile; what comes later is left out


class CropCollector:
    """Takes the frames of one clip as they come.

    Args:
        frame: number of the frame of the crops.
    """

    def __init__(self, frame: int) -> None:
        self.frame = frame
        self.showcase: Showcase | None = None
        self._column: tuple[int, int, int] | None = None
        self._profiles: dict[str, NDArray[np.uint8]] = {}
        self._frames = 0
        self._crops: dict[str, list[Image.Image]] = {}

    def add(self, index: int, *, sr: Tensor, gt: Tensor | None, lq: Tensor | None) -> None:
        """Keep what is needed of a frame.

        Args:
            index: its number, from 0.
            sr: (3, H, W) in [0, 1].
            gt: as `sr`, or None where there is no original.
            lq: (3, H/s, W/s); needed for the frame of the crops only.
        """
        reference = sr if gt is None else gt
        column = self._column = self._column or _choose_column(reference)
        if index < _MAX_COLUMNS:
            self._frames = index + 1
            for name, image in (("result", sr), (ORIGINAL, gt)):
                if image is not None:
                    self._profile(name, column[2])[:, index] = _pixels(image, column)
        if index != self.frame:
            return
        regions = _choose_regions(reference)
        size = (reference.shape[-2], reference.shape[-1])
        sides = {"result": sr, ORIGINAL: gt, BICUBIC: None if lq is None else enlarge(lq, size)}
        for name, image in sides.items():
            if image is not None:
                self._crops[name] = [to_image(region.crop(image)) for region in regions]
        boxes = tuple((r.x_px, r.y_px, r.width_px, r.height_px) for r in regions)
        self.showcase = Showcase(frame=index, crops=boxes, column=column)

    def _profile(self, name: str, height: int) -> NDArray[np.uint8]:
        """Give the (height, frames, 3) of a side, made once: an array per frame would hold the heap open behind it."""
        if name not in self._profiles:
            self._profiles[name] = np.zeros((height, _MAX_COLUMNS, 3), np.uint8)
        return self._profiles[name]

    def save(self, out: Path, clip: str, model: str) -> None:
        """Write the images below `out`, those of the original and of the input too."""
        for side, crops in self._crops.items():
            for number, crop in enumerate(crops):
                _save(crop, image_path(out, clip, model if side == "result" else side, number))
        for side, profile in self._profiles.items():
            image = Image.fromarray(np.ascontiguousarray(profile[:, : self._frames]))
            _save(image, image_path(out, clip, model if side == "result" else side, "profile"))


def image_path(out: Path, clip: str, who: str, what: int | str) -> Path:
    """Name an image's file: crops are numbered, "profile" is the temporal profile."""
    return out / "images" / clip / f"{who}.{what}.png"


def _choose_regions(rgb: Tensor) -> list[Region]:
    """Take the most detailed place, and of the next ones that which is farthest from it."""
    first, *others = detailed_regions(
        rgb, width_px=_CROP_PX[0], height_px=_CROP_PX[1], count=_CANDIDATES
    )
    others.sort(key=lambda other: -math.hypot(other.x_px - first.x_px, other.y_px - first.y_px))
    return [first, *others[:1]]


def _choose_column(rgb: Tensor) -> tuple[int, int, int]:
    """Take the column through the most detailed place: x, y, height."""
    (region,) = detailed_regions(rgb, width_px=_CROP_PX[0], height_px=_COLUMN_PX, count=1)
    return region.x_px + region.width_px // 2, region.y_px, region.height_px


def _pixels(rgb: Tensor, column: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Cut a column out of (3, H, W): (height, 3) uint8."""
    x, y, height = column
    pixels = rgb[:, y : y + height, x]
    return to_uint8(pixels).T.contiguous().cpu().numpy()


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        image.save(part, "PNG", optimize=True)
