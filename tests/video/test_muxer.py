"""Tests that a video encoded in segments and joined equals the video encoded at once."""

import dataclasses
from fractions import Fraction

import av
import pytest

from helpers.segments import (
    describe_others,
    describe_video,
    encode_in_a_process,
    keyframes,
    read_all,
    write_in_segments,
)
from helpers.videos import add_video, ffprobe, frames, info, make_plain, make_rich, make_video, mux
from tubelet.errors import InputError, TubeletError
from tubelet.video.codecs import EncodeSettings
from tubelet.video.encoder import VideoEncoder
from tubelet.video.info import ColorTags, HdrMetadata
from tubelet.video.output import open_output
from tubelet.video.output_format import choose_output_format
from tubelet.video.parts import copy_part
from tubelet.video.probe import probe

LOSSLESS = (
    "ffv1",
    "prores",
    "gif",
    "rawvideo",
)  # frames do not depend on others, or nothing is lost


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Frames, description and path of several kinds of videos, by name."""
    folder = tmp_path_factory.mktemp("sources")
    paths = {
        "rich": make_rich(folder / "rich.mkv"),
        "transport": make_plain(folder / "transport.ts", pts_ms=tuple(range(40000, 40480, 40))),
        "late": make_video(folder / "late.mkv", frames=20, pts=range(7, 27)),
        "negative": make_video(folder / "negative.mkv", frames=12, pts=range(-2, 10), codec="ffv1"),
        "deep": make_video(folder / "deep.mkv", frames=12, codec="ffv1", pix_fmt="yuv420p10le"),
        "alpha": make_video(folder / "alpha.mkv", frames=12, codec="ffv1", pix_fmt="yuva420p"),
        "turned": make_video(folder / "turned.mp4", frames=12, rotation=90),
    }
    return {name: (*read_all(path), path) for name, path in paths.items()}


KINDS = [
    ("rich", "o.mkv", "ffv1", None),
    ("rich", "o.mkv", "h264", "veryfast"),
    ("rich", "o.mp4", "h264", "veryfast"),
    ("rich", "o.mp4", "h264", "ultrafast"),
    ("rich", "o.mp4", "hevc", None),
    ("rich", "o.mov", "prores", None),
    ("rich", "o.webm", "vp9", None),
    ("rich", "o.avi", "h264", None),
    ("rich", "o.gif", "gif", None),
    ("rich", "o.y4m", "rawvideo", None),
    ("transport", "o.ts", "h264", "medium"),
    ("transport", "o.ts", "hevc", None),
    ("transport", "o.mp4", "h264", None),
    ("late", "o.mp4", "av1", None),
    ("late", "o.webm", "av1", None),
    ("late", "o.mp4", "h264", "medium"),
    ("late", "o.gif", "gif", None),
    ("negative", "o.mkv", "hevc", None),
    ("negative", "o.avi", "ffv1", None),
    ("deep", "o.mkv", "ffv1", None),
    ("deep", "o.mp4", "hevc", None),
    ("alpha", "o.mkv", "ffv1", None),
    ("alpha", "o.webm", "vp9", None),
    ("alpha", "o.mov", "prores", None),
    ("alpha", "o.gif", "gif", None),
    ("turned", "o.mkv", "ffv1", None),
]


@pytest.mark.parametrize(("source", "name", "codec", "preset"), KINDS)
def test_segments_joined_equal_the_video_written_at_once(
    sources, tmp_path, source, name, codec, preset
):
    images, like, _ = sources[source]
    if codec == "av1":  # SVT-AV1 takes no less
        like = dataclasses.replace(like, width=64, height=64)
        images = frames(len(images), (64, 64), like.time_base)
    settings = EncodeSettings(codec=codec, preset=preset)
    expected_notes = write_in_segments(
        tmp_path / f"whole-{name}", images, like, [], "direct", settings
    )
    whole = describe_video(tmp_path / f"whole-{name}")
    others = describe_others(tmp_path / f"whole-{name}")
    assert len(whole["pts"]) == len(images)
    last = len(images)
    for cuts in ([last // 2], [1, 2, last // 3, last - 1]):
        joined = {}
        for way in ("direct", "parts"):
            path = tmp_path / f"{way}-{len(cuts)}-{cuts[0]}-{name}"
            notes = write_in_segments(path, images, like, cuts, way, settings)
            joined[way] = describe_video(path)
            assert notes == expected_notes
            assert describe_others(path) == others
            for field in ("dts", "pts", "shown", "lengths"):
                assert joined[way][field] == whole[field], (cuts, way, field)
            if codec in LOSSLESS:
                assert joined[way]["pixels"] == whole["pixels"], (cuts, way)
            assert len(joined[way]["pixels"]) == len(images)
            if codec != "gif":  # FFmpeg's demuxer does not know them
                assert {whole["shown"][cut] for cut in cuts} <= keyframes(path)
        # mbtree of x264 reads uninitialized memory.
        if preset not in ("veryfast", "medium"):
            assert joined["direct"] == joined["parts"]
        ffprobe(path, "-show_streams", "-show_packets")


def test_transparency_of_vp9_goes_through_a_part(sources, tmp_path):
    """It is side data of the packets, not part of them."""
    images, like, _ = sources["alpha"]
    settings = EncodeSettings(codec="vp9")
    write_in_segments(tmp_path / "direct.webm", images, like, [5], "direct", settings)
    write_in_segments(tmp_path / "parts.webm", images, like, [5], "parts", settings)
    sizes = [(tmp_path / name).stat().st_size for name in ("direct.webm", "parts.webm")]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_hdr_metadata_is_in_every_segment(tmp_path, codec):
    color = ColorTags(matrix=9, primaries=9, transfer=16, full_range=False)
    hdr = HdrMetadata(max_cll=1000, max_fall=400)
    like = info(width=64, height=64, pix_fmt="yuv420p10le", bit_depth=10, color=color, hdr=hdr)
    images = frames(6, (64, 64))
    settings = EncodeSettings(codec=codec)
    write_in_segments(tmp_path / "o.mp4", images, like, [3], "parts", settings)
    assert dataclasses.replace(probe(tmp_path / "o.mp4").color, siting=0) == color
    shown = ffprobe(tmp_path / "o.mp4", "-show_frames")["frames"]
    for first in (shown[0], shown[3]):
        kinds = {item["side_data_type"] for item in first["side_data_list"]}
        assert "Content light level metadata" in kinds


@pytest.mark.parametrize(
    ("name", "codec"), [("o.mkv", "ffv1"), ("o.mp4", "hevc"), ("o.webm", "av1")]
)
def test_segments_of_other_processes_are_joined(tmp_path, name, codec):
    """They share only JSON, and print nothing."""
    source = make_plain(tmp_path / "in.mkv", size=(64, 64))
    images, like = read_all(source)
    settings = EncodeSettings(codec=codec)
    dst = tmp_path / name
    write_in_segments(tmp_path / f"here-{name}", images, like, [3, 8], "direct", settings)
    form = choose_output_format(dst, like=like, width=64, height=64, settings=settings)
    clock = form.clock(images[0].pts * like.time_base)
    jobs = [(0, 0, 3), (1, 3, 8), (2, 8, 12)]
    encode_in_a_process(source, form, clock, [jobs[2], jobs[0]], tmp_path)
    encode_in_a_process(source, form, clock, [jobs[1]], tmp_path)
    with open_output(dst, form, like=like) as output:
        for number in range(3):
            copy_part(tmp_path / f"{number}.part", output)
    assert describe_video(dst) == describe_video(tmp_path / f"here-{name}")
    assert describe_others(dst) == describe_others(tmp_path / f"here-{name}")


@pytest.mark.parametrize("way", ["direct", "parts"])
def test_images_of_segments_are_numbered_through(sources, tmp_path, way):
    images, like, _ = sources["deep"]
    write_in_segments(tmp_path / "whole", images, like, [], "direct")
    write_in_segments(tmp_path / "joined", images, like, [1, 7], way)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    joined = {path.name: path.read_bytes() for path in (tmp_path / "joined").iterdir()}
    assert len(whole) == 12
    assert joined == whole


@pytest.mark.parametrize("name", ["o.avi", "o.gif", "o.mkv"])
def test_times_moved_to_the_next_tick_go_on_over_a_joint(tmp_path, name):
    """Frames within one tick of the output push later ones, also into the next segment."""
    tick_ms = (0, 1, 2, 3, 4, 5, 6, 7, 8, 200, 201, 202, 300)
    source = tmp_path / "in.mkv"
    container = av.open(str(source), "w")
    _, packets = add_video(container, tick_ms, codec="ffv1")
    mux(container, packets)
    images, like = read_all(source)
    settings = EncodeSettings(codec="gif" if name == "o.gif" else "ffv1")
    expected = write_in_segments(tmp_path / f"whole-{name}", images, like, [], "direct", settings)
    whole = describe_video(tmp_path / f"whole-{name}")
    for way in ("direct", "parts"):
        notes = write_in_segments(
            tmp_path / f"{way}-{name}", images, like, [3, 6, 11], way, settings
        )
        assert notes == expected
        assert describe_video(tmp_path / f"{way}-{name}") == whole
    assert bool(expected) == (name != "o.mkv")


def test_unknown_durations_last_until_the_first_frame_of_the_next_segment(tmp_path):
    images = frames(6)
    for frame, pts in zip(images, (0, 3, 4, 9, 10, 20), strict=True):
        frame.pts, frame.duration = pts, 0
    settings = EncodeSettings(codec="ffv1")
    write_in_segments(tmp_path / "whole.mkv", images, info(), [], "direct", settings)
    write_in_segments(tmp_path / "cut.mkv", images, info(), [2, 3], "parts", settings)
    ends = [describe_video(tmp_path / name) for name in ("whole.mkv", "cut.mkv")]
    assert ends[0] == ends[1]
    packets = ffprobe(tmp_path / "cut.mkv", "-show_packets")["packets"]
    assert [round(float(p["duration_time"]) * 1000) for p in packets] == [120, 40, 200, 40, 400, 40]


def test_segments_without_frames_change_nothing(sources, tmp_path):
    images, like, _ = sources["rich"]
    settings = EncodeSettings(codec="ffv1")
    write_in_segments(tmp_path / "whole.mkv", images, like, [], "direct", settings)
    write_in_segments(tmp_path / "cut.mkv", images, like, [0, 5, 5, 12], "parts", settings)
    assert describe_video(tmp_path / "cut.mkv") == describe_video(tmp_path / "whole.mkv")


def test_a_video_without_frames_is_refused(tmp_path):
    form = choose_output_format(tmp_path / "o.mkv", like=info(), width=32, height=24)
    with (
        pytest.raises(TubeletError, match="no frame"),
        open_output(tmp_path / "o.mkv", form, like=info()) as output,
    ):
        VideoEncoder(form, form.clock(Fraction(0)), output).finish()
    assert list(tmp_path.iterdir()) == []


def join(folder, *segments):
    """Encode one frame for each (number, settings, first time) and join them."""
    form = choose_output_format(folder / "o.mp4", like=info(), width=32, height=24)
    with open_output(folder / "o.mp4", form, like=info()) as output:
        for number, (segment, crf, first_s) in enumerate(segments):
            settings = EncodeSettings(crf=crf)
            own = choose_output_format("o.mp4", like=info(), width=32, height=24, settings=settings)
            encoder = VideoEncoder(own, own.clock(Fraction(first_s)), output, segment=segment)
            encoder.write(dataclasses.replace(frames(1)[0], pts=number))
            encoder.finish()


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(1, None, 0)], "segment 1 came where segment 0 is due"),
        ([(0, None, 0), (2, None, 0)], "segment 2 came where segment 1 is due"),
        ([(0, None, 0), (0, None, 0)], "segment 0 came where segment 1 is due"),
        ([(0, None, 0), (1, 30, 0)], "segment 1 was encoded for another output"),
        ([(0, None, 0), (1, None, -1)], "segment 1 counts its time from another moment"),
    ],
)
def test_segments_that_do_not_fit_are_refused(tmp_path, segments, message):
    with pytest.raises(InputError, match=message):
        join(tmp_path, *segments)
    assert list(tmp_path.iterdir()) == []


def test_another_codec_header_is_refused(tmp_path):
    form = choose_output_format(tmp_path / "o.mp4", like=info(), width=32, height=24)

    class Other:
        def __init__(self, output):
            self.output = output

        def begin(self, head):
            extradata = head.extradata.replace(b"\x67", b"\x68") if head.segment else head.extradata
            self.output.begin(dataclasses.replace(head, extradata=extradata))

        def put(self, packet):
            self.output.put(packet)

        def end(self, tail):
            self.output.end(tail)

    def encode(output):
        for number in range(2):
            encoder = VideoEncoder(form, form.clock(Fraction(0)), output, segment=number)
            encoder.write(dataclasses.replace(frames(1)[0], pts=number))
            encoder.finish()

    with open_output(tmp_path / "o.mp4", form, like=info()) as output:
        encode(output)
    with (
        pytest.raises(InputError, match="another codec header"),
        open_output(tmp_path / "p.mp4", form, like=info()) as output,
    ):
        encode(Other(output))
