"""Tests of audio, subtitles, chapters, attachments and tags in the output."""

import itertools
from fractions import Fraction

import av
import pytest

from helpers.videos import (
    add_audio,
    add_video,
    ffprobe,
    make_plain,
    make_rich,
    mux,
    payloads,
    rewrite,
    subtitles_as_srt,
)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return make_rich(tmp_path_factory.mktemp("rich") / "rich.mkv")


def starts_s(path):
    """First presentation time of every stream that has packets."""
    with av.open(str(path)) as container:
        first = {}
        for packet in container.demux():
            if packet.pts is not None:
                time = packet.pts * packet.time_base
                first[packet.stream_index] = min(first.get(packet.stream_index, time), time)
        return [first[index] for index in sorted(first)]


def chapters(path):
    with av.open(str(path)) as container:
        return [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
            for c in container.chapters()
        ]


def streams(path, kind):
    with av.open(str(path)) as container:
        return [
            (s.language, s.metadata.get("title") or s.metadata.get("name"), int(s.disposition))
            for s in container.streams
            if s.type == kind
        ]


def test_matroska_to_matroska_keeps_everything(rich, tmp_path):
    out = tmp_path / "out.mkv"
    assert rewrite(rich, out) == []
    assert payloads(out, "audio") == payloads(rich, "audio")
    assert payloads(out, "subtitle") == payloads(rich, "subtitle")
    assert chapters(out) == chapters(rich)
    assert starts_s(out) == starts_s(rich)
    for kind in ("video", "audio", "subtitle"):
        assert streams(out, kind) == streams(rich, kind)
    with av.open(str(out)) as container:
        assert container.metadata["title"] == "A video"
        assert container.metadata["MYKEY"] == "odd"
        (font,) = (s for s in container.streams if s.type == "attachment")
        assert (font.name, font.data) == ("font.ttf", b"not really a font")
    found = ffprobe(out, "-show_streams", "-count_packets")["streams"]
    kinds = ["video", "audio", "audio", "subtitle", "subtitle", "attachment"]
    assert [s["codec_type"] for s in found] == kinds


def test_matroska_to_mp4_converts_subtitles_and_names_dropped_streams(rich, tmp_path):
    out = tmp_path / "out.mp4"
    notes = rewrite(rich, out)
    assert payloads(out, "audio") == payloads(rich, "audio")
    assert chapters(out) == chapters(rich)
    assert streams(out, "audio") == [("ger", None, 0), ("eng", "Commentary", 9)]
    assert [s[0] for s in streams(out, "subtitle")] == ["ger", "spa"]
    assert [bool(s[2] & 64) for s in streams(out, "subtitle")] == [False, True]
    assert "Grüße <i>you" in subtitles_as_srt(out, 0)
    assert "00:00:00,350 --> 00:00:00,500\nsecond, with comma" in subtitles_as_srt(out, 1)
    text = "\n".join(notes)
    assert "font.ttf" in text
    assert "MYKEY" in text
    assert text.count("mov_text") == 2
    ffprobe(out, "-show_streams", "-count_packets")


def test_mp4_to_matroska(tmp_path):
    source = make_rich(tmp_path / "in.mp4", text="mov_text")
    out = tmp_path / "out.mkv"
    notes = rewrite(source, out)
    assert payloads(out, "audio") == payloads(source, "audio")
    assert [s[:2] for s in streams(out, "audio")] == [("ger", None), ("eng", "Commentary")]
    assert "00:00:00,100 --> 00:00:00,300\nGrüße <i>you</i>\nline two" in subtitles_as_srt(out, 0)
    assert chapters(out) == chapters(source)
    assert [n for n in notes if "mov_text" not in n] == []
    ffprobe(out, "-show_streams", "-count_packets")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_start_of_audio_and_image_is_kept(tmp_path, suffix):
    """AAC begins before 0 with its priming samples: that must not push the image."""
    source = make_plain(tmp_path / "in.mp4")
    out = tmp_path / f"out.{suffix}"
    rewrite(source, out)
    video, audio = starts_s(out)
    assert video == 0
    assert abs(audio - Fraction(-1024, 48000)) <= Fraction(1, 1000)
    assert payloads(out, "audio") == payloads(source, "audio")


def test_late_audio_stays_late(tmp_path):
    source = tmp_path / "in.mkv"
    container = av.open(str(source), "w")
    _, images = add_video(container)
    _, audio = add_audio(container, "libopus", start_s=0.25, seconds=0.3)
    mux(container, images, audio)
    out = tmp_path / "out.mp4"
    rewrite(source, out)
    assert abs(starts_s(out)[1] - starts_s(source)[1]) <= Fraction(1, 1000)


def test_matroska_times_of_audio_become_whole_samples_in_mp4(tmp_path):
    source = make_plain(tmp_path / "in.mkv")
    rewrite(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        pts = [p.pts for p in container.demux(audio=0) if p.pts is not None]
    assert {b - a for a, b in itertools.pairwise(pts)} == {1024}


def test_webm_gets_opus(tmp_path):
    source = make_plain(tmp_path / "in.mp4")
    notes = rewrite(source, tmp_path / "out.webm")
    (note,) = notes
    assert "libopus" in note
    assert "aac" in note
    found = ffprobe(tmp_path / "out.webm", "-show_streams", "-count_packets")["streams"]
    assert [s["codec_name"] for s in found] == ["vp9", "opus"]
    with av.open(str(source)) as a, av.open(str(tmp_path / "out.webm")) as b:
        lengths = [sum(f.samples for f in c.decode(audio=0)) for c in (a, b)]
    assert abs(lengths[0] - lengths[1]) < 1500


def test_pcm_into_mp4_is_converted(tmp_path):
    source = tmp_path / "in.mkv"
    container = av.open(str(source), "w")
    _, images = add_video(container)
    _, audio = add_audio(container, "pcm_s16le")
    mux(container, images, audio)
    (note,) = rewrite(source, tmp_path / "out.mp4")
    assert "pcm_s16le" in note
    assert "aac" in note


def test_cut_begins_at_zero_and_drops_packets_outside(rich, tmp_path):
    out = tmp_path / "out.mkv"
    rewrite(rich, out, start_s=0.2, duration_s=0.2)
    with av.open(str(out)) as container:
        first = {"video": [], "audio": []}
        for packet in container.demux(video=0, audio=0):
            if packet.pts is not None:
                first[packet.stream.type].append(packet.pts * packet.time_base)
    assert min(first["video"]) == 0
    assert len(first["video"]) == 3  # 200, 301 and 333 ms
    assert Fraction(-22, 1000) < min(first["audio"]) <= 0
    assert max(first["audio"]) < Fraction(2, 10)
    assert chapters(out) == [
        (0, Fraction(50, 1000), "One"),
        (Fraction(50, 1000), Fraction(2, 10), "Two"),
    ]
    assert subtitles_as_srt(out, 0).startswith("1\n00:00:00,000 --> 00:00:00,100\n")


def test_cover_image(tmp_path):
    cover = av.CodecContext.create("png", "w")
    cover.width = 8
    cover.height = 8
    cover.pix_fmt = "rgb24"
    cover.time_base = Fraction(1, 25)
    data = b"".join(bytes(p) for p in cover.encode(av.VideoFrame(8, 8, "rgb24")))
    source = tmp_path / "in.mkv"
    container = av.open(str(source), "w")
    _, images = add_video(container)
    container.add_attachment("cover.png", "image/png", data)
    mux(container, images)
    for name in ("out.mkv", "out.mp4"):
        assert rewrite(source, tmp_path / name) == []
        found = ffprobe(tmp_path / name, "-show_streams")["streams"]
        assert [s["disposition"]["attached_pic"] for s in found] == [0, 1]
        assert payloads(tmp_path / name, "video")[1] == [data]
    (note,) = rewrite(source, tmp_path / "out.webm")
    assert "cover" in note


@pytest.mark.parametrize("name", ["out.gif", "out.y4m", "out.avi", "out.ts", "images"])
def test_every_stream_that_is_left_out_is_named(rich, tmp_path, name):
    text = "\n".join(rewrite(rich, tmp_path / name))
    copied_by_suffix = {".ts": ("audio 1", "audio 2"), ".avi": ("audio 1",)}
    copied = copied_by_suffix.get((tmp_path / name).suffix, ())
    for stream in ("audio 1", "audio 2", "subtitle 3", "subtitle 4", "attachment 5"):
        assert (stream in text) == (stream not in copied), text


def test_transport_stream_clock_is_set_to_zero(tmp_path):
    source = make_plain(tmp_path / "in.ts", pts_ms=tuple(range(40000, 40400, 40)))
    out = tmp_path / "out.mp4"
    rewrite(source, out)
    before, after = starts_s(source), starts_s(out)
    assert min(before) > 20
    assert 0 <= min(after) < 1
    offset_before = before[0] - before[1]
    offset_after = after[0] - after[1]
    assert abs(offset_before - offset_after) <= Fraction(1, 1000)


def test_a_second_video_is_named(tmp_path):
    source = tmp_path / "in.mkv"
    container = av.open(str(source), "w")
    first, second = add_video(container), add_video(container)
    mux(container, first[1], second[1])
    (note,) = rewrite(source, tmp_path / "out.mkv")
    assert "video 1" in note


def test_damaged_rest_of_the_audio_is_a_note(tmp_path):
    source = make_plain(tmp_path / "in.mkv")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    rewrite(source, tmp_path / "out.mkv")
    assert payloads(tmp_path / "out.mkv", "audio")[0] == payloads(source, "audio")[0]


def test_timecode_goes_along_and_needs_no_note(tmp_path):
    source = tmp_path / "in.mov"
    container = av.open(str(source), "w")
    stream, images = add_video(container, tuple(range(0, 400, 40)))
    stream.metadata["timecode"] = "01:00:00:00"
    mux(container, images)
    assert [s["codec_type"] for s in ffprobe(source, "-show_streams")["streams"]] == [
        "video",
        "data",
    ]
    assert rewrite(source, tmp_path / "out.mov") == []
    found = ffprobe(tmp_path / "out.mov", "-show_streams")["streams"]
    assert [s["tags"]["timecode"] for s in found] == ["01:00:00:00", "01:00:00:00"]


def test_flags_that_mov_cannot_hold_are_named(rich, tmp_path):
    assert any("forced (flag)" in note for note in rewrite(rich, tmp_path / "out.mov"))
