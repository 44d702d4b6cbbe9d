import io
import random
import re
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from helpers.processes import run
from helpers.videos import (
    FFMPEG,
    add_audio,
    add_video,
    ffmpeg_raw,
    ffprobe_times,
    image,
    make_video,
    mux,
    needs_ffmpeg,
    save_image,
)
from tubelet.errors import InputError
from tubelet.video.probe import probe
from tubelet.video.reader import Reader, open_reader
from tubelet.video.y4m import open_y4m_pipe


def read(src, **cut):
    with open_reader(src, **cut) as reader:
        return list(reader), reader


def pts_of(src, **cut):
    return [frame.pts for frame in read(src, **cut)[0]]


def as_image(rgb):
    return (rgb.permute(1, 2, 0).numpy() * 255).round().astype(int)


def cut_off(path: Path, share: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"short{path.suffix}")
    short.write_bytes(data[: int(len(data) * share)])
    return short


def test_frames_have_contents_index_and_time(tmp_path):
    frames, reader = read(make_video(tmp_path / "a.mp4", frames=10, options={"crf": "1"}))
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 25 for n in range(10)])
    assert all(frame.duration * frame.time_base == Fraction(1, 25) for frame in frames)
    assert reader.problems == []
    for number, frame in enumerate(frames):
        assert frame.rgb.shape == (3, 48, 64)
        assert frame.rgb.dtype == torch.float32
        assert np.abs(as_image(frame.rgb) - image(number)).mean() < 4


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_variable_rate_timestamps_are_exact(tmp_path, suffix):
    ticks = [0, 40, 80, 95, 260, 261, 300, 1000, 1033, 1066, 5000, 5010]
    path = tmp_path / f"a.{suffix}"
    make_video(path, frames=12, pts=ticks, time_base=Fraction(1, 1000), options={"bf": "3"})
    frames, reader = read(path)
    assert [frame.pts * frame.time_base for frame in frames] == [
        Fraction(tick, 1000) for tick in ticks
    ]
    assert reader.problems == []


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx265"),
        ("a.webm", "libvpx-vp9"),
        ("a.ts", "mpeg2video"),
        ("a.mov", "prores_ks"),
        ("a.avi", "mjpeg"),
        ("a.gif", "gif"),
        ("a.y4m", "wrapped_avframe"),
        ("b.mp4", "libaom-av1"),
    ],
)
def test_every_container_gives_the_times_that_ffprobe_sees(tmp_path, name, codec):
    source = "-f lavfi -i testsrc2=s=64x48:r=25:d=0.6"
    command = [FFMPEG, *f"-v error {source} -c:v {codec}".split()]
    command += ["-cpu-used", "8"] if codec == "libaom-av1" else []
    command += ["-pix_fmt", "yuv420p"] if name.endswith("y4m") else []
    subprocess.run([*command, str(tmp_path / name)], check=True)
    frames, reader = read(tmp_path / name)
    assert [frame.time_s for frame in frames] == pytest.approx(
        ffprobe_times(tmp_path / name), abs=2e-6
    )
    assert len(frames) == 15
    assert reader.problems == []


@needs_ffmpeg
def test_edit_list_and_b_frames(tmp_path):
    make_video(tmp_path / "a.mp4", frames=60, options={"g": "20", "bf": "3"})
    command = [FFMPEG, "-v", "error", "-ss", "1.13", "-i", str(tmp_path / "a.mp4")]
    command += ["-c", "copy", str(tmp_path / "b.mp4")]
    subprocess.run(command, check=True)
    frames, reader = read(tmp_path / "b.mp4")
    assert [frame.time_s for frame in frames] == pytest.approx(
        ffprobe_times(tmp_path / "b.mp4"), abs=1e-6
    )
    assert 0 < len(frames) < 40
    assert reader.problems == []


def test_frames_without_timestamps_follow_the_rate(tmp_path):
    path = make_video(tmp_path / "a.avi", codec="mpeg4", frames=12, options={"bf": "2"})
    times = [frame.time_s for frame in read(path)[0]]
    assert np.diff(times) == pytest.approx(1 / 25)


@needs_ffmpeg
def test_b_frames_in_avi_get_the_times_that_ffprobe_sees(tmp_path):
    path = make_video(tmp_path / "a.avi", frames=24, options={"bf": "3", "g": "12"})
    times = [frame.time_s for frame in read(path)[0]]
    reference = ffprobe_times(path)
    assert times[: len(reference)] == pytest.approx(reference)
    assert np.diff(times) == pytest.approx(1 / 25)


def test_negative_start_is_kept(tmp_path):
    path = make_video(tmp_path / "a.mkv", frames=5, pts=range(-2, 3), codec="ffv1")
    times = [frame.pts * frame.time_base for frame in read(path)[0]]
    assert np.diff([float(time) for time in times]) == pytest.approx(0.04)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.y4m"])
@pytest.mark.parametrize("cut", [(0.0, 0.5), (0.52, 0.4), (1.0, None), (1.94, 9.0)])
def test_start_and_duration_cut_exactly(tmp_path, name, cut):
    codecs = {"a.avi": "mpeg4", "a.y4m": "rawvideo"}
    options = {} if name == "a.y4m" else {"g": "12", "bf": "2"}
    path = make_video(
        tmp_path / name, frames=50, codec=codecs.get(name, "libx264"), options=options
    )
    everything, reader = read(path)
    start_s, duration_s = cut
    origin = reader.info.start_s
    expected = []
    for frame in everything:
        time_s = frame.time_s - origin
        has_started = start_s == 0 or time_s > start_s - 1e-4
        has_ended = duration_s is not None and time_s >= start_s + duration_s - 1e-4
        if has_started and not has_ended:
            expected.append(frame)
    got, reader = read(path, start_s=start_s, duration_s=duration_s)
    assert [frame.pts for frame in got] == [frame.pts for frame in expected]
    assert [frame.index for frame in got] == list(range(len(expected)))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.rgb, other.rgb)
    assert 0 < len(got) < 50
    assert reader.problems == []


def test_start_behind_the_end_gives_nothing(tmp_path):
    assert pts_of(make_video(tmp_path / "a.mp4"), start_s=100) == []


@needs_ffmpeg
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_frames_come_upright(tmp_path, degrees):
    path = make_video(
        tmp_path / "a.mp4", frames=2, size=(64, 48), rotation=degrees, options={"crf": "1"}
    )
    frames, reader = read(path)
    shape = (reader.info.height, reader.info.width)
    assert frames[0].rgb.shape == (3, *shape)
    reference = ffmpeg_raw(path, "rgb24", "u1").reshape(-1, *shape, 3)
    assert np.abs(as_image(frames[0].rgb) - reference[0]).mean() < 3


@needs_ffmpeg
def test_odd_size(tmp_path):
    path = make_video(tmp_path / "a.mkv", size=(53, 37), codec="ffv1", frames=3)
    frames, _ = read(path)
    reference = ffmpeg_raw(path, "rgb24", "u1").reshape(-1, 37, 53, 3)
    assert frames[2].rgb.shape == (3, 37, 53)
    assert np.abs(as_image(frames[2].rgb) - reference[2]).mean() < 2


def test_ten_bits_are_kept(tmp_path):
    path = make_video(tmp_path / "a.mkv", codec="ffv1", pix_fmt="yuv420p10le", frames=2)
    values = read(path)[0][0].rgb
    assert len(torch.unique(values)) > 1000


def test_alpha_is_kept(tmp_path):
    rgba = np.concatenate([image(0), image(3)[..., :1]], -1)
    save_image(tmp_path / "0.png", av.VideoFrame.from_ndarray(rgba, format="rgba"), pix_fmt="rgba")
    frame = read(tmp_path)[0][0]
    assert frame.alpha is not None
    assert np.array_equal(np.round(frame.alpha[0].numpy() * 255), image(3)[..., 0])


def test_size_that_changes_is_reported(tmp_path):
    for number, size in enumerate([(64, 48), (64, 48), (32, 24)]):
        save_image(
            tmp_path / f"{number}.png",
            av.VideoFrame.from_ndarray(image(number, *size), format="rgb24"),
        )
    frames, reader = read(tmp_path)
    assert [tuple(frame.rgb.shape) for frame in frames] == [(3, 48, 64)] * 3
    assert "another size" in reader.problems[0]


def test_image_folder_is_sorted_naturally(tmp_path):
    for number in (0, 1, 2, 10, 11):
        save_image(
            tmp_path / f"f{number}.png", av.VideoFrame.from_ndarray(image(number), format="rgb24")
        )
    frames, reader = read(tmp_path)
    assert [frame.pts for frame in frames] == [0, 1, 2, 3, 4]
    assert reader.info.time_base == Fraction(1, 25)
    for frame, number in zip(frames, (0, 1, 2, 10, 11), strict=True):
        assert np.array_equal(as_image(frame.rgb), image(number))


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("jpg", "mjpeg", "yuvj420p"),
        ("bmp", "bmp", "bgr24"),
        ("tif", "tiff", "rgb24"),
        ("webp", "libwebp", "yuv420p"),
    ],
)
def test_image_formats(tmp_path, suffix, codec, pix_fmt):
    save_image(
        tmp_path / f"0.{suffix}",
        av.VideoFrame.from_ndarray(image(0), format="rgb24"),
        pix_fmt,
        codec,
    )
    frame = read(tmp_path)[0][0]
    assert np.abs(as_image(frame.rgb) - image(0)).mean() < 6


def test_sixteen_bit_images_keep_their_depth(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    save_image(
        tmp_path / "0.png", av.VideoFrame.from_ndarray(deep, format="rgb48le"), pix_fmt="rgb48be"
    )
    rgb = read(tmp_path)[0][0].rgb.permute(1, 2, 0).numpy()
    assert np.array_equal(np.round(rgb.astype(float) * 65535).astype(int), deep)


def test_printf_pattern_reports_gaps(tmp_path):
    for number in (7, 8, 11):
        save_image(
            tmp_path / f"f{number:04d}.png",
            av.VideoFrame.from_ndarray(image(number), format="rgb24"),
        )
    save_image(tmp_path / "other.png", av.VideoFrame.from_ndarray(image(0), format="rgb24"))
    frames, reader = read(tmp_path / "f%04d.png")
    assert np.array_equal(as_image(frames[2].rgb), image(11))
    assert len(frames) == 3
    assert re.search("2 numbers .* missing, the first is 9", reader.problems[0])


def test_damaged_image_is_skipped_in_its_place(tmp_path):
    for number in range(4):
        save_image(
            tmp_path / f"{number}.png", av.VideoFrame.from_ndarray(image(number), format="rgb24")
        )
    (tmp_path / "2.png").write_bytes(b"broken")
    frames, reader = read(tmp_path)
    assert [frame.pts for frame in frames] == [0, 1, 3]
    assert "1 of 4 images could not be decoded: 2.png" in reader.problems[0]


def describe_standard_input():
    with open_reader("-") as reader:
        pts = [frame.pts for frame in reader]
        info = reader.info
        found = (pts, info.width, info.height, info.average_rate, reader.problems)
    sys.stdout.write(" ".join(map(str, found)))


def test_y4m_through_a_real_pipe(tmp_path):
    data = make_video(tmp_path / "a.y4m", codec="rawvideo", frames=7).read_bytes()
    whole = run(describe_standard_input, stdin=data)
    assert whole.stdout.decode() == "[0, 1, 2, 3, 4, 5, 6] 64 48 25 []"
    truncated = run(describe_standard_input, stdin=data[:-100])
    assert b"ends early, in the middle of a frame, after 6 complete ones" in truncated.stdout


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "is empty"), (b"hello, this is text", "not y4m")]
)
def test_pipe_without_y4m_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        open_y4m_pipe(io.BytesIO(data))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_truncated_file_gives_its_remaining_frames(tmp_path, name):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    container_options = {"movflags": "faststart"} if name == "a.mp4" else {}
    whole = make_video(
        tmp_path / name, frames=100, codec=codec, container_options=container_options
    )
    frames, reader = read(cut_off(whole, 0.6))
    assert 10 < len(frames) < 90
    assert [frame.pts for frame in frames][:10] == pts_of(whole)[:10]
    assert len(reader.problems) == 1
    assert re.match(
        rf"the file ends early: {len(frames)} of about (9[5-9]|10[01]) frames", reader.problems[0]
    )


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi"])
@pytest.mark.parametrize("missing_bytes", [1, 300])
def test_however_little_is_cut_off_it_is_reported(tmp_path, name, missing_bytes):
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mjpeg"}.get(name, "libx264")
    whole = make_video(
        tmp_path / name, codec=codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p"
    )
    assert read(whole)[1].problems == []
    whole.write_bytes(whole.read_bytes()[:-missing_bytes])
    frames, reader = read(whole)
    assert 0 < len(frames) <= 10
    words = (
        r"the file (ends early: \d of about \d+ frames|is \d+ bytes shorter than its header states)"
    )
    assert re.match(words, reader.problems[0])
    assert read(whole, duration_s=0.04)[1].problems == []


def test_truncation_behind_the_cut_does_not_matter(tmp_path):
    whole = make_video(tmp_path / "a.mp4", frames=100, container_options={"movflags": "faststart"})
    short = cut_off(whole, 0.6)
    _, reader = read(short, duration_s=0.2)
    assert reader.problems == []
    _, reader = read(short, start_s=0.2)
    assert "ends early" in reader.problems[0]


def test_damage_in_the_middle_is_skipped_and_reported(tmp_path):
    path = make_video(
        tmp_path / "a.mp4",
        codec="libx265",
        frames=60,
        options={"x265-params": "log-level=none:keyint=10"},
    )
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for start, size in packets[20:23]:
        data[start : start + size] = random.Random(0).randbytes(size)
    path.write_bytes(data)
    frames, reader = read(path)
    assert 40 <= len(frames) < 60
    assert frames[-1].time_s == pytest.approx(59 / 25)
    assert reader.problems
    assert "damaged" in reader.problems[0]


@pytest.mark.parametrize("damage", ["zeros", "noise", "removed"])
def test_frames_lost_inside_a_matroska_file_are_reported(tmp_path, damage):
    """FFmpeg resumes at the next cluster without an error."""
    path = make_video(
        tmp_path / "a.mkv", frames=100, size=(128, 96), options={"crf": "12", "g": "25", "bf": "0"}
    )
    data = bytearray(path.read_bytes())
    first, length = len(data) * 3 // 10, len(data) // 12
    data[first : first + length] = {
        "zeros": bytes(length),
        "noise": random.Random(3).randbytes(length),
        "removed": b"",
    }[damage]
    path.write_bytes(data)
    frames, reader = read(path)
    lost = 100 - len(frames)
    assert lost > 5
    assert any(
        problem.startswith(f"about {lost} frames are missing at ") for problem in reader.problems
    )
    assert read(path, duration_s=0.5)[1].problems == []


def test_gaps_of_a_variable_rate_are_not_taken_for_damage(tmp_path):
    """Large audio between the images, clusters of every size, and pauses."""
    ticks = (*range(0, 400, 40), 900, 940, 3000, 3040, 7000, 15000, 15040)
    path = tmp_path / "a.mkv"
    container = av.open(str(path), "w", options={"cluster_time_limit": "300"})
    _, images = add_video(container, ticks)
    _, audio = add_audio(container, "pcm_s16le", seconds=15)
    mux(container, images, audio)
    frames, reader = read(path)
    assert len(frames) == len(ticks)
    assert reader.problems == []


@pytest.mark.parametrize("index", [-1, -2, -3, -4])
def test_damage_at_the_end_loses_no_other_frame(tmp_path, monkeypatch, index):
    """Frame threads report errors late, but must return the frames that one thread returns."""
    options = {"x265-params": "log-level=none:bframes=3:b-adapt=0"}
    path = make_video(tmp_path / "a.mp4", codec="libx265", frames=31, options=options)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    start, size = packets[index]
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    pts_by_threads = []
    for threads in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        frames, reader = read(path)
        pts_by_threads.append([frame.pts for frame in frames])
        assert reader.problems[0].startswith("damaged packets that could not be decoded: 1")
    assert pts_by_threads[0] == pts_by_threads[1]
    assert len(pts_by_threads[0]) == 30


class Stamped:
    """A source of frames with these pairs of pts and dts."""

    seeks_exactly = False

    def __init__(self, info, stamps):
        self.info, self._stamps = info, stamps

    def frames(self, start_tick):
        for pts, dts in self._stamps:
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.dts = pts, dts
            yield frame

    def problems(self, decoded, end_tick):
        return []

    def close(self):
        pass


@pytest.mark.parametrize(
    ("stamps", "expected", "moved"),
    [
        ([(5, 3), (7, 4), (20, 5)], [5, 7, 20], 0),
        ([(None, 4), (None, 5), (None, 6)], [4, 5, 6], 0),
        ([(3, None), (None, None), (None, None), (9, None)], [3, 4, 5, 9], 0),
        ([(0, 0), (1, 1), (1, 2), (1, 3), (1, 4)], [0, 1, 2, 3, 4], 0),
        ([(0, None), (1, None), (1, None), (2, None)], [0, 1, 2, 3], 2),
        ([(100, None), (101, None), (0, None), (1, None), (2, None)], [100, 101, 102, 103, 104], 1),
    ],
    ids=["pts", "dts-only", "gaps", "faulty-pts", "repeated", "clock-set-back"],
)
def test_timestamps_always_increase(tmp_path, stamps, expected, moved):
    info = replace(probe(make_video(tmp_path / "a.mp4")), time_base=Fraction(1, 25))
    reader = Reader(Stamped(info, stamps), start_s=0, duration_s=None, gamut="clip")
    assert [frame.pts for frame in reader] == expected
    assert reader.problems == (
        [f"{moved} timestamps did not increase and were moved"] if moved else []
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "no such file: .*missing.mp4"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"just some words\n" * 50, "looks like a text file"),
        ("words.txt", b"just some words\n" * 50, "text file"),
        ("noise.mkv", random.Random(1).randbytes(5000), "not a video that can be read"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_reader(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_file_without_index_is_refused(tmp_path):
    path = cut_off(make_video(tmp_path / "a.mp4", frames=50), 0.5)
    with pytest.raises(InputError, match="before its index"):
        open_reader(path)


def test_audio_only_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(InputError, match="no video stream, only audio"):
        open_reader(tmp_path / "a.wav")


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no images"):
        open_reader(tmp_path)


def test_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file matches"):
        open_reader(tmp_path / "%05d.png")


@needs_ffmpeg
def test_encrypted_video_is_refused(tmp_path):
    make_video(tmp_path / "a.mp4")
    key = "76a6c65c5ea762046bd749a2e632ccbb"
    command = [FFMPEG, "-v", "error", "-i", str(tmp_path / "a.mp4"), "-c", "copy"]
    command += ["-encryption_scheme", "cenc-aes-ctr"]
    command += ["-encryption_key", key, "-encryption_kid", key, str(tmp_path / "b.mp4")]
    subprocess.run(command, check=True)
    with pytest.raises(InputError, match="encrypted"):
        open_reader(tmp_path / "b.mp4")


def test_nothing_accumulates(tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=40)
    with open_reader(path) as reader:
        frames = iter(reader)
        first = next(frames)
        assert first.index == 0
    with pytest.raises(StopIteration):
        next(frames)


def test_closing_while_another_thread_waits_in_it_does_nothing(tmp_path):
    class Stuck(Stamped):
        closed = False

        def frames(self, start_tick):
            inside.set()
            leave.wait(10)
            yield from super().frames(start_tick)

        def close(self):
            self.closed = True

    inside, leave = threading.Event(), threading.Event()
    source = Stuck(probe(make_video(tmp_path / "a.mp4")), [(0, 0)])
    reader = Reader(source, start_s=0, duration_s=None, gamut="clip")
    thread = threading.Thread(target=lambda: list(reader))
    thread.start()
    assert inside.wait(10)
    reader.close()
    assert not source.closed
    leave.set()
    thread.join()
    reader.close()
    assert source.closed
