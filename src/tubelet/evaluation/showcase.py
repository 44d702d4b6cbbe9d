"""Collect the images of a clip that the report shows: crops of a frame, and a temporal profile.

A temporal profile is one column of pixels over time: time runs to the right. Regions are chosen in
the original, so they are the same for every model. Memory is bounded: one column per frame, up to a
limit, and a few crops.
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

__all__ = ["BICUBIC", "ORIGINAL", "CropCollector", "find_image", "image_path"]

ORIGINAL = "original"
"""Name of the original among the sides of a comparison; the others are models and `BICUBIC`."""
BICUBIC = "input-bicubic"
"""Name of the input, enlarged with bicubic interpolation."""

Column = tuple[int, int, int]
"""(x, y, height) of a column of pixels."""

_RESULT = "result"
"""Name of the model's result until `CropCollector.save` replaces it by that of the model."""

_IMAGES_FOLDER = "images"
_FORMER_IMAGES_FOLDER = "pictures"
"""Folder of the images in results that were written before it was renamed."""

# At twice their size, four crops side by side fit a desktop, and two fit a phone.
_CROP_WIDTH_PX = 128
_CROP_HEIGHT_PX = 96
_NUM_CANDIDATES = 8
_COLUMN_PX = 160
_MAX_COLUMNS = 240


class CropCollector:
    """Collects the crops and the temporal profile of one clip, frame by frame.

    Args:
        frame: Index of the frame that the crops are cut from.
        max_columns: Frames of the temporal profile; later frames are left out.
    """

    def __init__(self, frame: int, *, max_columns: int = _MAX_COLUMNS) -> None:
        self.frame = frame
        self.max_columns = max_columns
        self.showcase: Showcase | None = None
        self._column: Column | None = None
        self._profiles: dict[str, NDArray[np.uint8]] = {}
        self._num_columns = 0
        self._crops: dict[str, list[Image.Image]] = {}

    def add(
        self,
        index: int,
        *,
        sr: Tensor,
        gt: Tensor | None,
        lq: Tensor | None,
    ) -> None:
        """Add a frame.

        Args:
            index: Index of the frame, from 0.
            sr: Result, (3, H, W) in [0, 1].
            gt: Original, as `sr`; None where there is none.
            lq: Input, (3, H/s, W/s); used only for the frame of the crops.
        """
        reference = sr if gt is None else gt
        if self._column is None:
            self._column = _choose_column(reference)
        # The column of pixels, from every frame up to a limit.
        if index < self.max_columns:
            self._num_columns = index + 1
            self._add_column(_RESULT, index, sr, self._column)
            if gt is not None:
                self._add_column(ORIGINAL, index, gt, self._column)
        # The crops, from one frame.
        if index == self.frame:
            self._add_crops(sr, gt, lq, self._column)

    def save(self, out: Path, clip: str, model: str) -> None:
        """Write the images of the result, the original and the input.

        Args:
            out: Folder of the evaluation.
            clip: Name of the clip.
            model: Name of the model.
        """
        # The images of the result are named after the model.
        names = {_RESULT: model}
        for side, crops in self._crops.items():
            name = names.get(side, side)
            for number, crop in enumerate(crops):
                _save(crop, image_path(out, clip, name, number))
        for side, profile in self._profiles.items():
            name = names.get(side, side)
            columns = np.ascontiguousarray(profile[:, : self._num_columns])
            _save(Image.fromarray(columns), image_path(out, clip, name, "profile"))

    def _add_column(
        self,
        side: str,
        index: int,
        rgb: Tensor,
        column: Column,
    ) -> None:
        """Copy the pixel column of a frame into the temporal profile of a side."""
        x, y, height = column
        if side not in self._profiles:
            # Allocated once: small arrays per frame would fragment the heap, which then grows.
            self._profiles[side] = np.zeros((height, self.max_columns, 3), np.uint8)
        # (3, height) → (height, 3)
        pixels = to_uint8(rgb[:, y : y + height, x]).T.contiguous()
        self._profiles[side][:, index] = pixels.cpu().numpy()

    def _add_crops(
        self,
        sr: Tensor,
        gt: Tensor | None,
        lq: Tensor | None,
        column: Column,
    ) -> None:
        """Cut the same regions out of all sides, and record them in `showcase`."""
        reference = sr if gt is None else gt
        regions = _choose_regions(reference)
        sides = {_RESULT: sr}
        if gt is not None:
            sides[ORIGINAL] = gt
        if lq is not None:
            sides[BICUBIC] = enlarge(lq, (reference.shape[-2], reference.shape[-1]))
        for side, rgb in sides.items():
            self._crops[side] = [to_image(region.crop(rgb)) for region in regions]
        boxes: list[tuple[int, int, int, int]] = []
        for region in regions:
            boxes.append((region.x_px, region.y_px, region.width_px, region.height_px))
        self.showcase = Showcase(frame=self.frame, crops=tuple(boxes), column=column)


def image_path(out: Path, clip: str, side: str, name: int | str) -> Path:
    """Return the path at which an image of an evaluation is stored.

    Args:
        out: Folder of the evaluation.
        clip: Name of the clip.
        side: Name of a model, `ORIGINAL` or `BICUBIC`.
        name: Number of a crop, or "profile" for the temporal profile.
    """
    return out / _IMAGES_FOLDER / clip / f"{side}.{name}.png"


def find_image(
    out: Path,
    clip: str,
    side: str,
    name: int | str,
) -> Path | None:
    """Find a stored image, also one of a former version, which used another folder.

    An evaluation may have images in both folders, if it was continued with this version.

    Args:
        out: Folder of the evaluation.
        clip: Name of the clip.
        side: Name of a model, `ORIGINAL` or `BICUBIC`.
        name: Number of a crop, or "profile" for the temporal profile.

    Returns:
        The path; None if there is no such image.
    """
    path = image_path(out, clip, side, name)
    former_path = out / _FORMER_IMAGES_FOLDER / clip / path.name
    for candidate in (path, former_path):
        if candidate.is_file():
            return candidate
    return None


def _choose_regions(rgb: Tensor) -> list[Region]:
    """Choose the region of highest detail, and of the next ones the one farthest from it."""
    first, *others = detailed_regions(
        rgb,
        width_px=_CROP_WIDTH_PX,
        height_px=_CROP_HEIGHT_PX,
        count=_NUM_CANDIDATES,
    )
    if not others:
        return [first]

    def distance_px(region: Region) -> float:
        return math.hypot(region.x_px - first.x_px, region.y_px - first.y_px)

    return [first, max(others, key=distance_px)]


def _choose_column(rgb: Tensor) -> Column:
    """Choose the column through the middle of the region of highest detail."""
    (region,) = detailed_regions(
        rgb,
        width_px=_CROP_WIDTH_PX,
        height_px=_COLUMN_PX,
        count=1,
    )
    x = region.x_px + region.width_px // 2
    return x, region.y_px, region.height_px


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
