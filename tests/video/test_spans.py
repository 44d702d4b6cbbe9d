"""Tests that spans of a video together give every frame of the whole once, bit-identical."""

import itertools
import random

import av
import pytest
import torch

from helpers.videos import add_video, image, make_plain, make_rich, make_video, mux, save_image
from tubelet.video import decode
from tubelet.video.reader import Span, open_reader

LONG = tuple(range(0, 4000, 40))
UNEVEN = tuple(itertools.accumulate(random.Random(1).choices((7, 40, 90), k=100)))
MOVING = [image(number) for number in range(100)]


def make_long(path, codec="libx264", pix_fmt="yuv420p", ticks=LONG, **options):
    """Encode 100 frames; predicted ones differ if decoding starts at a wrong packet."""
    container = av.open(str(path), "w")
    options = {"g": "12", "bf": "2", "preset": "veryfast", **options}
    _, packets = add_video(
        container, ticks, codec=codec, pix_fmt=pix_fmt, images=MOVING[: len(ticks)], options=options
    )
    mux(container, packets)
    return path


def make_images(path):
    path.mkdir()
    for number in range(9):
        save_image(
            path / f"{number}.png", av.VideoFrame.from_ndarray(image(number), format="rgb24")
        )
    return path


def make_damaged_images(path):
    (make_images(path) / "5.png").write_bytes(b"broken")
    return path


def make_truncated(path):
    whole = make_long(path)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    return whole


def make_damaged(path):
    whole = make_long(path, codec="libx265", **{"x265-params": "log-level=none:keyint=10"})
    with av.open(str(whole)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(whole.read_bytes())
    for start, size in packets[40:43]:
        data[start : start + size] = random.Random(0).randbytes(size)
    whole.write_bytes(data)
    return whole


def make_clock_reset(path):
    """Join two recordings: the clock starts again."""
    halves = [make_long(path.with_name(f"{n}.ts"), ticks=LONG[:40]) for n in range(2)]
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    return path


def make_sizes(path):
    make_images(path)
    save_image(path / "7.png", av.VideoFrame.from_ndarray(image(7, 32, 24), format="rgb24"))
    return path


VIDEOS = {
    "closed.mp4": make_long,
    "open.mp4": lambda path: make_long(path, **{"x264-params": "open-gop=1"}),
    "open.mkv": lambda path: make_long(path, **{"x264-params": "open-gop=1"}),
    "refresh.mkv": lambda path: make_long(path, **{"x264-params": "intra-refresh=1"}),
    "leading.mkv": lambda path: make_long(
        path, codec="libx265", **{"x265-params": "log-level=none:keyint=12:open-gop=1"}
    ),
    "vfr.mp4": lambda path: make_long(path, ticks=UNEVEN),
    "negative.mkv": lambda path: make_long(path, ticks=range(-200, 3800, 40)),
    "mpeg2.mkv": lambda path: make_video(
        path, codec="mpeg2video", frames=100, options={"g": "12", "bf": "2"}
    ),
    "mpeg4.mp4": lambda path: make_long(path, codec="mpeg4"),
    "vp9.webm": lambda path: make_long(path, codec="libvpx-vp9", **{"cpu-used": "8"}),
    "prores.mov": lambda path: make_long(path, codec="prores_ks", pix_fmt="yuv422p10le"),
    "ffv1.mkv": lambda path: make_long(path, codec="ffv1"),
    "rich.mkv": make_rich,
    "plain.mp4": make_plain,
    "turned.mp4": lambda path: make_video(path, frames=30, rotation=90, options={"g": "10"}),
    "alpha.mkv": lambda path: make_video(path, frames=9, codec="ffv1", pix_fmt="yuva420p"),
    "h264.ts": make_long,
    "mpeg4.avi": lambda path: make_long(path, codec="mpeg4"),
    "raw.y4m": lambda path: make_video(path, codec="rawvideo"),
    "a.gif": lambda path: make_video(path, codec="gif", pix_fmt="rgb8"),
    "images": make_images,
    "damaged images": make_damaged_images,
    "sizes": make_sizes,
    "truncated.mkv": make_truncated,
    "damaged.mp4": make_damaged,
    "reset.ts": make_clock_reset,
}
SEEKING = (
    "closed.mp4",
    "open.mp4",
    "open.mkv",
    "leading.mkv",
    "vfr.mp4",
    "negative.mkv",
    "mpeg2.mkv",
    "mpeg4.mp4",
    "vp9.webm",
    "prores.mov",
    "ffv1.mkv",
    "turned.mp4",
)
WITH_PROBLEMS = ("damaged images", "sizes", "truncated.mkv", "damaged.mp4", "reset.ts")


@pytest.fixture(scope="module", params=VIDEOS)
def video(request, tmp_path_factory):
    return VIDEOS[request.param](tmp_path_factory.mktemp("videos") / request.param)


def read(src, **keywords):
    with open_reader(src, **keywords) as reader:
        return list(reader), reader


def spans_of(frames, cuts, may_seek):
    """Divide a video at the frames with these indexes."""
    ends = [0, *cuts, len(frames)]
    for start, stop in itertools.pairwise(ends):
        yield Span(
            start=frames[start].pts if start else None,
            stop=frames[stop].pts if stop < len(frames) else None,
            first_index=start,
            may_seek=may_seek,
        )


def assert_same(found, expected):
    assert [(f.index, f.pts, f.duration) for f in found] == [
        (f.index, f.pts, f.duration) for f in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.rgb, other.rgb)
        assert (one.alpha is None) == (other.alpha is None)
        assert one.alpha is None or torch.equal(one.alpha, other.alpha)


def test_spans_give_every_frame_of_the_whole_once(video):
    whole, reader = read(video)
    assert len(whole) > 5
    assert bool(reader.problems) == (video.name in WITH_PROBLEMS)
    assert reader.may_seek or video.name not in SEEKING
    last = len(whole)
    anywhere = sorted(random.Random(2).sample(range(2, last - 1), 3))
    for cuts, seeks in (
        ([last // 2], True),
        ([1, last - 1], True),
        (anywhere, True),
        (anywhere, False),
    ):
        found, problems = [], []
        for span in spans_of(whole, cuts, reader.may_seek and seeks):
            frames, part = read(video, span=span)
            found += frames
            problems += part.problems
        assert_same(found, whole)
        assert problems == reader.problems


def test_a_span_inside_a_cut_counts_from_the_cut(tmp_path):
    path = make_long(tmp_path / "a.mp4")
    cut = {"start_s": 0.53, "duration_s": 2.0}
    whole, reader = read(path, **cut)
    assert 40 < len(whole) < 60
    for may_seek in (True, False):
        found = []
        for span in spans_of(whole, [13, 31], may_seek):
            found += read(path, span=span, **cut)[0]
        assert_same(found, whole)
    assert reader.may_seek


def test_bounds_need_not_be_those_of_frames(tmp_path):
    path = make_long(tmp_path / "a.mkv")
    whole, _ = read(path)
    step = whole[1].pts - whole[0].pts
    span = Span(
        start=whole[20].pts + 1, stop=whole[30].pts + step // 2, may_seek=True, first_index=21
    )
    assert_same(read(path, span=span)[0], whole[21:31])
    assert read(path, span=Span(start=whole[-1].pts + 1, may_seek=True))[0] == []
    assert read(path, span=Span(stop=whole[0].pts))[0] == []


@pytest.mark.parametrize("name", SEEKING)
def test_a_span_is_decoded_from_the_keyframe_before_it(tmp_path, monkeypatch, name):
    path = VIDEOS[name](tmp_path / name)
    whole, _ = read(path)
    span = list(spans_of(whole, [len(whole) * 4 // 5], may_seek=True))[1]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    decoded = []
    count = decode.ContainerFrames._count
    monkeypatch.setattr(
        decode.ContainerFrames,
        "_count",
        lambda self, packet: (decoded.append(packet), count(self, packet)),
    )
    found, _ = read(path, span=span)
    assert_same(found, whole[span.first_index :])
    assert len(decoded) < len(whole) * 3 // 5


@pytest.mark.parametrize("name", [*SEEKING, "refresh.mkv"])
def test_a_span_may_begin_at_any_frame(tmp_path, name):
    """Also at one that is shown before a keyframe and decoded behind it."""
    path = VIDEOS[name](tmp_path / name)
    whole, _ = read(path)
    for frame in whole[20:60]:
        with open_reader(
            path, span=Span(start=frame.pts, first_index=frame.index, may_seek=True)
        ) as reader:
            assert_same([next(iter(reader))], [frame])


def test_a_span_with_a_stop_reports_no_problem_even_at_the_end(tmp_path):
    """The next span, which has no frame to give, reports it."""
    path = make_truncated(tmp_path / "a.mkv")
    whole, reader = read(path)
    beyond = whole[-1].pts + 1000
    assert read(path, span=Span(stop=beyond))[1].problems == []
    frames, last = read(path, span=Span(start=beyond))
    assert frames == []
    assert last.problems == reader.problems != []


def test_a_reader_that_has_not_seen_all_does_not_allow_to_seek(tmp_path):
    path = make_long(tmp_path / "a.mp4")
    whole, reader = read(path, span=Span(stop=2000))
    assert whole
    assert not reader.may_seek
    with open_reader(path) as reader:
        next(iter(reader))
        assert not reader.may_seek


REAL = (
    "data/realworld_lq/*",
    "data/train_video/davis_*.mp4",
    "bugs/*.mkv",
    "bugs/*.ts",
    "bugs/*.avi",
)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", REAL)
def test_spans_of_real_videos(shared, pattern):
    for path in sorted(shared.glob(pattern)):
        if path.name == "duration_nan.mkv":  # cannot be opened yet
            continue
        whole, reader = read(path, duration_s=3.0)
        found, problems = [], []
        for span in spans_of(whole, [len(whole) // 3, len(whole) - 2], reader.may_seek):
            frames, part = read(path, duration_s=3.0, span=span)
            found += frames
            problems += part.problems
        assert_same(found, whole)
        assert problems == reader.problems
