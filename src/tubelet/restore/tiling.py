"""Run one call of a model tile by tile, and put the parts together.

The hidden state of an `online` model is kept whole, like an image, and every tile takes its part of it, halo
included, from the step before. So the result does not depend on how the image is cut, however many steps
the state lives: where `halo_px` covers the receptive field of one step, tiled and untiled agree to rounding.
It also means that the tiles may change between two steps, as they do when memory runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from tubelet.errors import ResourceError
from tubelet.restore.tiles import Tile, TileSpan

__all__ = ["Call", "Hidden", "run_tiled"]

Hidden = tuple[Tensor, ...] | None
Call = Callable[[Tensor, Hidden], tuple[Tensor, Hidden]]
"""`call(lq, hidden) -> (sr, hidden)`; models without a state get and give None."""


def run_tiled(
    call: Call, lq: Tensor, hidden: Hidden, tiles: Sequence[Tile], *, scale: int, size_multiple: int
) -> tuple[Tensor, Hidden]:
    """Run a model over the tiles of an image or clip.

    Args:
        call: the model.
        lq: (1, T, 3, H, W), padded to what the model takes.
        hidden: state of the whole image, tensors (..., H·r, W·r); None at the start of a scene.
        tiles: their kept parts partition the image.
        scale: of the model.
        size_multiple: of the model; a state tensor has a whole number of rows per so many rows of lq.

    Returns:
        (1, T', 3, sH, sW) on the CPU, float32, and the new state on the device of `lq`.

    Raises:
        ResourceError: the state is not image-like, so it cannot be cut.
    """
    height, width = lq.shape[-2:]
    sr: Tensor | None = None
    states: list[Tensor] = []
    ratios: list[Fraction] = []
    for tile in tiles:
        part_hidden = hidden and tuple(
            _crop(state, tile, _ratio(state, height, width, size_multiple)) for state in hidden
        )
        part, part_state = call(_crop(lq, tile, Fraction(1)), part_hidden)
        if sr is None:
            sr = torch.empty(*part.shape[:-2], height * scale, width * scale)
        _paste(sr, part, tile, Fraction(scale))
        if part_state is None:
            continue
        if not states:
            seen = tile.y.stop - tile.y.start, tile.x.stop - tile.x.start
            ratios = [_ratio(state, *seen, size_multiple) for state in part_state]
            states = [
                _empty_whole(state, height, width, r)
                for state, r in zip(part_state, ratios, strict=True)
            ]
        for whole, state, ratio in zip(states, part_state, ratios, strict=True):
            _paste(whole, state, tile, ratio)
    if sr is None:
        raise ValueError("tiles is empty")
    return sr, tuple(states) or None


def _ratio(state: Tensor, height: int, width: int, size_multiple: int) -> Fraction:
    """Rows of a state per row of lq."""
    if state.ndim >= 2:
        down, across = Fraction(state.shape[-2], height), Fraction(state.shape[-1], width)
        if down == across and (down * size_multiple).denominator == 1:
            return down
    raise ResourceError(
        f"the model's state {tuple(state.shape)} is not an image of the {height}x{width} input, so it "
        "cannot run in tiles; free memory, or use another device with --tile 0"
    )


def _empty_whole(part: Tensor, height: int, width: int, ratio: Fraction) -> Tensor:
    return part.new_empty(*part.shape[:-2], int(height * ratio), int(width * ratio))


def _crop(whole: Tensor, tile: Tile, ratio: Fraction) -> Tensor:
    return whole[
        ..., _scaled(tile.y.start, tile.y.stop, ratio), _scaled(tile.x.start, tile.x.stop, ratio)
    ]


def _paste(whole: Tensor, part: Tensor, tile: Tile, ratio: Fraction) -> None:
    """Copy the kept part of a tile's result to its place."""
    y, x = tile.y, tile.x
    target = whole[
        ..., _scaled(y.keep_start, y.keep_stop, ratio), _scaled(x.keep_start, x.keep_stop, ratio)
    ]
    target.copy_(part[..., _kept(y, ratio), _kept(x, ratio)])


def _kept(span: TileSpan, ratio: Fraction) -> slice:
    return _scaled(span.keep_start - span.start, span.keep_stop - span.start, ratio)


def _scaled(start: int, stop: int, ratio: Fraction) -> slice:
    return slice(int(start * ratio), int(stop * ratio))
