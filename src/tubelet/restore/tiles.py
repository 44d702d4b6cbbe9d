"""Spatial sizes: the padded input of a network, the output, and the tiles that cover an image.

    TileSpan    along one axis: a call sees [start, stop), and [keep_start, keep_stop) is output
    Tile        a vertical and a horizontal TileSpan

Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from tubelet.models.architecture import Contract
from tubelet.ops.sizes import round_up

__all__ = [
    "MIN_TILE_PX",
    "Tile",
    "TileSpan",
    "choose_tile",
    "output_size",
    "padded_size",
    "plan_tiles",
]

MIN_TILE_PX = 32
"""Smallest side of a tile: below it, more than nine tenths of the work is overlap."""


@dataclass(frozen=True, slots=True)
class TileSpan:
    """An interval of one axis: the range that a call sees, and the part of its result to keep."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the padded input, in lq pixels."""

    y: TileSpan
    x: TileSpan

    @property
    def area_px(self) -> int:
        """Area that a call sees in pixels, halo included."""
        return (self.y.stop - self.y.start) * (self.x.stop - self.x.start)


def output_size(
    width: int,
    height: int,
    *,
    native: int,
    scale: int | None = None,
    target_height: int | None = None,
) -> tuple[int, int]:
    """Compute the size of the output.

    Args:
        width: Width of the input, pixels.
        height: Height of the input, pixels.
        native: Upscaling factor of the model.
        scale: Requested upscaling factor; None for that of the model.
        target_height: Requested height, pixels. The width follows and is even, as codecs need it.

    Returns:
        (width, height), pixels.
    """
    if target_height is not None:
        exact_width = width * target_height / height
        even_width = 2 * round(exact_width / 2)
        return max(2, even_width), target_height
    factor = scale or native
    return width * factor, height * factor


def padded_size(
    height: int,
    width: int,
    contract: Contract,
) -> tuple[int, int]:
    """Round a size up to one that the network accepts: (height, width) in lq pixels."""
    return _padded_side(height, contract), _padded_side(width, contract)


def plan_tiles(
    height: int,
    width: int,
    tile_px: int,
    contract: Contract,
) -> list[Tile]:
    """Cover a padded image with tiles that overlap by the model's receptive field.

    Args:
        height: Height of the padded input, lq pixels.
        width: Width of the padded input, lq pixels.
        tile_px: Side of a tile without its halo; 0 is the whole image.
        contract: Contract of the model, whose halo, multiples and minimum size are respected.

    Returns:
        Tiles from top left to bottom right; the regions to keep partition the image.
    """
    rows = _tile_axis(height, tile_px or height, contract)
    columns = _tile_axis(width, tile_px or width, contract)
    return [Tile(y, x) for y, x in product(rows, columns)]


def choose_tile(
    height: int,
    width: int,
    contract: Contract,
    *,
    max_area_px: float,
) -> int:
    """Choose the largest tile that fits into `max_area_px` with its halo.

    Args:
        height: Height of the input, lq pixels.
        width: Width of the input, lq pixels.
        contract: Contract of the model.
        max_area_px: Area in lq pixels, halo included, that memory allows in one call.

    Returns:
        Side of the tile in lq pixels, `MIN_TILE_PX` or more; 0 if the whole image fits.
    """
    padded_height, padded_width = padded_size(height, width, contract)
    if padded_height * padded_width <= max_area_px:
        return 0
    # Invert (side + 2 · halo)² ≤ max_area_px.
    multiple = _tile_multiple(contract)
    halo = round_up(contract.halo_px, multiple)
    max_side = math.sqrt(max_area_px) - 2 * halo
    step = math.lcm(multiple, 8)
    side = math.floor(max_side / step) * step
    return max(side, round_up(MIN_TILE_PX, multiple))


def _padded_side(side: int, contract: Contract) -> int:
    return round_up(max(side, contract.min_size_px), contract.size_multiple)


def _tile_multiple(contract: Contract) -> int:
    """Return the number of pixels that every tile begins at a multiple of."""
    return math.lcm(contract.size_multiple, contract.tile_multiple)


def _tile_axis(size: int, tile_px: int, contract: Contract) -> list[TileSpan]:
    """Cut one axis into spans of nearly equal size, rather than leave a thin one at the end."""
    multiple = _tile_multiple(contract)
    halo = round_up(contract.halo_px, multiple)
    min_size = round_up(contract.min_size_px, multiple)
    num_tiles = math.ceil(size / tile_px)
    step = round_up(math.ceil(size / num_tiles), multiple)
    spans: list[TileSpan] = []
    for keep_start in range(0, size, step):
        keep_stop = min(keep_start + step, size)
        # At the borders of the image the halo is cut off, and the span moves inwards or grows
        # where it would be smaller than the network accepts.
        stop = min(size, max(keep_stop + halo, keep_start + min_size))
        start = max(0, min(keep_start - halo, stop - min_size))
        # Only `stop` may be the border of an image that is no multiple.
        start -= start % multiple
        spans.append(TileSpan(start, stop, keep_start, keep_stop))
    return spans
