"""Windows, neighborhoods, tiles and scenes of any size: properties that hypothesis tries to break."""

import math
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.models.architecture import Contract
from tubelet.restore.tiles import MIN_TILE_PX, choose_tile, padded_size, plan_tiles
from tubelet.restore.window_plan import WindowPlan
from tubelet.restore.windows import WindowCutter, cut_windows, neighborhoods, scenes
from tubelet.types import Temporal

settings.register_profile("tubelet", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tubelet")

sides = st.integers(1, 400)
contracts = st.builds(
    Contract,
    scale=st.sampled_from((1, 2, 4)),
    temporal=st.just(Temporal("frame")),
    halo_px=st.integers(0, 40),
    size_multiple=st.sampled_from((1, 2, 3, 4, 8, 16)),
    min_size_px=st.integers(1, 48),
    tile_multiple=st.sampled_from((1, 2, 6, 8)),
)


@given(height=sides, width=sides, tile_px=st.integers(1, 500), contract=contracts)
def test_tiles_partition_the_image(
    height: int, width: int, tile_px: int, contract: Contract
) -> None:
    height, width = padded_size(height, width, contract)
    tiles = plan_tiles(height, width, tile_px, contract)

    # The kept parts cover the area once: rows and columns are each a partition.
    for size, spans in (
        (height, {tile.y for tile in tiles}),
        (width, {tile.x for tile in tiles}),
    ):
        kept = sorted((span.keep_start, span.keep_stop) for span in spans)
        assert kept[0][0] == 0
        assert kept[-1][1] == size
        assert all(left[1] == right[0] for left, right in pairwise(kept))
        for span in spans:
            assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= size
            # The network sees its receptive field, or the edge of the image.
            assert span.start == 0 or span.keep_start - span.start >= contract.halo_px
            assert span.stop == size or span.stop - span.keep_stop >= contract.halo_px
            seen = span.stop - span.start
            assert seen % contract.size_multiple == 0
            assert span.start % contract.tile_multiple == 0
            # Only the border of the image may cut a window.
            assert span.stop == size or span.stop % contract.tile_multiple == 0
            assert seen >= min(size, contract.min_size_px)
    assert len(tiles) == len({(tile.y, tile.x) for tile in tiles})


@given(height=sides, width=sides, area=st.floats(1, 200_000), contract=contracts)
def test_a_chosen_tile_fits_or_is_the_smallest(
    height: int, width: int, area: float, contract: Contract
) -> None:
    side = choose_tile(height, width, contract, max_area_px=area)
    padded_height, padded_width = padded_size(height, width, contract)
    if side == 0:
        assert padded_height * padded_width <= area
        return
    multiple = math.lcm(contract.size_multiple, contract.tile_multiple)
    assert side % multiple == 0
    if side > MIN_TILE_PX + multiple:
        halo = -(-contract.halo_px // multiple) * multiple
        assert (side + 2 * halo) ** 2 <= area


@given(num_frames=st.integers(0, 80), size=st.integers(1, 30), overlap_share=st.floats(0, 0.99))
def test_windows_keep_every_frame_once(num_frames: int, size: int, overlap_share: float) -> None:
    overlap = int(size * overlap_share)
    done = 0
    for window, span in cut_windows(range(num_frames), WindowPlan(frames=size, overlap=overlap)):
        assert window == list(range(span.start, span.stop))
        assert span.keep_start == done
        assert span.start <= span.keep_start < span.keep_stop <= span.stop
        assert len(window) == min(size, num_frames)
        # The seam lies in the middle of the overlap; the ends of the scene have none.
        assert span.start == 0 or span.keep_start - span.start >= overlap // 2
        assert span.stop == num_frames or span.stop - span.keep_stop == (overlap + 1) // 2
        done = span.keep_stop
    assert done == num_frames


@given(
    num_frames=st.integers(1, 60),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 19)), min_size=1, max_size=8),
)
def test_windows_may_shrink_at_any_time(num_frames: int, sizes: list[tuple[int, int]]) -> None:
    """As after running out of memory: every frame is still kept once."""
    sizes = sorted(sizes, reverse=True)
    cutter = WindowCutter(range(num_frames))
    done = 0
    number = 0
    while True:
        size, overlap = sizes[min(number, len(sizes) - 1)]
        cut = cutter.cut(done, WindowPlan(frames=size, overlap=min(overlap, size - 1)))
        if cut is None:
            break
        window, span = cut
        assert window == list(range(span.start, span.stop))
        assert span.keep_start == done < span.keep_stop
        done = span.keep_stop
        number += 1
    assert done == num_frames


@given(num_frames=st.integers(0, 80), step=st.integers(1, 20), lookahead=st.integers(0, 12))
def test_windows_that_continue_begin_at_the_seam(
    num_frames: int, step: int, lookahead: int
) -> None:
    done = 0
    for window, span in cut_windows(
        range(num_frames), WindowPlan(frames=step + lookahead, lookahead=lookahead)
    ):
        # Every frame comes once and in order, and none is restored twice.
        assert window == list(range(span.start, span.stop))
        assert span.start == span.keep_start == done < span.keep_stop <= span.stop
        # The look-ahead stays inside the scene; only the last window has none.
        assert span.stop == min(done + step + lookahead, num_frames)
        if span.stop < num_frames or span.keep_stop < span.stop:
            assert span.keep_stop - span.start == step
            assert span.stop - span.keep_stop == lookahead
        done = span.keep_stop
    assert done == num_frames


@given(
    num_frames=st.integers(1, 60),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 12)), min_size=1, max_size=8),
    failures=st.sets(st.integers(0, 12)),
)
def test_windows_that_continue_may_be_cut_again(
    num_frames: int, sizes: list[tuple[int, int]], failures: set[int]
) -> None:
    """As after running out of memory: a shorter window begins at the same frame."""
    sizes = sorted(sizes, key=sum, reverse=True)
    cutter = WindowCutter(range(num_frames))
    done = 0
    number = 0
    while True:
        step, lookahead = sizes[min(number, len(sizes) - 1)]
        cut = cutter.cut(done, WindowPlan(frames=step + lookahead, lookahead=lookahead))
        if cut is None:
            break
        window, span = cut
        assert window == list(range(span.start, span.stop))
        assert span.start == done < span.keep_stop
        number += 1
        if number not in failures:
            done = span.keep_stop
    assert done == num_frames


@given(num_frames=st.integers(0, 30), before=st.integers(0, 6), after=st.integers(0, 6))
def test_neighborhoods_are_clamped_indexes(num_frames: int, before: int, after: int) -> None:
    expected = [
        tuple(min(max(t + i, 0), num_frames - 1) for i in range(-before, after + 1))
        for t in range(num_frames)
    ]
    assert list(neighborhoods(range(num_frames), before=before, after=after)) == expected


@given(starts=st.lists(st.booleans(), max_size=40))
def test_scenes_are_the_frames_between_cuts(starts: list[bool]) -> None:
    split = [list(scene) for scene in scenes(range(len(starts)), lambda t: starts[t])]
    assert [t for scene in split for t in scene] == list(range(len(starts)))
    assert all(starts[scene[0]] for scene in split[1:])
    assert not any(starts[t] for scene in split for t in scene[1:])
