"""Tests of written videos: times, formats, tags and sizes, destinations and refusals."""

import itertools
import signal
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.processes import run, start
from helpers.videos import (
    VFR_MS,
    add_video,
    ffprobe,
    frames,
    info,
    make_plain,
    mux,
    rewrite,
    times_s,
)
from tubelet.errors import RequestError, ResourceError, TubeletError
from tubelet.video import encoding
from tubelet.video.info import ColorTags, HdrMetadata
from tubelet.video.probe import probe
from tubelet.video.writer import EncodeSettings, check_output, open_writer

DISPLAY = HdrMetadata(
    primaries=(
        (Fraction(35400, 50000), Fraction(14600, 50000)),
        (Fraction(8500, 50000), Fraction(39850, 50000)),
        (Fraction(6550, 50000), Fraction(2300, 50000)),
    ),
    white_point=(Fraction(15635, 50000), Fraction(16450, 50000)),
    min_luminance=Fraction(1, 10000),
    max_luminance=Fraction(1000),
    max_cll=1000,
    max_fall=400,
)
PQ = ColorTags(matrix=9, primaries=9, transfer=16, full_range=False, siting=3)


def write(dst, like=None, images=None, size=(32, 24), failure=None, **keywords):
    """Write a few frames and return the notes; raise `failure` after the last frame."""
    width, height = size
    like = like or info()
    with open_writer(dst, like=like, width=width, height=height, **keywords) as writer:
        for frame in frames(size=size) if images is None else images:
            writer.write(frame)
        if failure:
            raise failure
    return writer.notes


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def video_stream(path):
    return ffprobe(path, "-show_streams", "-select_streams", "v:0")["streams"][0]


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.webm"])
def test_variable_frame_rate_is_kept(tmp_path, name):
    source = make_plain(tmp_path / "in.mkv", audio=False)
    rewrite(source, tmp_path / name)
    assert times_s(tmp_path / name) == [Fraction(ms, 1000) for ms in VFR_MS]
    last = Fraction(video_stream(tmp_path / name).get("duration") or "0.59")
    assert abs(last - Fraction(590, 1000)) <= Fraction(1, 1000)


def test_b_frames_do_not_move_the_start(tmp_path):
    source = make_plain(
        tmp_path / "in.mp4", audio=False, still=True, pts_ms=tuple(range(0, 480, 40))
    )
    for name in ("out.mp4", "out.mkv"):
        rewrite(source, tmp_path / name, settings=EncodeSettings(preset="veryfast"))
        with av.open(str(tmp_path / name)) as container:
            packets = [p for p in container.demux(video=0) if p.pts is not None]
        assert any(a.pts > b.pts for a, b in itertools.pairwise(packets))  # it does reorder
        assert times_s(tmp_path / name)[0] == 0


def test_unknown_durations_last_until_the_next_frame(tmp_path):
    images = frames(3)
    for frame, pts in zip(images, (0, 3, 4), strict=True):
        frame.pts, frame.duration = pts, 0
    write(tmp_path / "out.mkv", images=images)
    with av.open(str(tmp_path / "out.mkv")) as container:
        durations = {p.pts: p.duration for p in container.demux(video=0) if p.pts is not None}
    assert durations == {0: 120, 120: 40, 160: 40}


def test_times_that_do_not_increase_are_moved_and_noted(tmp_path):
    images = frames(3)
    images[2].pts = 1
    (note,) = write(tmp_path / "out.mp4", images=images)
    assert "next tick" in note
    assert len(times_s(tmp_path / "out.mp4")) == 3


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "expected"),
    [
        ("out.mp4", "auto", "yuv420p", ("h264", "yuv420p")),
        ("out.mp4", "auto", "yuv444p", ("h264", "yuv444p")),
        ("out.mp4", "auto", "rgb24", ("h264", "yuv420p")),
        ("out.mp4", "auto", "yuv420p10le", ("hevc", "yuv420p10le")),
        ("out.mp4", "h264", "yuv420p10le", ("h264", "yuv420p10le")),
        ("out.mp4", "av1", "yuv420p10le", ("av1", "yuv420p10le")),
        ("out.mov", "prores", "yuv422p10le", ("prores", "yuv422p10le")),
        ("out.mkv", "ffv1", "yuv422p", ("ffv1", "yuv422p")),
        ("out.mkv", "ffv1", "rgb24", ("ffv1", "bgr0")),
        ("out.webm", "auto", "yuv420p", ("vp9", "yuv420p")),
        ("out.webm", "auto", "yuv420p10le", ("av1", "yuv420p10le")),
        ("out.y4m", "auto", "yuv420p10le", ("rawvideo", "yuv420p10le")),
        ("out.avi", "auto", "yuv420p", ("h264", "yuv420p")),
        ("out.ts", "hevc", "yuv420p", ("hevc", "yuv420p")),
        ("out.gif", "auto", "yuv420p", ("gif", "bgra")),
    ],
)
def test_codec_and_format(tmp_path, name, codec, pix_fmt, expected):
    size = (64, 64)  # SVT-AV1 takes no less
    like = info(pix_fmt=pix_fmt, bit_depth=10 if "10" in pix_fmt else 8, is_rgb=pix_fmt == "rgb24")
    write(tmp_path / name, like, frames(size=size), size, settings=EncodeSettings(codec=codec))
    with av.open(str(tmp_path / name)) as container:
        found = [f.format.name for f in container.decode(video=0)]
        assert container.streams.video[0].codec_context.codec.canonical_name == expected[0]
    assert found == [expected[1]] * 3


def test_lossless_codec_returns_the_same_pixels(tmp_path):
    images = frames()
    for frame in images:
        frame.rgb = (frame.rgb * 255).round() / 255
    like = info(pix_fmt="gbrp", is_rgb=True)
    write(tmp_path / "out.mkv", like, images, settings=EncodeSettings(codec="ffv1"))
    with av.open(str(tmp_path / "out.mkv")) as container:
        for frame, decoded in zip(images, container.decode(video=0), strict=True):
            expected = (frame.rgb * 255).round().byte().movedim(0, -1).numpy()
            assert np.array_equal(decoded.to_ndarray(format="rgb24"), expected)


def test_color_tags_and_sample_aspect(tmp_path):
    tags = ColorTags(matrix=1, primaries=1, transfer=1, full_range=True, siting=1)
    like = info(color=tags, sample_aspect=Fraction(4, 3))
    for name in ("out.mp4", "out.mkv"):
        write(tmp_path / name, like)
        stream = video_stream(tmp_path / name)
        for field in ("color_space", "color_primaries", "color_transfer"):
            assert stream[field] == "bt709"
        assert (stream["color_range"], stream["chroma_location"]) == ("pc", "left")
        assert stream["sample_aspect_ratio"] == "4:3"
        assert probe(tmp_path / name).color == tags
        assert "side_data_list" not in stream  # no rotation


def test_absent_tags_stay_absent(tmp_path):
    for name in ("out.mp4", "out.mkv"):
        write(tmp_path / name)
        color = probe(tmp_path / name).color
        # An H.264 decoder reports "left" if the siting is absent.
        assert replace(color, siting=0) == ColorTags()


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_hdr_metadata_in_10_bit_hevc(tmp_path, name):
    like = info(pix_fmt="yuv420p10le", bit_depth=10, color=PQ, hdr=DISPLAY)
    assert write(tmp_path / name, like, frames(size=(64, 48)), (64, 48)) == []
    stream = video_stream(tmp_path / name)
    assert (stream["codec_name"], stream["pix_fmt"]) == ("hevc", "yuv420p10le")
    assert (stream["color_space"], stream["color_transfer"]) == ("bt2020nc", "smpte2084")
    if name == "out.mp4":
        assert stream["codec_tag_string"] == "hvc1"
    shown = ffprobe(tmp_path / name, "-show_frames", "-read_intervals", "%+#1")["frames"][0][
        "side_data_list"
    ]
    by_type = {item["side_data_type"]: item for item in shown}
    assert by_type["Content light level metadata"]["max_content"] == 1000
    assert Fraction(by_type["Mastering display metadata"]["red_x"]) == Fraction(354, 500)
    read = probe(tmp_path / name)
    assert read.hdr == DISPLAY
    assert read.color == PQ


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_hdr_metadata_in_other_codecs(tmp_path, codec):
    like = info(pix_fmt="yuv420p10le", bit_depth=10, color=PQ, hdr=DISPLAY)
    settings = EncodeSettings(codec=codec)
    write(tmp_path / "out.mkv", like, frames(size=(64, 64)), (64, 64), settings=settings)
    read = probe(tmp_path / "out.mkv").hdr
    assert read is not None
    assert (read.max_cll, read.max_fall) == (1000, 400)
    assert read.max_luminance == 1000
    assert read.primaries is not None
    assert abs(read.primaries[0][0] - Fraction(354, 500)) < Fraction(1, 10000)


@pytest.mark.parametrize("size", [(33, 25), (67, 48), (64, 49)])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("out.mp4", "h264"),
        ("out.mp4", "hevc"),
        ("out.webm", "vp9"),
        ("out.mkv", "ffv1"),
        ("out.mov", "prores"),
        ("out.y4m", "auto"),
        ("out.gif", "auto"),
    ],
)
def test_odd_sizes_are_kept(tmp_path, name, codec, size):
    notes = write(
        tmp_path / name, images=frames(size=size), size=size, settings=EncodeSettings(codec=codec)
    )
    stream = video_stream(tmp_path / name)
    assert (stream["width"], stream["height"]) == size
    assert any("4:4:4" in note for note in notes) == (codec in ("h264", "hevc"))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("o.mkv", "ffv1"), ("o.mov", "prores"), ("o.webm", "vp9"), ("o.gif", "auto"), ("o", "auto")],
)
def test_transparency_is_kept(tmp_path, name, codec):
    images = frames(alpha=True)
    for frame in images:
        frame.alpha = torch.zeros(1, 24, 32)
        frame.alpha[:, :, 16:] = 1
    like = info(pix_fmt="yuva420p", has_alpha=True)
    write(tmp_path / name, like, images, settings=EncodeSettings(codec=codec))
    if name == "o":
        alpha = pixels(tmp_path / "o" / "00000000.png")[..., 3]
    elif codec == "vp9":  # only the library's own decoder reads the second image
        with av.open(str(tmp_path / name)) as container:
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            decoded = [f for p in container.demux(video=0) for f in decoder.decode(p)]
        assert decoded[0].format.name == "yuva420p"
        alpha = decoded[0].to_ndarray(format="rgba")[..., 3].astype(int)
    else:
        with av.open(str(tmp_path / name)) as container:
            alpha = next(container.decode(video=0)).to_ndarray(format="rgba")[..., 3].astype(int)
    assert alpha[:, :14].max() < 30
    assert alpha[:, 18:].min() > 225


@pytest.mark.parametrize(
    ("name", "codec"), [("o.mp4", "auto"), ("o.mp4", "vp9"), ("o.mkv", "hevc")]
)
def test_transparency_that_cannot_be_kept_is_refused(tmp_path, name, codec):
    with pytest.raises(RequestError, match=r"transparency.*ffv1"):
        write(tmp_path / name, info(has_alpha=True), settings=EncodeSettings(codec=codec))
    assert list(tmp_path.iterdir()) == []


def test_images_in_a_new_folder(tmp_path):
    images = frames()
    write(tmp_path / "out", images=images)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"0000000{n}.png" for n in range(3)
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    shown = pixels(tmp_path / "out" / "00000001.png")
    assert np.abs(shown - images[1].rgb.movedim(0, -1).numpy() * 255).max() <= 1


def test_images_by_a_pattern_replace_older_ones(tmp_path):
    for name in ("f0009.png", "f0001.png", "note.png", "f00x1.png", "f12.png"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(RequestError, match="exists"):
        write(tmp_path / "f%04d.png")
    write(tmp_path / "f%04d.png", overwrite=True)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["f0000.png", "f0001.png", "f0002.png", "f00x1.png", "f12.png", "note.png"]
    assert pixels(tmp_path / "f0001.png").shape == (24, 32, 3)


def test_deep_images_have_16_bit(tmp_path):
    images = frames()
    write(tmp_path / "out", info(pix_fmt="yuv420p10le", bit_depth=10), images)
    with av.open(str(tmp_path / "out" / "00000000.png")) as container:
        decoded = next(container.decode(video=0))
    assert decoded.format.name == "rgb48be"
    wide = decoded.to_ndarray().astype(np.int64)
    assert np.abs(wide - images[0].rgb.movedim(0, -1).numpy() * 65535).max() <= 1


def write_to_stdout(count, size):
    with open_writer("-", like=info(), width=size[0], height=size[1]) as writer:
        for frame in frames(count, size):
            writer.write(frame)


def test_y4m_on_stdout(tmp_path):
    """In a separate process: nothing but the video may be printed."""
    done = run(write_to_stdout, 3, (32, 24))
    assert done.code == 0
    assert done.stdout.startswith(b"YUV4MPEG2 W32 H24 F25:1")
    assert done.stdout.count(b"FRAME\n") == 3
    assert done.stderr == b""
    (tmp_path / "out.y4m").write_bytes(done.stdout)
    assert len(times_s(tmp_path / "out.y4m")) == 3


def write_to_a_closed_pipe(size):
    sys.stdin.read()  # until the reader has left
    try:
        write_to_stdout(3, size)
    except ResourceError as error:
        sys.exit(str(error))


def test_closed_pipe_is_one_line():
    with start(write_to_a_closed_pipe, (320, 240)) as process:
        process.stdout.close()
        process.stdin.close()
        message = process.stderr.read().decode()
    assert process.code == 1
    assert "closed the pipe" in message


def test_the_name_appears_only_when_the_file_is_complete(tmp_path):
    dst = tmp_path / "out.mp4"
    with open_writer(dst, like=info(), width=32, height=24) as writer:
        for frame in frames(20):
            writer.write(frame)
        assert not dst.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out", "f%03d.png"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_after_an_exception(tmp_path, name, error):
    with pytest.raises(error):
        write(tmp_path / name, images=frames(16), failure=error)
    assert list(tmp_path.iterdir()) == []


def test_an_older_output_survives_a_failure(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.mp4", failure=KeyboardInterrupt, overwrite=True)
    assert (tmp_path / "out.mp4").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_no_frame_is_no_output(tmp_path, name):
    with pytest.raises(TubeletError, match="no frame"):
        write(tmp_path / name, images=iter(()))
    assert list(tmp_path.iterdir()) == []


def write_to_a_full_disk(dst):
    """A limit on the size of files simulates it."""
    import resource

    images = frames(4, (320, 240))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    try:
        write(dst, images=images, size=(320, 240))
    except ResourceError as error:
        sys.exit(str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out"])
def test_full_disk_is_one_line(tmp_path, name):
    done = run(write_to_a_full_disk, tmp_path / name)
    assert b"no space left" in done.stderr
    assert done.code == 1
    assert list(tmp_path.iterdir()) == []


def test_size_of_frames_is_checked(tmp_path):
    with pytest.raises(RequestError, match="frame 0 is 32x24, but the output was opened for 64x48"):
        write(tmp_path / "out.mp4", images=frames(), size=(64, 48))


def refused(dst, source="missing.mp4", overwrite=False):
    with pytest.raises(RequestError) as caught:
        check_output(dst, source=source, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_existing_output_is_refused(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    check_output(tmp_path / "folder", source="in.mp4", overwrite=False)  # empty: nothing to lose
    (tmp_path / "folder" / "a.png").write_bytes(b"x")
    assert "out.mp4 exists" in refused(tmp_path / "out.mp4")
    assert "folder exists" in refused(tmp_path / "folder")
    check_output(tmp_path / "out.mp4", source="in.mp4", overwrite=True)


def test_output_equal_to_input_is_refused_by_any_name(tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(b"x")
    (tmp_path / "soft.mp4").symlink_to(source)
    (tmp_path / "hard.mp4").hardlink_to(source)
    for name in ("in.mp4", "soft.mp4", "hard.mp4"):
        assert "the input itself" in refused(tmp_path / name, source, overwrite=True)
    assert "the input itself" in refused(tmp_path / "f%d.png", tmp_path / "f%d.png")


@pytest.mark.parametrize(
    ("source", "dst"),
    [("", "%03d.png"), ("0%02d.png", "%03d.png"), ("%03d.png", "f%d.png"), ("000.png", "%03d.png")],
)
def test_images_of_the_input_are_never_replaced(tmp_path, source, dst):
    for name in ("000.png", "001.png"):
        (tmp_path / name).write_bytes(b"x")
    if dst.startswith("f"):
        check_output(tmp_path / dst, source=tmp_path / source, overwrite=True)
    else:
        assert "images of the input" in refused(tmp_path / dst, tmp_path / source, overwrite=True)


def test_folders_that_cannot_take_the_output(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert "does not exist" in refused(tmp_path / "missing" / "out.mp4")
    assert "not a folder" in refused(tmp_path / "file" / "out.mp4")
    if Path("/proc/self").is_dir():
        assert "cannot be written" in refused("/proc/self/out.mp4")
    assert "is a file" in refused(tmp_path / "file")


def test_unknown_extensions_are_refused(tmp_path):
    assert ".mp4" in refused(tmp_path / "out.xyz")
    assert ".png" in refused(tmp_path / "f%03d.jpg")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("o.webm", EncodeSettings(codec="h264"), "does not hold h264; it holds vp9, av1"),
        ("o.mp4", EncodeSettings(codec="ffv1"), "does not hold ffv1"),
        ("o.mp4", EncodeSettings(codec="divx"), "unknown codec 'divx'"),
        ("o.mkv", EncodeSettings(codec="ffv1", crf=20), "crf=20 has no meaning"),
        ("o.mkv", EncodeSettings(codec="ffv1", preset="slow"), "preset='slow' has no meaning"),
        ("o.mp4", EncodeSettings(crf=60), "between 0 and 51"),
        ("o.mp4", EncodeSettings(codec="av1"), "64x48 is too small for av1"),
        ("o.mp4", EncodeSettings(preset="sluggish"), "sluggish"),
        ("o.mp4", EncodeSettings(codec="hevc", preset="sluggish"), "sluggish"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_frame(
    tmp_path, name, settings, message
):
    with pytest.raises(RequestError, match=message):
        open_writer(tmp_path / name, like=info(), width=64, height=48, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_crf_and_preset_reach_the_encoder(tmp_path):
    images = frames(6, (64, 64))
    sizes = {}
    for crf in (5, 45):
        write(tmp_path / f"{crf}.mp4", None, images, (64, 64), settings=EncodeSettings(crf=crf))
        sizes[crf] = (tmp_path / f"{crf}.mp4").stat().st_size
    assert sizes[5] > 3 * sizes[45]


def test_missing_encoder_names_the_available_ones(tmp_path, monkeypatch):
    without = {**encoding.CODECS, "h264": replace(encoding.CODECS["h264"], encoder="libnothing")}
    monkeypatch.setattr(encoding, "CODECS", without)
    with pytest.raises(ResourceError, match=r"no libnothing.*hevc"):
        open_writer(tmp_path / "o.mp4", like=info(), width=32, height=24)


def test_rotation_of_the_source_is_not_written_again(tmp_path):
    source = tmp_path / "in.mp4"
    container = av.open(str(source), "w")
    stream, images = add_video(container, size=(64, 48))
    stream.set_display_rotation(90)
    mux(container, images)
    assert probe(source).rotation_deg != 0
    rewrite(source, tmp_path / "out.mp4")
    found = probe(tmp_path / "out.mp4")
    assert (found.rotation_deg, found.width, found.height) == (0, 96, 128)
