"""Encode a video in segments, as one process or several do, and describe the outcome."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av

from helpers.processes import Finished, run
from tubelet.types import Frame
from tubelet.video.codecs import EncodeSettings
from tubelet.video.encoder import PacketSink, VideoEncoder
from tubelet.video.info import VideoInfo
from tubelet.video.output import open_output
from tubelet.video.output_format import OutputClock, OutputFormat, choose_output_format
from tubelet.video.parts import PartWriter, copy_part
from tubelet.video.reader import open_reader

Way = Literal["direct", "parts"]


def read_all(source: Path) -> tuple[list[Frame], VideoInfo]:
    with open_reader(source, gamut="keep") as reader:
        return list(reader), reader.info


def write_in_segments(
    dst: Path,
    frames: list[Frame],
    like: VideoInfo,
    cuts: list[int],
    way: Way,
    settings: EncodeSettings | None = None,
) -> list[str]:
    """Write frames in segments that begin at `cuts`; part files are written in shuffled order."""
    size = frames[0].rgb.shape
    settings = settings or EncodeSettings()
    form = choose_output_format(dst, like=like, width=size[-1], height=size[-2], settings=settings)
    clock = form.clock(frames[0].pts * frames[0].time_base)
    ends = [0, *cuts, len(frames)]
    spans = list(pairwise(ends))

    def encode(number: int, sink: PacketSink) -> None:
        start, stop = spans[number]
        encode_segment(form, clock, sink, number, frames[start:stop], frames[stop : stop + 1])

    with open_output(dst, form, like=like) as output:
        if way == "direct":
            for number in range(len(spans)):
                encode(number, output)
        else:
            paths = [dst.parent / f"{dst.name}-{number}.part" for number in range(len(spans))]
            for number in random.Random(0).sample(range(len(spans)), len(spans)):
                with PartWriter(paths[number]) as part:
                    encode(number, part)
            for path in paths:
                copy_part(path, output)
                path.unlink()
    return output.notes


def encode_segment(
    form: OutputFormat,
    clock: OutputClock,
    sink: PacketSink,
    number: int,
    frames: list[Frame],
    following: list[Frame],
) -> None:
    encoder = VideoEncoder(form, clock, sink, segment=number)
    for frame in frames:
        encoder.write(frame)
    encoder.finish(following[0].pts * following[0].time_base if following else None)


def encode_in_a_process(
    source: Path,
    form: OutputFormat,
    clock: OutputClock,
    jobs: list[tuple[int, int, int]],
    folder: Path,
) -> None:
    """Let a process of its own, which knows only what the JSON says, encode segments (number, start, stop)."""
    order = {
        "source": str(source),
        "form": form.to_json(),
        "clock": clock.to_json(),
        "jobs": jobs,
        "folder": str(folder),
    }
    done = run(_work, json.dumps(order))
    assert done == Finished(0, b"", b"")


def _work(text: str) -> None:
    order = json.loads(text)
    form = OutputFormat.from_json(order["form"])
    clock = OutputClock.from_json(order["clock"])
    frames, _ = read_all(order["source"])
    for number, start, stop in order["jobs"]:
        with PartWriter(Path(order["folder"]) / f"{number}.part") as part:
            encode_segment(form, clock, part, number, frames[start:stop], frames[stop : stop + 1])


def describe_video(path: Path) -> dict[str, Any]:
    """Times of packets and frames of the video, and a hash of each decoded frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        lengths = (container.duration, stream.duration)
        packets = [p for p in container.demux(stream) if p.size]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return {
        "lengths": lengths,
        "dts": [p.dts for p in packets],
        "pts": sorted(p.pts for p in packets if p.pts is not None),
        "shown": [frame.pts for frame in frames],
        "pixels": [hashlib.md5(f.to_ndarray(format="rgba").tobytes()).hexdigest() for f in frames],
    }


def keyframes(path: Path) -> set[int | None]:
    """Presentation times at which the video may be entered."""
    with av.open(str(path)) as container:
        return {p.pts for p in container.demux(video=0) if p.size and p.is_keyframe}


def describe_others(path: Path) -> list[tuple[str, Any]]:
    """Bytes and times of the packets of all streams but the video, and the chapters."""
    with av.open(str(path)) as container:
        found: list[tuple[str, Any]] = [("chapters", [dict(c) for c in container.chapters()])]
        kinds = {s.index: s.type for s in container.streams}
        found += [("attachment", s.data) for s in container.streams if s.type == "attachment"]
        found += [
            ("metadata", (s.type, dict(s.metadata), int(s.disposition))) for s in container.streams
        ]
        for packet in container.demux():
            if packet.size and kinds[packet.stream_index] != "video":
                found.append(
                    (kinds[packet.stream_index], (packet.pts, packet.duration, bytes(packet)))
                )
    return found
