"""Segments: restored in any order, in one process or two, then joined, they are the video restored at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.processes import PROCESSES
from helpers.toy_models import (
    CLIP,
    FORWARD,
    FRAME,
    ONLINE,
    PAIRS,
    RECURRENT,
    SPACE_TIME,
    STREAM,
    WHOLE_CLIP,
    WINDOW,
    build,
    clip_of,
    cuts_at,
    frames_of,
)
from helpers.videos import image, make_plain
from helpers.zoo_configs import TINY, architecture_of, tiny_network
from tubelet.models.architecture import Contract
from tubelet.restore.engine import Engine, SceneState
from tubelet.restore.plan import Plan
from tubelet.restore.scene import SegmentStream
from tubelet.restore.segment import (
    Segment,
    find_segments,
    open_segment,
    restore_segment,
)
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.window_plan import WindowPlan
from tubelet.types import Frame
from tubelet.video.encoder import VideoEncoder
from tubelet.video.output import open_output
from tubelet.video.output_format import OutputClock, OutputFormat, choose_output_format
from tubelet.video.parts import PartWriter, copy_part
from tubelet.video.probe import probe
from tubelet.video.reader import open_reader
from tubelet.video.writer import EncodeSettings
from tubelet.zoo.spec import ModelSpec

IDS: Any = {"ids": lambda spec: spec.id if isinstance(spec, ModelSpec) else None}
EXACT = [FRAME, WINDOW, ONLINE]
ALL = [*EXACT, CLIP, WHOLE_CLIP, STREAM, RECURRENT]


class ListSink:
    """Keeps the frames of all segments."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ends: list[Fraction | None] = []

    def write(self, frame: Frame) -> None:
        self.frames.append(frame)

    def finish(self, next_s: Fraction | None = None) -> None:
        self.ends.append(next_s)


def engine_of(spec: ModelSpec, **settings: Any) -> Engine:
    return Engine(spec, build(spec), UpscaleSettings(device="cpu", **settings))


def plan_of(engine: Engine, clip: Tensor, segment_frames: int) -> Plan:
    return replace(
        engine.plan(*clip.shape[-2:]), segment_frames=segment_frames, min_segment_frames=1
    )


def restore_stream(
    engine: Engine,
    clip: Tensor,
    *cuts: int,
    segment_frames: int = 0,
    plan: Plan | None = None,
    keeps_state: bool = True,
) -> tuple[list[Frame], list[Fraction | None]]:
    """Restore a clip segment by segment, in order; by default under a plan for so many frames."""
    plan = plan or plan_of(engine, clip, segment_frames)
    engine.follow(plan)
    stream = SegmentStream(
        frames_of(clip), plan, keeps_state=keeps_state, starts_scene=cuts_at(*cuts)
    )
    sink = ListSink()
    state: SceneState = None
    for frames in stream:
        known = state if keeps_state and frames.continues_scene else None
        state = restore_segment(frames, engine, sink, state=known).state
    return sink.frames, sink.ends


def restored_at_once(spec: ModelSpec, clip: Tensor, *cuts: int, **settings: Any) -> list[Frame]:
    engine = engine_of(spec, **settings)
    return list(engine.restore(frames_of(clip), starts_scene=cuts_at(*cuts)))


def worst_psnr(frames: list[Frame], expected: list[Frame]) -> float:
    errors = [(a.rgb - b.rgb).square().mean() for a, b in zip(frames, expected, strict=True)]
    return float(-10 * torch.stack(errors).max().clamp_min(1e-16).log10())


def times(frames: list[Frame]) -> list[tuple[int, Fraction, int, int]]:
    return [(frame.pts, frame.time_base, frame.duration, frame.index) for frame in frames]


@pytest.mark.parametrize("spec", ALL, **IDS)
@pytest.mark.parametrize("cuts", [(), (5,), (3, 4, 11)])
def test_segments_that_end_at_cuts_give_the_same_frames(
    spec: ModelSpec, cuts: tuple[int, ...]
) -> None:
    clip = clip_of(14)
    frames, ends = restore_stream(engine_of(spec), clip, *cuts, segment_frames=1000)
    expected = restored_at_once(spec, clip, *cuts)
    assert times(frames) == times(expected)
    assert all(torch.equal(a.rgb, b.rgb) for a, b in zip(frames, expected, strict=True))
    source = frames_of(clip)
    assert ends == [*(source[cut].pts * source[cut].time_base for cut in cuts), None]


@pytest.mark.parametrize("spec", ALL, **IDS)
@pytest.mark.parametrize(
    ("cuts", "starts"),
    [((2, 4, 6, 8), [0, 4, 8]), ((1, 2, 3), [0, 3]), ((13,), [0, 13]), ((3, 7, 9), [0, 3, 7])],
)
def test_short_scenes_share_a_segment(
    spec: ModelSpec, cuts: tuple[int, ...], starts: list[int]
) -> None:
    clip = clip_of(14)
    engine = engine_of(spec)
    plan = replace(engine.plan(24, 32), min_segment_frames=3)
    engine.follow(plan)
    stream = SegmentStream(frames_of(clip), plan, keeps_state=True, starts_scene=cuts_at(*cuts))
    sink = ListSink()
    found: list[int] = []
    for frames in stream:
        found.append(frames.start)
        assert not frames.continues_scene
        restore_segment(frames, engine, sink)
    assert found == starts
    expected = restored_at_once(spec, clip, *cuts)
    assert times(sink.frames) == times(expected)
    assert all(torch.equal(a.rgb, b.rgb) for a, b in zip(sink.frames, expected, strict=True))


@pytest.mark.parametrize("spec", EXACT, **IDS)
@pytest.mark.parametrize("segment_frames", [1, 2, 5])
@pytest.mark.parametrize("cuts", [(), (4,), (7, 8)])
def test_inside_a_scene_segments_are_exact_where_the_context_is_known(
    spec: ModelSpec, segment_frames: int, cuts: tuple[int, ...]
) -> None:
    clip = clip_of(13)
    frames, ends = restore_stream(engine_of(spec), clip, *cuts, segment_frames=segment_frames)
    expected = restored_at_once(spec, clip, *cuts)
    assert len(ends) >= 13 // segment_frames
    assert times(frames) == times(expected)
    for a, b in zip(frames, expected, strict=True):
        torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [WINDOW, ONLINE, STREAM, WHOLE_CLIP], **IDS)
def test_context_is_what_makes_them_so(spec: ModelSpec) -> None:
    """A control: without context and state, the frames next to a seam differ."""
    clip = clip_of(13)
    engine = engine_of(spec)
    plan = plan_of(engine, clip, 5)
    engine.follow(plan)
    stream = SegmentStream(frames_of(clip), plan, keeps_state=False, starts_scene=cuts_at())
    stream._context_before = stream._context_after = 0
    sink = ListSink()
    for frames in stream:
        restore_segment(frames, engine, sink)
    assert worst_psnr(sink.frames, restored_at_once(spec, clip)) < 45


@pytest.mark.parametrize("spec", [RECURRENT, PAIRS], **IDS)
@pytest.mark.parametrize("segment_frames", [4, 6, 9, 21])
@pytest.mark.parametrize("cuts", [(), (9,), (3, 12)])
def test_windows_that_continue_do_not_depend_on_the_segments(
    spec: ModelSpec, segment_frames: int, cuts: tuple[int, ...]
) -> None:
    clip = clip_of(25)
    window = WindowPlan(frames=6, lookahead=2)
    engine = engine_of(spec)
    plan = replace(plan_of(engine, clip, segment_frames), window=window)
    frames, ends = restore_stream(engine, clip, *cuts, plan=plan)
    assert len(ends) >= 25 // segment_frames
    source = frames_of(clip)
    whole = engine_of(spec).restore(source, plan=plan, starts_scene=cuts_at(*cuts))
    for a, b in zip(frames, whole, strict=True):
        assert torch.equal(a.rgb, b.rgb)
        assert (a.pts, a.index) == (b.pts, b.index)


@pytest.mark.parametrize("segment_frames", [1, 2, 7])
@pytest.mark.parametrize("min_frames", [1, 5])
def test_segments_shorter_than_a_window_lose_no_state(segment_frames: int, min_frames: int) -> None:
    """The network has no backward sweep, so it must give what it gives at once."""
    clip = clip_of(25)
    engine = engine_of(FORWARD)
    plan = replace(
        plan_of(engine, clip, segment_frames),
        window=WindowPlan(frames=12, lookahead=2),
        min_segment_frames=min_frames,
    )
    frames, ends = restore_stream(engine, clip, 11, plan=plan)
    assert len(ends) >= 25 // max(segment_frames, min_frames)
    for a, b in zip(frames, restored_at_once(FORWARD, clip, 11), strict=True):
        torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keeps_state", "read_starts"), [(True, [0, 8, 11, 19]), (False, [0, 0, 11, 11])]
)
def test_segments_inside_a_scene_end_where_windows_end(
    keeps_state: bool, read_starts: list[int]
) -> None:
    clip = clip_of(25)
    engine = engine_of(RECURRENT)
    plan = replace(plan_of(engine, clip, 9), window=WindowPlan(frames=6, lookahead=2))
    engine.follow(plan)
    stream = SegmentStream(frames_of(clip), plan, keeps_state=keeps_state, starts_scene=cuts_at(11))
    found: list[tuple[int, int]] = []
    for frames in stream:
        found.append((frames.start, frames.read_start))
        restore_segment(frames, engine, ListSink())
    assert found == list(zip([0, 8, 11, 19], read_starts, strict=True))


@pytest.mark.parametrize("spec", [STREAM, WHOLE_CLIP], **IDS)
def test_warm_up_hides_a_seam_inside_a_scene(spec: ModelSpec) -> None:
    clip = clip_of(60)
    frames, _ = restore_stream(engine_of(spec), clip, segment_frames=20, keeps_state=False)
    assert worst_psnr(frames, restored_at_once(spec, clip)) >= 45


def contract_of(name: str) -> Contract:
    contract = architecture_of(name).contract(TINY[name])
    assert contract is not None
    return contract


RECURRENT_NETWORKS = [
    name
    for name in TINY
    if contract_of(name).streams or contract_of(name).temporal.kind == "online"
]


QUICK = ("FastVSR", "OVSR", "RLSP")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in RECURRENT_NETWORKS
    ],
)
def test_warm_up_hides_the_seams_of_every_recurrent_network(name: str) -> None:
    """Drawn frames that move, and random weights; without context, seams lie between 30 and 104 dB."""
    torch.manual_seed(0)
    network = tiny_network(name).eval()
    spec = replace(FRAME, id=name, contract=contract_of(name), build=lambda: network)
    clip = torch.stack([torch.from_numpy(image(t, 16, 16)) for t in range(36)])
    clip = clip.permute(0, 3, 1, 2).float() / 255
    at_once = list(
        Engine(spec, network, UpscaleSettings(device="cpu", precision="fp32", tile=0)).restore(
            frames_of(clip), starts_scene=cuts_at()
        )
    )
    engine = Engine(spec, network, UpscaleSettings(device="cpu", precision="fp32", tile=0))
    frames, _ = restore_stream(engine, clip, segment_frames=18, keeps_state=False)
    assert worst_psnr(frames, at_once) >= 120


@pytest.mark.parametrize("segment_frames", [4, 1000])
@pytest.mark.parametrize("cuts", [(), (3,), (5, 6)])
def test_twice_the_rate_goes_on_across_segments(segment_frames: int, cuts: tuple[int, ...]) -> None:
    clip = clip_of(11)
    engine = engine_of(SPACE_TIME, fps="x2")
    frames, _ = restore_stream(engine, clip, *cuts, segment_frames=segment_frames)
    expected = restored_at_once(SPACE_TIME, clip, *cuts, fps="x2")
    assert times(frames) == times(expected)
    assert len(frames) == 21
    for a, b in zip(frames, expected, strict=True):
        torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", ALL, **IDS)
def test_no_more_frames_are_held_than_a_segment_needs(spec: ModelSpec) -> None:
    alive: list[int] = []

    def stream() -> Iterator[Frame]:
        for frame in frames_of(clip_of(80, 16, 16)):
            alive.append(frame.index)
            yield frame

    engine = engine_of(spec)
    plan = plan_of(engine, clip_of(1, 16, 16), 20)
    engine.follow(plan)
    before, after = plan.context_frames
    done = 0
    segments = SegmentStream(stream(), plan, keeps_state=True, starts_scene=cuts_at())
    for frames in segments:
        restore_segment(frames, engine, ListSink())
        done += 20
        assert len(alive) <= done + after + 1
        assert len(segments._buffer._entries) <= before + 2 * after + 2


# From file to file


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to restore any segment."""

    src: Path
    plan: str
    form: OutputFormat
    clock: OutputClock
    network: str
    start_s: float
    duration_s: float | None


SPECS = {spec.id: spec for spec in (FRAME, WINDOW, ONLINE, WHOLE_CLIP, STREAM)}


def restore_part(job: Job, segment: Segment, path: Path) -> int:
    spec = SPECS[job.network]
    engine = engine_of(spec)
    engine.follow(Plan.from_json(job.plan))
    with (
        open_segment(job.src, segment, start_s=job.start_s, duration_s=job.duration_s) as frames,
        PartWriter(path) as part,
    ):
        encoder = VideoEncoder(job.form, job.clock, part, segment=segment.index)
        return restore_segment(frames, engine, encoder).num_frames


def uneven_video(path: Path, *, frames: int = 24) -> Path:
    pts = [40 * t + 7 * (t % 3) + 400 for t in range(frames)]
    return make_plain(path, pts_ms=tuple(pts))


def prepare(
    src: Path,
    dst: Path,
    spec: ModelSpec,
    *,
    segment_frames: int,
    cuts: tuple[int, ...],
    start_s: float = 0.0,
    min_frames: int = 1,
) -> tuple[Job, list[Segment]]:
    info = probe(src)
    engine = engine_of(spec)
    plan = engine.plan(info.height, info.width)
    plan = replace(plan, segment_frames=segment_frames, min_segment_frames=min_frames)
    detect: Callable[[Tensor], bool] = cuts_at(*cuts)
    segments = find_segments(src, plan, start_s=start_s, starts_scene=detect)
    with open_reader(src, start_s=start_s) as reader:
        first = next(iter(reader))
    form = choose_output_format(
        dst,
        like=info,
        width=plan.output[0],
        height=plan.output[1],
        settings=EncodeSettings(codec="ffv1"),
        start_s=start_s,
        duration_s=None,
    )
    clock = form.clock(first.pts * first.time_base)
    return Job(src, plan.to_json(), form, clock, spec.id, start_s, None), segments


def write_at_once(job: Job, segments: list[Segment], dst: Path) -> None:
    """Restore segment by segment into one output and pass on the state, as `upscale` does."""
    engine = engine_of(SPECS[job.network])
    plan = Plan.from_json(job.plan)
    engine.follow(plan)
    cuts = {segment.scene_start for segment in segments} - {0}
    for segment in segments:
        cuts |= set(segment.cuts)
    with (
        open_reader(job.src, start_s=job.start_s, gamut="keep") as reader,
        open_output(dst, job.form, like=probe(job.src)) as output,
    ):
        stream = SegmentStream(reader, plan, keeps_state=True, starts_scene=cuts_at(*cuts))
        state: SceneState = None
        for index, frames in enumerate(stream):
            encoder = VideoEncoder(job.form, job.clock, output, segment=index)
            known = state if frames.continues_scene else None
            state = restore_segment(frames, engine, encoder, state=known).state


def join(job: Job, paths: list[Path], dst: Path) -> None:
    with open_output(dst, job.form, like=probe(job.src)) as output:
        for path in paths:
            copy_part(path, output)


def frames_in(path: Path) -> tuple[list[tuple[Any, ...]], Tensor]:
    with open_reader(path) as reader:
        frames = list(reader)
        assert not reader.problems
    return times(frames), torch.stack([frame.rgb for frame in frames])


def stream_kinds(path: Path) -> list[tuple[str, str]]:
    return [(stream.kind, stream.codec) for stream in probe(path).streams]


def restore_backwards(work: list[tuple[Job, Segment, Path]]) -> list[int]:
    """Restore the last part first; return the numbers of frames in the order of the video."""
    return [restore_part(*part) for part in reversed(work)][::-1]


def restore_in_two_processes(work: list[tuple[Job, Segment, Path]]) -> list[int]:
    with PROCESSES.Pool(2) as pool:
        return pool.starmap(restore_part, work)


def assert_parts_join(
    job: Job,
    segments: list[Segment],
    whole: Path,
    restore: Callable[[list[tuple[Job, Segment, Path]]], list[int]] = restore_backwards,
) -> None:
    """Restore a video at once and part by part: frames, times and streams are the same."""
    write_at_once(job, segments, whole)
    paths = [whole.with_name(f"{segment.index}.part") for segment in segments]
    work = [(job, segment, path) for segment, path in zip(segments, paths, strict=True)]
    assert restore(work) == [segment.stop - segment.start for segment in segments]
    joined = whole.with_name("joined.mkv")
    join(job, paths, joined)
    expected_times, expected = frames_in(whole)
    actual_times, actual = frames_in(joined)
    assert actual_times == expected_times
    assert torch.equal(actual, expected)
    assert stream_kinds(joined) == stream_kinds(whole)


@pytest.mark.parametrize("spec", [FRAME, WINDOW, ONLINE, STREAM], **IDS)
@pytest.mark.parametrize("start_s", [0.0, 0.2])
def test_parts_restored_in_any_order_join_to_the_video_restored_at_once(
    tmp_path: Path, spec: ModelSpec, start_s: float
) -> None:
    src, dst = uneven_video(tmp_path / "in.mkv"), tmp_path / "whole.mkv"
    cuts = (7, 8, 15) if start_s == 0 else (6,)
    job, segments = prepare(src, dst, spec, segment_frames=1000, cuts=cuts, start_s=start_s)
    assert len(segments) == len(cuts) + 1
    assert_parts_join(job, segments, dst)


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    src, dst = uneven_video(tmp_path / "in.mkv"), tmp_path / "whole.mkv"
    job, segments = prepare(src, dst, STREAM, segment_frames=1000, cuts=(5, 12))
    assert segments[-1].stop == 24
    assert_parts_join(job, segments, dst, restore_in_two_processes)


@pytest.mark.parametrize("spec", [FRAME, WINDOW], **IDS)
def test_parts_inside_a_scene_are_exact_too(tmp_path: Path, spec: ModelSpec) -> None:
    src, dst = uneven_video(tmp_path / "in.mkv"), tmp_path / "whole.mkv"
    job, segments = prepare(src, dst, spec, segment_frames=5, cuts=(7,))
    assert [(s.start, s.stop) for s in segments] == [
        (0, 5),
        (5, 7),
        (7, 12),
        (12, 17),
        (17, 22),
        (22, 24),
    ]
    assert_parts_join(job, segments, dst)


@pytest.mark.parametrize("spec", [WINDOW, STREAM], **IDS)
@pytest.mark.parametrize(("segment_frames", "min_frames"), [(1000, 6), (7, 5)])
def test_parts_of_several_scenes_join_too(
    tmp_path: Path, spec: ModelSpec, segment_frames: int, min_frames: int
) -> None:
    src, dst = uneven_video(tmp_path / "in.mkv"), tmp_path / "whole.mkv"
    cuts = (2, 4, 9, 20)
    job, segments = prepare(
        src, dst, spec, segment_frames=segment_frames, cuts=cuts, min_frames=min_frames
    )
    assert any(segment.cuts for segment in segments)
    assert_parts_join(job, segments, dst)
