"""Whole videos through the real command, with ffprobe and ffmpeg as the judges."""

import hashlib
import json
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.videos import (
    FFMPEG,
    FFPROBE,
    MS,
    VFR_MS,
    add_audio,
    add_video,
    ffmpeg_raw,
    image,
    make_plain,
    make_rich,
    make_video,
    mux,
    needs_ffmpeg,
    payloads,
    subtitles_as_srt,
)
from tubelet.cli import main
from tubelet.degrade import degrade
from tubelet.video.reader import open_reader

pytestmark = needs_ffmpeg

FAST = ("--model", "bicubic", "--progress", "none")
DEV_EVAL = (
    "davis_goat",
    "editly_lofoten",
    "vid4_calendar",
    "vid4_city",
    "vid4_foliage",
    "vid4_walk",
)
FORCED = 64


def upscale(src: Path | str, dst: Path | str, *flags: str) -> None:
    assert main(["upscale", str(src), str(dst), *FAST, *flags]) == 0


def probe_json(path: Path, *arguments: str) -> dict[str, Any]:
    """What ffprobe says; it must say nothing else, but that it has no decoder for fonts and chapter tracks."""
    command = [str(FFPROBE), "-v", "warning", "-of", "json", *arguments, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [
        line
        for line in done.stderr.splitlines()
        if not line.startswith("Unsupported codec with id")
    ] == []
    return json.loads(done.stdout)


def assert_plays(path: Path) -> None:
    """Every stream decodes without a word, in ffprobe and in ffmpeg."""
    probe_json(path, "-show_streams", "-show_chapters", "-count_frames")
    command = [str(FFMPEG), "-v", "warning", "-i", str(path), "-map", "0:V", "-map", "0:a?"]
    command += [
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "-1",
    ]  # else ffmpeg itself counts in whole frames
    command += ["-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def video_stream(path: Path) -> dict[str, Any]:
    return probe_json(path, "-select_streams", "v:0", "-show_streams")["streams"][0]


def streams(path: Path, kind: str) -> list[dict[str, Any]]:
    return [s for s in probe_json(path, "-show_streams")["streams"] if s["codec_type"] == kind]


def times_s(path: Path) -> tuple[list[Fraction], Fraction]:
    """Times of the frames as ffprobe decodes them, and the tick they are counted in."""
    found = probe_json(
        path, "-select_streams", "v:0", "-show_entries", "frame=pts:stream=time_base"
    )
    tick = Fraction(found["streams"][0]["time_base"])
    return [int(frame["pts"]) * tick for frame in found["frames"]], tick


def assert_same_times(src: Path, dst: Path) -> None:
    """Equal number of frames, each within a tick of the output's time base."""
    (before, _), (after, tick) = times_s(src), times_s(dst)
    assert len(after) == len(before)
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= tick


def audio_hashes(path: Path) -> list[list[str]]:
    return [
        [hashlib.sha256(packet).hexdigest() for packet in stream]
        for stream in payloads(path, "audio")
    ]


def audio_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [
            packet.pts * packet.time_base
            for packet in container.demux(audio=0)
            if packet.pts is not None
        ]


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def benchmark_clip(shared: Path, name: str, path: Path, limit: int | None = None) -> Path:
    """A dev_eval clip, BI ×4, H.264 crf 18, with an AAC audio track."""
    with open_reader(shared / "data" / "dev_eval" / name) as reader:
        gt = [frame.rgb for _, frame in zip(range(limit or 10_000), reader, strict=False)]
    lq = (degrade(torch.stack(gt), "bi", scale=4) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    size, pts_ms = (lq.shape[2], lq.shape[1]), tuple(40 * t for t in range(len(lq)))
    container = av.open(str(path), "w")
    _, images = add_video(
        container, pts_ms, size, images=lq, options={"crf": "18", "preset": "medium"}
    )
    _, audio = add_audio(container, seconds=len(lq) / 25)
    mux(container, images, audio)
    return path


# The starts of two clips, of different sizes, and every clip whole.
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("davis_goat", 8),
        ("vid4_city", 8),
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in DEV_EVAL),
    ],
)
def test_benchmark_clips_with_audio(shared, tmp_path, name, limit):
    source = benchmark_clip(shared, name, tmp_path / "in.mp4", limit)
    before = video_stream(source)
    for out in (tmp_path / "out.mp4", tmp_path / "out.mkv"):
        upscale(source, out)
        assert_same_times(source, out)
        assert audio_hashes(out) == audio_hashes(source)
        assert_plays(out)
        after = video_stream(out)
        assert (after["width"], after["height"]) == (4 * before["width"], 4 * before["height"])


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "out.webm"])
def test_variable_frame_rate(tmp_path, name):
    source = make_plain(tmp_path / "in.mkv", size=(48, 32), still=True)
    upscale(source, tmp_path / name)
    assert times_s(tmp_path / name)[0] == [ms * MS for ms in VFR_MS]
    assert_plays(tmp_path / name)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_ten_bit_hdr(tmp_path, name):
    source, out = tmp_path / "in.mkv", tmp_path / name
    display = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,1)"
    params = f"log-level=none:hdr10=1:repeat-headers=1:master-display={display}:max-cll=1000,400"
    container = av.open(str(source), "w")
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    options = {"x265-params": params, "chroma_sample_location": "3"}
    _, images = add_video(
        container, VFR_MS, (64, 64), "libx265", "yuv420p10le", still=True, options=options, **tags
    )
    mux(container, images)
    upscale(source, out)
    assert_same_times(source, out)
    before, after = video_stream(source), video_stream(out)
    assert (after["codec_name"], after["pix_fmt"]) == ("hevc", "yuv420p10le")
    keys = ("color_space", "color_primaries", "color_transfer", "color_range", "chroma_location")
    assert [after[key] for key in keys] == [before[key] for key in keys]
    assert [after[key] for key in keys] == ["bt2020nc", "bt2020", "smpte2084", "tv", "topleft"]
    first = [
        {item["side_data_type"]: item for item in frame["side_data_list"]}
        for path in (source, out)
        for frame in probe_json(path, "-show_frames", "-read_intervals", "%+#1")["frames"]
    ]
    for kind in ("Mastering display metadata", "Content light level metadata"):
        assert first[0][kind] == first[1][kind]
    assert first[1]["Content light level metadata"]["max_content"] == 1000
    assert_plays(out)


@pytest.mark.parametrize("degrees", [90, 180])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_rotation_is_in_the_pixels_and_no_longer_in_the_file(tmp_path, name, degrees):
    source, out = tmp_path / "in.mp4", tmp_path / name
    container = av.open(str(source), "w")
    images = [image(t, 64, 48) for t in range(6)]
    pts_ms = tuple(range(0, 240, 40))
    aspect = {"sample_aspect_ratio": Fraction(4, 3), "options": {"crf": "5"}}
    stream, packets = add_video(container, pts_ms, images=images, **aspect)
    stream.set_display_rotation(degrees)
    mux(container, packets)
    assert video_stream(source)["side_data_list"][0]["rotation"] % 360 in (90, 180, 270)
    upscale(source, out, "--scale", "2")
    after = video_stream(out)
    turned = degrees == 90
    assert (after["width"], after["height"]) == ((96, 128) if turned else (128, 96))
    assert after["sample_aspect_ratio"] == ("3:4" if turned else "4:3")
    assert "side_data_list" not in after
    assert "rotate" not in after.get("tags", {})
    width, height = (48, 64) if turned else (64, 48)
    shown = ffmpeg_raw(source, "gray", "u1").reshape(6, height, width).astype(int)
    result = ffmpeg_raw(out, "gray", "u1", f"scale={width}:{height}:flags=area").reshape(
        6, height, width
    )
    assert np.abs(result - shown).mean() < 2
    assert_plays(out)


@pytest.mark.parametrize(
    ("name", "scale", "size", "pix_fmt"),
    [
        ("out.mkv", "3", (159, 111), "yuv444p"),
        ("out.mp4", "3", (159, 111), "yuv444p"),
        ("out.mp4", "2", (106, 74), "yuv420p"),
        ("out.webm", "3", (159, 111), "yuv420p"),
    ],
)
def test_odd_size(tmp_path, capsys, name, scale, size, pix_fmt):
    source = make_video(tmp_path / "in.mkv", size=(53, 37), codec="ffv1", frames=4)
    upscale(source, tmp_path / name, "--scale", scale)
    after = video_stream(tmp_path / name)
    assert (after["width"], after["height"], after["pix_fmt"]) == (*size, pix_fmt)
    assert any(line.startswith("note: 159x111 is odd") for line in lines_of(capsys)) == (
        pix_fmt == "yuv444p"
    )
    before = ffmpeg_raw(source, "gray", "u1").reshape(4, 37, 53).astype(int)
    result = ffmpeg_raw(tmp_path / name, "gray", "u1", "scale=53:37:flags=area").reshape(4, 37, 53)
    assert np.abs(result - before).mean() < 3
    assert_plays(tmp_path / name)


def assert_rich(path: Path) -> None:
    """Languages, flags, titles, chapters and words of `make_rich`."""
    audio, texts = streams(path, "audio"), streams(path, "subtitle")
    assert [s["tags"]["language"] for s in audio] == ["ger", "eng"]
    assert [s["disposition"]["default"] for s in audio] == [0, 1]
    assert [s["disposition"]["comment"] for s in audio] == [0, 1]
    with av.open(
        str(path)
    ) as container:  # Debian's ffprobe does not read mp4's title of a stream, "name"
        commentary = container.streams.audio[1].metadata
        assert (commentary.get("title") or commentary["name"]) == "Commentary"
    assert [s["tags"]["language"] for s in texts] == ["ger", "spa"]
    assert [s["disposition"]["forced"] for s in texts] == [0, 1]
    found = probe_json(path, "-show_chapters", "-show_format")
    chapters = [
        (float(c["start_time"]), float(c["end_time"]), c["tags"]["title"])
        for c in found["chapters"]
    ]
    assert chapters == [(0.0, 0.25, "One"), (0.25, 0.55, "Two")]
    assert found["format"]["tags"]["title"] == "A video"
    for number in range(2):
        words = subtitles_as_srt(path, number)
        assert "00:00:00,100 --> 00:00:00,300\nGrüße <i>you</i>\nline two" in words.replace(
            "</i>you", "you"
        )
        assert "00:00:00,350 --> 00:00:00,500\nsecond, with comma" in words


@pytest.mark.parametrize(
    ("source_name", "text", "name"),
    [
        ("in.mkv", "subrip", "out.mkv"),
        ("in.mkv", "subrip", "out.mp4"),
        ("in.mp4", "mov_text", "out.mkv"),
    ],
)
def test_two_languages_subtitles_chapters_and_a_font(tmp_path, capsys, source_name, text, name):
    source = make_rich(tmp_path / source_name, text=text)
    out = tmp_path / name
    upscale(source, out, "--scale", "2")
    assert_rich(out)
    assert audio_hashes(out) == audio_hashes(source)
    assert_same_times(source, out)
    notes = [line for line in lines_of(capsys) if line.startswith("note: ")]
    fonts = streams(out, "attachment")
    if source_name.endswith("mkv") and name.endswith("mkv"):
        assert notes == []
        assert [font["tags"]["filename"] for font in fonts] == ["font.ttf"]
    else:
        assert len([note for note in notes if "converted" in note]) == 2
        assert any("font.ttf" in note for note in notes) == source_name.endswith("mkv")


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4", "in.ts", "in.avi"])
def test_a_cut_off_film_gives_every_frame_that_ffmpeg_can_decode(tmp_path, capsys, name):
    whole, source, out = tmp_path / name, tmp_path / f"cut{name}", tmp_path / "out.mp4"
    codec = "mjpeg" if name.endswith("avi") else "libx264"
    first = {"movflags": "faststart"} if name.endswith("mp4") else {}  # the index in front
    pix_fmt, options = (
        ("yuvj420p", {}) if codec == "mjpeg" else ("yuv420p", {"crf": "16", "bf": "2"})
    )
    make_video(
        whole, frames=50, codec=codec, pix_fmt=pix_fmt, options=options, container_options=first
    )
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 5])
    code = main(["upscale", str(source), str(out), *FAST, "--scale", "2"])
    command = [
        str(FFPROBE),
        "-v",
        "quiet",
        "-count_frames",
        "-show_entries",
        "stream=nb_read_frames",
        "-of",
        "csv=p=0",
    ]
    judge = int(
        subprocess.run(
            [*command, str(source)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )
    assert 10 < judge < 45
    assert len(times_s(out)[0]) >= judge
    said = lines_of(capsys)[-1]
    if name.endswith("ts"):  # tells its length nowhere
        assert code in (0, 3)
    else:
        assert code == 3
        assert (
            f"has the {len(times_s(out)[0])} frames that could be decoded, but the file ends early"
            in said
        )
    assert_plays(out)


def test_notes_are_told_of_a_cut_off_film_too(tmp_path, capsys):
    whole, source = make_rich(tmp_path / "in.mkv"), tmp_path / "cut.mkv"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    assert main(["upscale", str(source), str(tmp_path / "out.mp4"), *FAST, "--scale", "2"]) == 3
    said = lines_of(capsys)
    assert len([line for line in said if line.startswith("note: ") and "mov_text" in line]) == 2
    assert [line for line in said if not line.startswith("note: ")] == said[-1:]
    assert said[-1].startswith("tubelet: error: ")


def test_a_part_with_its_audio(tmp_path):
    source, out = tmp_path / "long.mkv", tmp_path / "part.mkv"
    container = av.open(str(source), "w")
    _, images = add_video(container, tuple(range(0, 2000, 40)), (48, 32), still=True)
    _, audio = add_audio(container, seconds=2.0)
    mux(container, images, audio)
    upscale(source, out, "--start", "0.6", "--duration", "0.8")
    assert times_s(out)[0] == [Fraction(n, 25) for n in range(20)]
    (all_packets,), (some_packets,) = audio_hashes(source), audio_hashes(out)
    first = all_packets.index(some_packets[0])
    assert all_packets[first : first + len(some_packets)] == some_packets
    before, after = audio_times(source), audio_times(out)
    frame_s = Fraction(1024, 48000)
    assert -frame_s <= after[0] <= 0
    assert Fraction(4, 5) - 2 * frame_s <= after[-1] < Fraction(4, 5)
    assert abs(before[first] - after[0] - Fraction(3, 5)) <= MS
    assert_plays(out)


def test_images_to_film_and_film_to_images(tmp_path):
    (tmp_path / "in").mkdir()
    for t in range(5):
        Image.fromarray(image(t)).save(tmp_path / "in" / f"{t:04d}.png")
    upscale(tmp_path / "in", tmp_path / "video.mp4", "--scale", "2")
    assert times_s(tmp_path / "video.mp4")[0] == [Fraction(n, 25) for n in range(5)]
    assert_plays(tmp_path / "video.mp4")
    upscale(tmp_path / "video.mp4", tmp_path / "out", "--scale", "2")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{t:08d}.png" for t in range(5)]
    for t, name in enumerate(names):
        with Image.open(tmp_path / "out" / name) as shown:
            assert shown.size == (256, 192)
            small = np.asarray(shown.resize((64, 48), Image.Resampling.BOX)).astype(int)
        assert np.abs(small - image(t)).mean() < 5


def test_between_two_ffmpeg_in_a_pipe(tmp_path):
    out = tmp_path / "out.mkv"
    program = "import sys; from tubelet.cli import main; sys.exit(main(sys.argv[1:]))"
    make = [
        str(FFMPEG),
        "-v",
        "warning",
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=64x48:r=30000/1001:d=0.5",
    ]
    first = subprocess.Popen(
        [*make, "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"], stdout=subprocess.PIPE
    )
    middle = subprocess.Popen(
        [sys.executable, "-c", program, "upscale", "-", "-", *FAST],
        stdin=first.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    last = subprocess.Popen(
        [str(FFMPEG), "-v", "warning", "-i", "-", "-c:v", "ffv1", str(out)],
        stdin=middle.stdout, stderr=subprocess.PIPE,
    )  # fmt: skip
    for pipe in (first.stdout, middle.stdout):
        assert pipe is not None
        pipe.close()  # only the children hold it now
    said = last.communicate(timeout=120)[1]
    assert (last.returncode, said) == (0, b"")
    assert (first.wait(), middle.wait()) == (0, 0)
    assert middle.stderr is not None
    with middle.stderr as stream:
        assert stream.read().decode().startswith("standard output: 256×192, 15 frames in ")
    after = video_stream(out)
    assert (after["width"], after["height"], after["r_frame_rate"]) == (256, 192, "30000/1001")
    assert len(times_s(out)[0]) == 15


def test_gif_to_webm(tmp_path):
    source, out = tmp_path / "in.gif", tmp_path / "out.webm"
    make = [
        str(FFMPEG),
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=64x48:r=10:d=0.8",
        str(source),
    ]
    subprocess.run(make, check=True)
    upscale(source, out, "--scale", "2")
    assert_same_times(source, out)
    after = video_stream(out)
    assert (after["codec_name"], after["width"], after["height"]) == ("vp9", 128, 96)
    assert all(b - a == Fraction(1, 10) for a, b in pairwise(times_s(out)[0]))
    assert_plays(out)
