from dataclasses import replace

import pytest

from helpers import toy_models
from tubelet.restore.tiles import MIN_TILE_PX, choose_tile, output_size, padded_size, plan_tiles

FRAME = toy_models.FRAME.contract
COARSE = toy_models.COARSE.contract


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({}, (1280, 720)),
        ({"scale": 2}, (640, 360)),
        ({"target_height": 1080}, (1920, 1080)),
        ({"target_height": 333}, (592, 333)),
    ],
)
def test_output_size(target, expected):
    assert output_size(320, 180, native=4, **target) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((21, 30), (24, 32)), ((24, 32), (24, 32)), ((3, 1), (8, 8))]
)
def test_padded_size(size, expected):
    assert padded_size(*size, COARSE) == expected


@pytest.mark.parametrize("contract", [FRAME, COARSE, replace(COARSE, min_size_px=64, halo_px=0)])
@pytest.mark.parametrize("size", [(8, 8), (180, 320), (76, 1000)])
@pytest.mark.parametrize("tile_px", [0, 32, 33, 100])
def test_tiles_partition_the_image_and_see_the_halo(contract, size, tile_px):
    height, width = padded_size(*size, contract)
    kept = set()
    for tile in plan_tiles(height, width, tile_px, contract):
        for span, side in ((tile.y, height), (tile.x, width)):
            assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= side
            assert span.start == 0 or span.keep_start - span.start >= contract.halo_px
            assert span.stop == side or span.stop - span.keep_stop >= contract.halo_px
            assert span.stop - span.start >= min(side, contract.min_size_px)
            assert all(
                edge % contract.size_multiple == 0
                for edge in (span.start, span.stop, span.keep_start)
            )
        block = {
            (y, x)
            for y in range(tile.y.keep_start, tile.y.keep_stop)
            for x in range(tile.x.keep_start, tile.x.keep_stop)
        }
        assert not kept & block
        kept |= block
    assert len(kept) == height * width


def test_tiles_are_of_nearly_equal_size():
    sides = [tile.x.keep_stop - tile.x.keep_start for tile in plan_tiles(16, 130, 64, FRAME)]
    assert sides == [44, 44, 42]


@pytest.mark.parametrize("area", [1e9, 180 * 320, 180 * 320 - 1, 10_000, 100, 0])
def test_chosen_tile_fits(area):
    side = choose_tile(180, 320, FRAME, max_area_px=area)
    if area >= 180 * 320:
        assert side == 0
    else:
        assert side == MIN_TILE_PX or (side + 2 * FRAME.halo_px) ** 2 <= area
