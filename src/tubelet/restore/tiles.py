"""Sizes in space: what a network takes, what the output is, and the tiles that cover an image.

    Span    along one axis: a call sees [start, stop), and [keep_start, keep_stop) of its result is kept
    Tile    a Span down and a Span across

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
"""Tiles are not made smaller than this: below it, more than nine tenths of the work are overlap."""


@dataclass(frozen=True, slots=True)
class TileSpan:
    """A stretch of one axis: what a call sees, and which part of its result is kept."""

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
        """Pixels that a call sees, halo included."""
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
        width: of the input, pixels.
        height: of the input, pixels.
        native: factor of the model.
        scale: requested factor, or None for the model's own.
        target_height: requested height, pixels. The width follows and is even, as codecs want it.

    Returns:
        (width, height), pixels.
    """
    if target_height is not None:
        even_width = 2 * round(width * target_height / height / 2)
        return max(2, even_width), target_height
    factor = scale or native
    return width * factor, height * factor


def padded_size(height: int, width: int, contract: Contract) -> tuple[int, int]:
    """Round a size up to one that the network takes: (height, width) in lq pixels."""
    return _padded_side(height, contract), _padded_side(width, contract)


def plan_tiles(height: int, width: int, tile_px: int, contract: Contract) -> list[Tile]:
    """Cover a padded image with tiles that overlap by the model's receptive field.

    Args:
        height: of the padded input, lq pixels.
        width: of the padded input, lq pixels.
        tile_px: side of the part that a tile keeps; 0 is the whole image.
        contract: of the model; its halo and size multiple are respected.

    Returns:
        Tiles from top left to bottom right; the kept parts partition the image.
    """
    rows = _tile_axis(height, tile_px or height, contract)
    columns = _tile_axis(width, tile_px or width, contract)
    return [Tile(y, x) for y, x in product(rows, columns)]


def choose_tile(height: int, width: int, contract: Contract, *, max_area_px: float) -> int:
    """Choose the largest tile that a model can see whole within `max_area_px`.

    Args:
        height: of the input, lq pixels.
        width: of the input, lq pixels.
        contract: of the model.
        max_area_px: lq pixels, halo included, that memory allows in one call.

    Returns:
        Side of the tile in lq pixels, at least `MIN_TILE_PX`; 0 where the whole image fits.
    """
    padded_height, padded_width = padded_size(height, width, contract)
    if padded_height * padded_width <= max_area_px:
        return 0
    step = math.lcm(contract.size_multiple, 8)
    halo = round_up(contract.halo_px, contract.size_multiple)
    side = math.floor((math.sqrt(max_area_px) - 2 * halo) / step) * step
    return max(side, round_up(MIN_TILE_PX, contract.size_multiple))


def _padded_side(side: int, contract: Contract) -> int:
    return round_up(max(side, contract.min_size_px), contract.size_multiple)


def _tile_axis(size: int, tile_px: int, contract: Contract) -> list[TileSpan]:
    multiple = contract.size_multiple
    halo = round_up(contract.halo_px, multiple)
    smallest = round_up(contract.min_size_px, multiple)
    # Tiles of nearly equal size, rather than a thin one at the end.
    num_tiles = math.ceil(size / tile_px)
    step = round_up(math.ceil(size / num_tiles), multiple)
    spans: list[TileSpan] = []
    for keep_start in range(0, size, step):
        keep_stop = min(keep_start + step, size)
        stop = min(size, max(keep_stop + halo, keep_start + smallest))
        start = max(0, min(keep_start - halo, stop - smallest))
        spans.append(TileSpan(start, stop, keep_start, keep_stop))
    return spans
