import pytest

from tubelet.restore.tiles import TileSpan
from tubelet.restore.window_plan import WindowPlan
from tubelet.restore.windows import WindowCutter, cut_windows, neighborhoods, scenes


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


def test_neighborhoods_repeat_the_ends():
    assert list(neighborhoods("abc", before=1, after=1)) == [
        tuple("aab"),
        tuple("abc"),
        tuple("bcc"),
    ]
    assert list(neighborhoods("ab", before=2, after=2)) == [tuple("aaabb"), tuple("aabbb")]
    assert list(neighborhoods("ab", before=0, after=1)) == [tuple("ab"), tuple("bb")]
    assert list(neighborhoods("a", before=0, after=3)) == [tuple("aaaa")]
    assert list(neighborhoods("", before=1, after=1)) == []


@pytest.mark.parametrize("num_frames", range(7))
@pytest.mark.parametrize(("before", "after"), [(3, 3), (0, 4), (2, 2)])
def test_neighborhoods_of_short_scenes(num_frames, before, after):
    last = num_frames - 1
    expected = [
        tuple(min(max(t + i, 0), last) for i in range(-before, after + 1))
        for t in range(num_frames)
    ]
    assert list(neighborhoods(range(num_frames), before=before, after=after)) == expected


@pytest.mark.parametrize("num_frames", range(1, 30))
@pytest.mark.parametrize(("size", "overlap"), [(5, 2), (5, 3), (6, 0), (8, 7), (1, 0)])
def test_windows_keep_every_frame_once_with_context(num_frames, size, overlap):
    kept = []
    for held, span in cut_windows(range(num_frames), WindowPlan(frames=size, overlap=overlap)):
        assert held == list(range(span.start, span.stop))
        assert len(held) == min(size, num_frames)
        assert span.start <= span.keep_start < span.keep_stop <= span.stop
        assert span.start == 0 or span.keep_start - span.start >= overlap // 2
        assert span.stop == num_frames or span.stop - span.keep_stop >= overlap // 2
        kept += range(span.keep_start, span.keep_stop)
    assert kept == list(range(num_frames))


@pytest.mark.parametrize("num_frames", [7, 20, 41])
@pytest.mark.parametrize("at", range(7))
def test_windows_may_shrink_on_the_way(num_frames, at):
    """When memory runs out, the next window begins at the first frame that is missing."""
    cutter, done, kept = WindowCutter(range(num_frames)), 0, []
    size, overlap = 12, 4
    while (cut := cutter.cut(done, WindowPlan(frames=size, overlap=overlap))) is not None:
        window, span = cut
        assert window == list(range(span.start, span.stop))
        assert len(window) <= size
        assert span.start == 0 or done - span.start >= overlap // 2
        keep_stop = span.keep_stop
        if at in range(done, keep_stop):
            keep_stop, size, overlap, at = at, 5, 2, -1
        kept += range(done, keep_stop)
        done = keep_stop
    assert kept == list(range(num_frames))


def test_windows_hold_no_more_than_one_window_and_the_next_frame():
    pulled = []
    cutter = WindowCutter(pulled.append(t) or t for t in range(100))
    done = 0
    while (cut := cutter.cut(done, WindowPlan(frames=8, overlap=2))) is not None:
        assert len(pulled) <= cut[1].stop + 1
        assert len(cutter._buffer) <= 9
        done = cut[1].keep_stop


def test_windows_with_look_ahead_hold_no_more_than_that():
    pulled = []
    cutter = WindowCutter(pulled.append(t) or t for t in range(100))
    window = WindowPlan(frames=8, lookahead=3)
    done = 0
    while (cut := cutter.cut(done, window)) is not None:
        assert len(pulled) <= cut[1].stop + 1
        assert len(cutter._buffer) <= 9
        done = cut[1].keep_stop


def test_windows_of_an_empty_scene():
    assert list(cut_windows([], WindowPlan(frames=4, overlap=1))) == []


def test_seam_lies_in_the_middle_of_the_overlap():
    spans = [span for _, span in cut_windows(range(8), WindowPlan(frames=5, overlap=2))]
    assert spans == [TileSpan(0, 5, 0, 4), TileSpan(3, 8, 4, 8)]


def test_windows_with_look_ahead_begin_at_the_seam():
    window = WindowPlan(frames=5, lookahead=2)
    spans = [span for _, span in cut_windows(range(9), window)]
    assert spans == [TileSpan(0, 5, 0, 3), TileSpan(3, 8, 3, 6), TileSpan(6, 9, 6, 9)]
    # The last frames are no look-ahead.
    spans = [span for _, span in cut_windows(range(8), window)]
    assert spans == [TileSpan(0, 5, 0, 3), TileSpan(3, 8, 3, 8)]
