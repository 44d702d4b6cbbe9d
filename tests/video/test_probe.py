import gc
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.videos import FFMPEG, image, make_video, needs_ffmpeg, save_image
from tubelet.errors import InputError
from tubelet.video.info import ColorTags
from tubelet.video.probe import probe
from tubelet.video.reader import open_reader


def ffmpeg(*arguments: object) -> None:
    subprocess.run([FFMPEG or "", "-v", "error", "-y", *map(str, arguments)], check=True)


def test_size_rate_and_depth(tmp_path):
    info = probe(make_video(tmp_path / "a.mp4", frames=10, size=(64, 48)))
    assert (info.width, info.height, info.rotation_deg) == (64, 48, 0)
    assert (info.pix_fmt, info.bit_depth) == ("yuv420p", 8)
    assert not info.has_alpha
    assert not info.is_rgb
    assert info.average_rate == 25
    assert info.frames_hint == 10
    assert info.duration_s == pytest.approx(0.4)
    assert info.sample_aspect == 1
    assert (info.codec, info.container.split(",")[0]) == ("h264", "mov")
    assert [stream.kind for stream in info.streams] == ["video"]


def test_rational_rate_is_exact(tmp_path):
    path = make_video(
        tmp_path / "a.mkv", rate=Fraction(30000, 1001), time_base=Fraction(1001, 30000)
    )
    assert probe(path).average_rate == Fraction(30000, 1001)


def test_absent_tags_stay_absent(tmp_path):
    color = probe(make_video(tmp_path / "a.mkv", codec="ffv1")).color
    assert color == ColorTags(
        matrix=2, primaries=2, transfer=2, full_range=color.full_range, siting=0
    )


@pytest.mark.parametrize("full_range", [False, True])
def test_tags_are_read(tmp_path, full_range):
    tags = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1 + full_range}
    path = make_video(
        tmp_path / "a.mp4",
        tags=tags,
        options={"x264-params": "chromaloc=2:colormatrix=bt709:colorprim=bt709:transfer=bt709"},
    )
    # x264 counts sitings from 0.
    assert probe(path).color == ColorTags(1, 1, 1, full_range, siting=3)


def test_ten_bit_hdr_metadata(tmp_path):
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    hdr = (
        "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited:"
        f"hdr10=1:master-display={display}:max-cll=1000,400"
    )
    path = make_video(
        tmp_path / "a.mp4", codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": hdr}
    )
    info = probe(path)
    assert info.bit_depth == 10
    assert info.color.matrix == 9
    assert info.color.primaries == 9
    assert info.color.transfer == 16
    assert info.hdr is not None
    assert info.hdr.master_display() == display
    assert info.hdr.max_cll_text() == "1000,400"
    assert info.hdr.max_luminance == 1000


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_turns_the_size(tmp_path, degrees):
    info = probe(make_video(tmp_path / "a.mp4", size=(64, 48), rotation=degrees))
    assert info.rotation_deg == degrees
    assert (info.width, info.height) == ((64, 48) if degrees == 180 else (48, 64))


def test_sample_aspect_follows_rotation(tmp_path):
    path = make_video(tmp_path / "a.mp4", rotation=90, options={"x264-params": "sar=16/11"})
    assert probe(path).sample_aspect == Fraction(11, 16)


@needs_ffmpeg
def test_streams_languages_titles(tmp_path):
    make_video(tmp_path / "v.mp4")
    (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:00,300\nhello\n")
    inputs = [
        "-i",
        tmp_path / "v.mp4",
        "-i",
        tmp_path / "s.srt",
        *["-f", "lavfi", "-i", "sine=d=0.4"],
    ]
    mapping = ["-map", "0", "-map", "2", "-map", "1", "-c:v", "copy"]
    tags = [
        "-metadata:s:a:0",
        "language=deu",
        "-metadata:s:a:0",
        "title=Ton",
        "-disposition:s:0",
        "default",
    ]
    attachment = ["-attach", tmp_path / "s.srt", "-metadata:s:t", "mimetype=text/plain"]
    ffmpeg(*inputs, *mapping, *tags, *attachment, tmp_path / "a.mkv")
    streams = probe(tmp_path / "a.mkv").streams
    assert [stream.kind for stream in streams] == ["video", "audio", "subtitle", "attachment"]
    assert (streams[1].language, streams[1].title) == ("deu", "Ton")
    assert "default" in streams[2].disposition


@needs_ffmpeg
def test_cover_image_is_not_the_video(tmp_path):
    save_image(tmp_path / "c.png", av.VideoFrame.from_ndarray(image(0), format="rgb24"))
    audio = ["-f", "lavfi", "-i", "sine=d=1"]
    ffmpeg(*audio, "-i", tmp_path / "c.png", *["-map", "0", "-map", "1"], tmp_path / "a.mp3")
    with pytest.raises(InputError, match="no video stream"):
        probe(tmp_path / "a.mp3")


def test_opaque_gif_has_no_alpha(tmp_path):
    path = make_video(tmp_path / "a.gif", codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 25))
    info = probe(path)
    assert not info.has_alpha
    assert info.is_rgb


def test_image_folder(tmp_path):
    for number in range(3):
        save_image(
            tmp_path / f"{number}.png", av.VideoFrame.from_ndarray(image(number), format="rgb24")
        )
    info = probe(tmp_path)
    assert info.container == "images"
    assert info.frames_hint == 3
    assert info.average_rate == 25
    assert info.is_rgb


def test_sixteen_bit_image(tmp_path):
    deep = (np.arange(48 * 64 * 3).reshape(48, 64, 3) * 7).astype(np.uint16)
    save_image(
        tmp_path / "0.png", av.VideoFrame.from_ndarray(deep, format="rgb48le"), pix_fmt="rgb48be"
    )
    assert probe(tmp_path).bit_depth == 16


def test_pipe_cannot_be_probed():
    with pytest.raises(InputError, match="pipe"):
        probe("-")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_no_decoder_runs_while_ffmpeg_may_log(tmp_path, monkeypatch):
    """A decoder thread that logs waits for the interpreter, which may wait for that thread."""
    running = []
    original = av.logging.set_level

    def set_level(level):
        names = {
            task.parent.name: task.read_text().strip()
            for task in Path("/proc/self/task").glob("*/comm")
        }
        running.append(
            [name for task, name in names.items() if name.startswith("av:") and task not in others]
        )
        original(level)

    path = make_video(tmp_path / "a.mp4", frames=30)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    gc.collect()
    # Threads that other tests have not closed yet.
    others = {task.name for task in Path("/proc/self/task").iterdir()}
    monkeypatch.setattr(av.logging, "set_level", set_level)
    with open_reader(path) as reader:
        assert len(list(reader)) == 30
    assert running == [[], []]
