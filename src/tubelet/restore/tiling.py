"""Run one call of a model tile by tile, and assemble the results.

The hidden state of an `online` model is stored as a whole image, and every tile crops its region of
it, halo included, from the step before. So the result does not depend on the tiles, however many
steps the state lives: where `halo_px` covers the receptive field of one step, tiled and untiled
results agree to rounding. The tiles may also change between two steps, as they do when memory runs
out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from tubelet.errors import ResourceError
from tubelet.restore.tiles import Tile

__all__ = ["Call", "Hidden", "run_tiled"]

Hidden = tuple[Tensor, ...] | None
Call = Callable[[Tensor, Hidden], tuple[Tensor, Hidden]]
"""`call(lq, hidden) -> (sr, hidden)`; hidden is None for models without a state."""


def run_tiled(
    call: Call,
    lq: Tensor,
    hidden: Hidden,
    tiles: Sequence[Tile],
    *,
    scale: int,
    size_multiple: int,
) -> tuple[Tensor, Hidden]:
    """Run a model over the tiles of an image or clip.

    Args:
        call: Runs the model on one tile.
        lq: Padded frames, (1, T, 3, H, W).
        hidden: State of the whole image, tensors (..., H·r, W·r); None at the start of a scene.
        tiles: Tiles whose output regions partition the image.
        scale: Upscaling factor of the model.
        size_multiple: Size multiple of the model; `size_multiple` rows of lq correspond to a whole
            number of rows of each state tensor.

    Returns:
        sr (1, T', 3, sH, sW) on the CPU, float32, and the new state on the device of `lq`.

    Raises:
        ResourceError: The state is not image-like, so it cannot be cut into tiles.
    """
    height, width = lq.shape[-2:]
    sr: Tensor | None = None
    states: list[Tensor] = []
    ratios: list[Fraction] = []
    for tile in tiles:
        tile_hidden = hidden
        if hidden:
            tile_hidden = _crop_states(hidden, tile, height, width, size_multiple)
        tile_sr, tile_states = call(_crop(lq, tile, Fraction(1)), tile_hidden)

        # T' and the sizes of the states are known from the first tile on.
        if sr is None:
            sr = torch.empty(*tile_sr.shape[:-2], height * scale, width * scale)
        _paste(sr, tile_sr, tile, Fraction(scale))
        if tile_states is None:
            continue
        if not states:
            tile_height = tile.y.stop - tile.y.start
            tile_width = tile.x.stop - tile.x.start
            for tile_state in tile_states:
                ratio = _ratio(tile_state, tile_height, tile_width, size_multiple)
                ratios.append(ratio)
                states.append(_empty_image(tile_state, height, width, ratio))
        for state, tile_state, ratio in zip(
            states,
            tile_states,
            ratios,
            strict=True,
        ):
            _paste(state, tile_state, tile, ratio)
    if sr is None:
        raise ValueError("tiles is empty")
    return sr, tuple(states) or None


def _crop_states(
    hidden: tuple[Tensor, ...],
    tile: Tile,
    height: int,
    width: int,
    size_multiple: int,
) -> tuple[Tensor, ...]:
    """Crop the states of a height × width image to what a tile sees."""
    cropped: list[Tensor] = []
    for state in hidden:
        ratio = _ratio(state, height, width, size_multiple)
        cropped.append(_crop(state, tile, ratio))
    return tuple(cropped)


def _ratio(
    state: Tensor,
    height: int,
    width: int,
    size_multiple: int,
) -> Fraction:
    """Return the number of rows of a state per row of lq."""
    if state.ndim >= 2:
        # Every border of a tile must fall between two rows of the state.
        ratio = Fraction(state.shape[-2], height)
        is_isotropic = ratio == Fraction(state.shape[-1], width)
        if is_isotropic and (ratio * size_multiple).denominator == 1:
            return ratio
    raise ResourceError(
        f"the model's state {tuple(state.shape)} is not an image of the {height}x{width} input, "
        "so it cannot run in tiles; free memory, or use another device with --tile 0"
    )


def _empty_image(
    tile_state: Tensor,
    height: int,
    width: int,
    ratio: Fraction,
) -> Tensor:
    """Allocate the state of the whole image from that of a tile."""
    leading = tile_state.shape[:-2]
    return tile_state.new_empty(*leading, int(height * ratio), int(width * ratio))


def _crop(image: Tensor, tile: Tile, ratio: Fraction) -> Tensor:
    """Return the region of an image that a tile sees."""
    rows = _scaled(tile.y.start, tile.y.stop, ratio)
    columns = _scaled(tile.x.start, tile.x.stop, ratio)
    return image[..., rows, columns]


def _paste(
    image: Tensor,
    tile_result: Tensor,
    tile: Tile,
    ratio: Fraction,
) -> None:
    """Copy the result of a tile into the image, without its halo."""
    y = tile.y
    x = tile.x
    target = image[
        ...,
        _scaled(y.keep_start, y.keep_stop, ratio),
        _scaled(x.keep_start, x.keep_stop, ratio),
    ]
    source = tile_result[
        ...,
        _scaled(y.keep_start - y.start, y.keep_stop - y.start, ratio),
        _scaled(x.keep_start - x.start, x.keep_stop - x.start, ratio),
    ]
    target.copy_(source)


def _scaled(start: int, stop: int, ratio: Fraction) -> slice:
    return slice(int(start * ratio), int(stop * ratio))
