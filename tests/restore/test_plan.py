from dataclasses import replace

import pytest

import small_models
from tubelet.restore.plan import (
    MIN_TILE_PX,
    Span,
    align_windows,
    choose_tile,
    neighbourhoods,
    output_size,
    padded_size,
    plan_tiles,
    scenes,
    windows,
)

FRAME = small_models.FRAME.contract
COARSE = small_models.COARSE.contract


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (1280, 720)),
        ({"scale": 2}, (640, 360)),
        ({"target_height": 1080}, (1920, 1080)),
        ({"target_height": 333}, (592, 333)),
    ],
)
def test_output_size(asked, expected):
    assert output_size(320, 180, native=4, **asked) == expected


@pytest.mark.parametrize(("size", "expected"), [((21, 30), (24, 32)), ((24, 32), (24, 32)), ((3, 1), (8, 8))])
def test_padded_size(size, expected):
    assert padded_size(*size, COARSE) == expected


@pytest.mark.parametrize("contract", [FRAME, COARSE, replace(COARSE, min_size_px=64, halo_px=0)])
@pytest.mark.parametrize("size", [(8, 8), (180, 320), (76, 1000)])
@pytest.mark.parametrize("tile_px", [0, 32, 33, 100])
def test_tiles_partition_the_picture_and_see_the_halo(contract, size, tile_px):
    height, width = padded_size(*size, contract)
    kept = set()
    for tile in plan_tiles(height, width, tile_px, contract):
        for span, side in ((tile.y, height), (tile.x, width)):
            assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= side
            assert span.start == 0 or span.keep_start - span.start >= contract.halo_px
            assert span.stop == side or span.stop - span.keep_stop >= contract.halo_px
            assert span.stop - span.start >= min(side, contract.min_size_px)
            assert all(edge % contract.size_multiple == 0 for edge in (span.start, span.stop, span.keep_start))
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


def test_scenes_split_at_cuts_and_are_lazy():
    pulled = []

    def stream():
        for item in range(7):
            pulled.append(item)
            yield item

    result = []
    for scene in scenes(stream(), lambda item: item in (3, 4)):
        for item in scene:
            assert pulled[-1] == item
            result.append(item) if item not in (3, 4) else result.extend(["cut", item])
    assert result == [0, 1, 2, "cut", 3, "cut", 4, 5, 6]


def test_neighbourhoods_repeat_the_ends():
    assert list(neighbourhoods("abc", before=1, after=1)) == [tuple("aab"), tuple("abc"), tuple("bcc")]
    assert list(neighbourhoods("ab", before=2, after=2)) == [tuple("aaabb"), tuple("aabbb")]
    assert list(neighbourhoods("ab", before=0, after=1)) == [tuple("ab"), tuple("bb")]
    assert list(neighbourhoods("a", before=0, after=3)) == [tuple("aaaa")]
    assert list(neighbourhoods("", before=1, after=1)) == []


@pytest.mark.parametrize("num_frames", range(7))
@pytest.mark.parametrize(("before", "after"), [(3, 3), (0, 4), (2, 2)])
def test_neighbourhoods_of_short_scenes(num_frames, before, after):
    last = num_frames - 1
    expected = [tuple(min(max(t + i, 0), last) for i in range(-before, after + 1)) for t in range(num_frames)]
    assert list(neighbourhoods(range(num_frames), before=before, after=after)) == expected


@pytest.mark.parametrize("num_frames", range(1, 30))
@pytest.mark.parametrize(("size", "overlap"), [(5, 2), (5, 3), (6, 0), (8, 7), (1, 0)])
def test_windows_keep_every_frame_once_with_context(num_frames, size, overlap):
    kept = []
    for held, span in windows(range(num_frames), size=size, overlap=overlap):
        assert held == list(range(span.start, span.stop))
        assert len(held) == min(size, num_frames)
        assert span.start <= span.keep_start < span.keep_stop <= span.stop
        assert span.start == 0 or span.keep_start - span.start >= overlap // 2
        assert span.stop == num_frames or span.stop - span.keep_stop >= overlap // 2
        kept += range(span.keep_start, span.keep_stop)
    assert kept == list(range(num_frames))


@pytest.mark.parametrize("num_frames", range(1, 40))
@pytest.mark.parametrize(("size", "overlap", "multiple"), [(16, 8, 5), (9, 2, 3), (7, 3, 4)])
def test_windows_begin_at_multiples(num_frames, size, overlap, multiple):
    aligned = align_windows(size, overlap, multiple)
    assert overlap <= aligned < size
    kept = []
    for held, span in windows(range(num_frames), size=size, overlap=aligned, multiple=multiple):
        assert held == list(range(span.start, span.stop))
        assert span.start % multiple == 0
        assert span.start == 0 or span.keep_start - span.start >= aligned // 2
        kept += range(span.keep_start, span.keep_stop)
    assert kept == list(range(num_frames))


def test_windows_too_small_for_a_multiple_are_left_as_they_are():
    assert align_windows(6, 3, 5) == 3


def test_windows_of_an_empty_scene():
    assert list(windows([], size=4, overlap=1)) == []


def test_seam_lies_in_the_middle_of_the_overlap():
    spans = [span for _, span in windows(range(8), size=5, overlap=2)]
    assert spans == [Span(0, 5, 0, 4), Span(3, 8, 4, 8)]
