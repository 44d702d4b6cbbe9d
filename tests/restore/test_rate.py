"""Twice the frame rate, from the times of single frames to whole files as ffprobe sees them."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor, nn

import tubelet
from helpers.toy_models import (
    CLIP,
    SPACE_TIME,
    WHOLE_SPACE_TIME,
    build,
    clip_of,
    cuts_at,
    frames_of,
    with_contract,
)
from helpers.videos import (
    add_audio,
    add_video,
    ffprobe,
    ffprobe_times,
    image,
    info,
    make_plain,
    mux,
    needs_ffmpeg,
    payloads,
    times_s,
)
from tubelet.errors import ConfigError
from tubelet.models.zooming_slow_mo import ZoomingSlowMo, ZoomingSlowMoConfig
from tubelet.restore import job, runner
from tubelet.restore.engine import Engine
from tubelet.restore.estimate import describe
from tubelet.restore.rate import double_rate, doubled_frames, doubled_info
from tubelet.restore.settings import UpscaleSettings
from tubelet.types import Frame, Temporal
from tubelet.zoo.checkpoint import save_checkpoint
from tubelet.zoo.opening import OpenedModel
from tubelet.zoo.spec import ModelSpec

MS = Fraction(1, 1000)


def frame_at(pts: int, value: float = 0.0, duration: int = 0) -> Frame:
    return Frame(torch.full((3, 2, 2), value), pts, MS, duration)


def times(frames: list[Frame]) -> list[tuple[Fraction, Fraction]]:
    """When each frame begins and how long it lasts, milliseconds."""
    return [(f.pts * f.time_base / MS, f.duration * f.time_base / MS) for f in frames]


def test_a_frame_half_way_lies_between_the_times_of_its_neighbors() -> None:
    restored = [
        frame_at(5),
        frame_at(5, 0.5),
        frame_at(12),
        frame_at(12, 0.5),
        frame_at(50, duration=33),
    ]
    out = list(double_rate(restored))
    assert times(out) == [(5, 3.5), (8.5, 3.5), (12, 19), (31, 19), (50, 33)]
    assert [frame.index for frame in out] == [0, 1, 2, 3, 4]
    assert [frame.rgb[0, 0, 0].item() for frame in out] == [0, 0.5, 0, 0.5, 0]


def test_the_frame_before_a_cut_comes_twice() -> None:
    first, second, third = double_rate([frame_at(0, 0.25), frame_at(40, 0.75, duration=40)])
    assert times([first, second, third]) == [(0, 20), (20, 20), (40, 40)]
    assert torch.equal(first.rgb, second.rgb)
    first.rgb.mul_(2)  # whoever gets a frame may change it
    assert second.rgb.mean() == 0.25


def test_an_unknown_last_duration_is_that_of_the_frame_before() -> None:
    assert times(list(double_rate([frame_at(0), frame_at(30)])))[-1] == (30, 30)
    assert times(list(double_rate([frame_at(7)]))) == [(7, 0)]
    assert list(double_rate([])) == []


def test_the_description_of_the_output() -> None:
    before = info(time_base=MS, average_rate=Fraction(24000, 1001), frames_hint=10)
    after = doubled_info(before)
    assert (after.time_base, after.average_rate, after.frames_hint) == (
        MS / 2,
        Fraction(48000, 1001),
        19,
    )
    unknown = doubled_info(replace(before, average_rate=None, frames_hint=None))
    assert (unknown.average_rate, unknown.frames_hint) == (None, None)
    assert [doubled_frames(frames) for frames in (0, 1, 2)] == [0, 1, 3]


def doubled(
    spec: ModelSpec, model: nn.Module, clip: Tensor, *cuts: int, **settings: Any
) -> list[Frame]:
    engine = Engine(spec, model, UpscaleSettings(device="cpu", fps="x2", **settings))
    return list(engine.restore(frames_of(clip), starts_scene=cuts_at(*cuts)))


def whole(model: nn.Module, clip: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(clip[None])[0]


@pytest.mark.parametrize("spec", [SPACE_TIME, WHOLE_SPACE_TIME], ids=["windows", "whole"])
@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 6, 8, 9, 11, 23])
def test_the_engine_gives_every_frame_once(spec: ModelSpec, num_frames: int) -> None:
    model, clip = build(spec), clip_of(num_frames)
    out = doubled(spec, model, clip)
    torch.testing.assert_close(
        torch.stack([f.rgb for f in out]), whole(model, clip), rtol=0, atol=1e-6
    )
    pts = [frame.pts * frame.time_base for frame in out]
    given = [frame.pts * frame.time_base for frame in frames_of(clip)]
    assert pts[::2] == given
    assert pts[1::2] == [(a + b) / 2 for a, b in pairwise(given)]


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_any_overlap_leaves_no_gap(overlap: int) -> None:
    temporal = Temporal("clip", window_frames=4, overlap_frames=overlap, between_frames=1)
    spec, clip = with_contract(SPACE_TIME, temporal=temporal), clip_of(14)
    model = build(spec)
    out = torch.stack([frame.rgb for frame in doubled(spec, model, clip)])
    torch.testing.assert_close(out, whole(model, clip), rtol=0, atol=1e-6)


def test_without_it_only_the_frames_of_the_input_come() -> None:
    model, clip = build(SPACE_TIME), clip_of(9)
    out = list(Engine(SPACE_TIME, model, UpscaleSettings(device="cpu")).restore(frames_of(clip)))
    assert [(f.pts, f.time_base) for f in out] == [(f.pts, f.time_base) for f in frames_of(clip)]
    torch.testing.assert_close(
        torch.stack([f.rgb for f in out]), whole(model, clip)[::2], rtol=0, atol=1e-6
    )


def test_nothing_is_interpolated_across_a_cut() -> None:
    model, clip = build(SPACE_TIME), clip_of(11)
    out = torch.stack([frame.rgb for frame in doubled(SPACE_TIME, model, clip, 3, 4)])
    parts = [whole(model, part) for part in clip.split((3, 1, 7))]
    expected = torch.cat([parts[0], parts[0][-1:], parts[1], parts[1][-1:], parts[2]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_tiles_do_not_show() -> None:
    model, clip = build(SPACE_TIME), clip_of(6, 40, 70)
    tiled = torch.stack([frame.rgb for frame in doubled(SPACE_TIME, model, clip, tile=32)])
    torch.testing.assert_close(tiled, whole(model, clip), rtol=0, atol=1e-5)


def test_a_model_that_cannot_is_refused_with_those_that_can() -> None:
    with pytest.raises(ConfigError, match=r"ClipNet does not; use .*ZoomingSlowMo or TMNet"):
        Engine(CLIP, build(CLIP), UpscaleSettings(fps="x2"))


@pytest.mark.parametrize("fps", ["x3", "50", 50])
def test_other_rates_are_refused(fps: Any) -> None:
    with pytest.raises(ConfigError, match=f"fps={fps} must be x2"):
        UpscaleSettings(fps=fps)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "window", "between_frames": 1}, "is for 'clip' models"),
        ({"kind": "clip", "between_frames": 2}, "must be 0 or 1"),
        ({"kind": "clip", "between_frames": 1, "window_frames": 5}, "half-way between two windows"),
    ],
)
def test_contracts_that_make_no_sense(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Temporal(**fields)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run with the small space-time model."""
    opened = OpenedModel("space-time", SPACE_TIME, build(SPACE_TIME))
    monkeypatch.setattr(job, "open_model", lambda *_, **__: opened)
    return {"device": "cpu", "fps": "x2"}


def video(path: Path, pts_ms: list[int], *, cut: int | None = None) -> Path:
    """A small video with audio that ends before it."""
    container = av.open(str(path), "w")
    images = [image(t, 32, 24) // (1 if cut is None or t < cut else 6) for t in range(len(pts_ms))]
    _, shown = add_video(
        container, pts_ms, (32, 24), images=images, options={"crf": "5", "bf": "0"}
    )
    _, heard = add_audio(container, seconds=pts_ms[-1] / 2000)
    mux(container, shown, heard)
    return path


def length_ms(path: Path) -> float:
    """How long the file lasts, which ends with the image."""
    return 1000 * float(ffprobe(path, "-show_format")["format"]["duration"])


def video_stream(path: Path) -> dict[str, Any]:
    return ffprobe(path, "-select_streams", "v:0", "-show_streams")["streams"][0]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "pts_ms",
    [[40 * t for t in range(8)], [0, 33, 67, 133, 141, 200, 301]],
    ids=["constant", "variable"],
)
def test_a_file_has_twice_the_frames_the_same_length_and_audio(
    tmp_path: Path, small: dict[str, Any], suffix: str, pts_ms: list[int]
) -> None:
    src, out = video(tmp_path / f"in.{suffix}", pts_ms), tmp_path / f"out.{suffix}"
    events: list[Any] = []
    result = tubelet.upscale(src, out, on_progress=events.append, **small)
    count = 2 * len(pts_ms) - 1
    assert result.frames == count
    assert (events[-1].frames_done, events[-1].frames_total) == (count, count)
    half_way = [(a + b) / 2 for a, b in pairwise(pts_ms)]
    seen_ms = [1000 * time_s for time_s in ffprobe_times(out)]
    assert seen_ms == pytest.approx(
        sorted([*pts_ms, *half_way]), abs=0.51 if suffix == "mkv" else 0.01
    )
    assert length_ms(out) == pytest.approx(pts_ms[-1] + 40, abs=1.01)
    assert payloads(out, "audio") == payloads(src, "audio")
    if pts_ms[1] == 40:
        assert video_stream(out)["r_frame_rate"] == "50/1"
        assert float(video_stream(out).get("duration", "0.32")) == pytest.approx(0.32)
        assert events[0].frames_total == count


@needs_ffmpeg
def test_a_cut_keeps_the_spacing_and_mixes_nothing(tmp_path: Path, small: dict[str, Any]) -> None:
    src = video(tmp_path / "in.mp4", [40 * t for t in range(8)], cut=4)
    assert tubelet.upscale(src, tmp_path / "out", **small).frames == 15
    same = [
        a.read_bytes() == b.read_bytes() for a, b in pairwise(sorted((tmp_path / "out").iterdir()))
    ]
    assert same == [number == 6 for number in range(14)]
    assert tubelet.upscale(src, tmp_path / "out.mp4", **small).frames == 15
    assert [1000 * t for t in ffprobe_times(tmp_path / "out.mp4")] == pytest.approx(
        [20.0 * n for n in range(15)]
    )


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["y4m", "avi"])
def test_containers_without_times_get_twice_the_rate(
    tmp_path: Path, small: dict[str, Any], suffix: str
) -> None:
    src, out = (
        make_plain(tmp_path / "in.mp4", pts_ms=[0, 40, 80, 120], size=(16, 16)),
        tmp_path / f"out.{suffix}",
    )
    tubelet.upscale(src, out, **small)
    assert len(ffprobe_times(out)) == 7
    assert video_stream(out)["r_frame_rate"] == "50/1"


def test_start_and_duration_count_in_the_input(tmp_path: Path, small: dict[str, Any]) -> None:
    src = video(tmp_path / "in.mp4", [40 * t for t in range(10)])
    assert (
        tubelet.upscale(src, tmp_path / "out.mp4", start=0.08, duration=0.16, **small).frames == 7
    )


def test_the_plan_shows_the_new_rate(tmp_path: Path, small: dict[str, Any]) -> None:
    src = video(tmp_path / "in.mp4", [40 * t for t in range(10)])
    plan = describe(src, tmp_path / "out.mp4", UpscaleSettings(**small))
    assert (plan.frames, plan.frame_rate) == (19, 50)
    plain = describe(src, tmp_path / "out.mp4", UpscaleSettings(**{**small, "fps": None}))
    assert (plain.frames, plain.frame_rate) == (10, 25)


def test_a_checkpoint_of_zooming_slow_mo_raises_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PROBE_PX", 8)  # the memory use does not matter here
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ZoomingSlowMo(
            ZoomingSlowMoConfig(channels=4, groups=2, num_front_blocks=0, num_back_blocks=0)
        )
    save_checkpoint(tmp_path / "zsm.safetensors", network, {})
    src = make_plain(tmp_path / "in.mp4", pts_ms=[0, 40, 80], size=(18, 14), audio=False)
    out, model = tmp_path / "out.mp4", str(tmp_path / "zsm.safetensors")
    result = tubelet.upscale(src, out, model=model, fps="x2", device="cpu", tile=0)
    assert (result.frames, result.width, result.height) == (5, 72, 56)
    assert times_s(out) == [Fraction(n, 50) for n in range(5)]
