"""Cut the work into calls of a model: frames into neighbourhoods or windows, pictures into tiles.

Everything here is a pure function of its arguments: the same input and settings give the same plan.

    Span    along one axis: a call sees [start, stop), and [keep_start, keep_stop) of its result is kept
    Tile    a Span down and a Span across
    window  a Span in time
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import TypeVar

from tubelet.models.architecture import Contract

__all__ = [
    "MIN_TILE_PX",
    "Span",
    "Tile",
    "align_windows",
    "choose_tile",
    "neighbourhoods",
    "output_size",
    "padded_size",
    "plan_tiles",
    "scenes",
    "windows",
]

T = TypeVar("T")

MIN_TILE_PX = 32
"""Tiles are not made smaller than this: below it, more than nine tenths of the work would be overlap."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one axis: what a call sees, and which part of its result is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the (padded) input, in lq pixels."""

    y: Span
    x: Span


def output_size(
    width: int, height: int, *, native: int, scale: int | None = None, target_height: int | None = None
) -> tuple[int, int]:
    """Compute the size of the output.

    Args:
        width: of the input, pixels.
        height: of the input, pixels.
        native: factor of the model.
        scale: asked factor, or None for the model's own.
        target_height: asked height, pixels; the width follows and is even, as video codecs want it.

    Returns:
        (width, height), pixels.
    """
    if target_height is not None:
        return max(2, 2 * round(width * target_height / height / 2)), target_height
    return width * (scale or native), height * (scale or native)


def padded_size(height: int, width: int, contract: Contract) -> tuple[int, int]:
    """Round a size up to what the network takes: (height, width) in lq pixels."""
    return (
        _round_up(max(height, contract.min_size_px), contract.size_multiple),
        _round_up(max(width, contract.min_size_px), contract.size_multiple),
    )


def plan_tiles(height: int, width: int, tile_px: int, contract: Contract) -> list[Tile]:
    """Cover a padded picture with tiles that overlap by the model's receptive field.

    Args:
        height: of the padded input, lq pixels.
        width: of the padded input, lq pixels.
        tile_px: side of the part that a tile keeps; 0 is the whole picture.
        contract: of the model; its halo and size multiple are respected.

    Returns:
        Tiles from top left to bottom right; the kept parts partition the picture.
    """
    rows = _tile_axis(height, tile_px or height, contract)
    columns = _tile_axis(width, tile_px or width, contract)
    return [Tile(y, x) for y, x in product(rows, columns)]


def _tile_axis(size: int, tile_px: int, contract: Contract) -> list[Span]:
    multiple = contract.size_multiple
    halo = _round_up(contract.halo_px, multiple)
    smallest = _round_up(contract.min_size_px, multiple)
    step = _round_up(math.ceil(size / math.ceil(size / tile_px)), multiple)  # tiles of nearly equal size
    spans: list[Span] = []
    for keep_start in range(0, size, step):
        keep_stop = min(keep_start + step, size)
        stop = min(size, max(keep_stop + halo, keep_start + smallest))
        start = max(0, min(keep_start - halo, stop - smallest))
        spans.append(Span(start, stop, keep_start, keep_stop))
    return spans


def choose_tile(height: int, width: int, contract: Contract, *, max_area_px: float) -> int:
    """Choose the largest tile of which a model can see `max_area_px` at once.

    Args:
        height: of the input, lq pixels.
        width: of the input, lq pixels.
        contract: of the model.
        max_area_px: lq pixels, halo included, that memory allows in one call.

    Returns:
        Side of the tile in lq pixels, at least `MIN_TILE_PX`; 0 where the whole picture fits.
    """
    padded_height, padded_width = padded_size(height, width, contract)
    if padded_height * padded_width <= max_area_px:
        return 0
    step = math.lcm(contract.size_multiple, 8)
    halo = _round_up(contract.halo_px, contract.size_multiple)
    side = math.floor((math.sqrt(max_area_px) - 2 * halo) / step) * step
    return max(side, _round_up(MIN_TILE_PX, contract.size_multiple))


def scenes(frames: Iterable[T], starts_scene: Callable[[T], bool]) -> Iterator[Iterator[T]]:
    """Split a stream at its cuts, lazily: each scene must be used up before the next is asked for.

    Args:
        frames: the stream.
        starts_scene: called once for each frame in order; true if a new scene starts with it.
    """
    number = 0

    def scene_number(frame: T) -> int:
        nonlocal number
        number += starts_scene(frame)
        return number

    for _, scene in groupby(frames, key=scene_number):
        yield scene


def neighbourhoods(scene: Iterable[T], *, before: int, after: int) -> Iterator[tuple[T, ...]]:
    """Yield each frame of a scene with those around it; beyond the ends the first or last frame is repeated.

    Args:
        scene: frames in order.
        before: neighbours before the frame.
        after: neighbours after the frame.

    Yields:
        `before + 1 + after` frames; the one at `before` is the frame itself.
    """
    around: deque[T] = deque(maxlen=before + 1 + after)
    seen = 0
    for frame in scene:
        around.extend([frame] * (1 if seen else before + 1 + after))
        seen += 1
        if seen > after:
            yield tuple(around)
    for behind in range(1, after + 1 if seen else 1):
        around.append(around[-1])
        if seen + behind > after:
            yield tuple(around)


def align_windows(size: int, overlap: int, multiple: int) -> int:
    """Lengthen the overlap so that windows of `size` frames begin at multiples of `multiple`, as far as size allows."""
    step = (size - overlap) // multiple * multiple
    return size - step if step else overlap


def windows(scene: Iterable[T], *, size: int, overlap: int, multiple: int = 1) -> Iterator[tuple[list[T], Span]]:
    """Cut a scene of unknown length into overlapping windows, holding no more than one of them.

    Args:
        scene: frames in order.
        size: frames of a window.
        overlap: frames that consecutive windows share, below `size`; the seam lies in their middle. The last
            window is moved back so that it has `size` frames too, if the scene has as many.
        multiple: where the last window begins is rounded up to a multiple of it.

    Yields:
        The frames of a window and where they lie in the scene.
    """
    held: deque[T] = deque(maxlen=size)
    stop, kept, number = size, 0, 0
    for frame in scene:
        if number == stop:  # the window before this frame is not the last one
            keep_stop = stop - (overlap + 1) // 2
            yield list(held), Span(stop - size, stop, kept, keep_stop)
            kept, stop = keep_stop, stop + size - overlap
        held.append(frame)
        number += 1
    if held:
        start = min(_round_up(number - len(held), multiple), kept)
        yield list(held)[start - number :], Span(start, number, kept, number)


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
