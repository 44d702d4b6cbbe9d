"""What upscaling would do, said beforehand."""

import json
import time
from pathlib import Path

import pytest
from torch import Tensor

import tubelet
from helpers.toy_models import RECURRENT, build
from helpers.videos import make_video
from tubelet.restore import estimate, job
from tubelet.restore.engine import Engine
from tubelet.restore.estimate import describe
from tubelet.restore.plan import Plan
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.window_plan import WindowPlan
from tubelet.video.enlarged import EnlargedFrame
from tubelet.zoo.opening import OpenedModel

CPU = {"device": "cpu", "model": "bicubic"}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("estimate") / "in.mp4", frames=10, size=(64, 48))


def test_nothing_is_written(video: Path, tmp_path: Path) -> None:
    description = describe(video, tmp_path / "out.mkv", UpscaleSettings(scale=3, **CPU))
    assert list(tmp_path.iterdir()) == []
    assert (description.model, description.codec, description.frames) == ("bicubic-x3", "h264", 10)
    plan = description.plan
    assert (plan.output, plan.device, plan.precision, plan.tile_px) == (
        (192, 144),
        "cpu",
        "fp32",
        0,
    )
    assert description.restore_s == pytest.approx(10 * description.frame_s)


def test_the_time_includes_images_that_are_computed_when_read(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_rows = EnlargedFrame.rows

    def slow_rows(self: EnlargedFrame, start: int, stop: int) -> Tensor:
        time.sleep(0.05)
        return compute_rows(self, start, stop)

    monkeypatch.setattr(EnlargedFrame, "rows", slow_rows)
    description = describe(video, tmp_path / "out.mkv", UpscaleSettings(scale=3, **CPU))
    assert description.frame_s > 0.05


@pytest.mark.parametrize(("num_frames", "expected"), [(60, 2.0), (61, 2.0 * 60 / 54)])
def test_the_time_includes_the_look_ahead_of_windows(
    num_frames: int, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenedModel("recurrent", RECURRENT, build(RECURRENT))
    monkeypatch.setattr(job, "open_model", lambda *_, **__: opened)
    monkeypatch.setattr(estimate, "_time_frame", lambda *_: 2.0)
    video = make_video(tmp_path / "in.mp4", frames=num_frames, size=(32, 24))
    description = describe(video, tmp_path / "o.mp4", UpscaleSettings(device="cpu"))
    assert description.plan.window == WindowPlan(frames=60, lookahead=6)
    assert description.frame_s == pytest.approx(expected)
    assert description.restore_s == pytest.approx(num_frames * expected)


def test_the_size_follows_the_quality(video: Path, tmp_path: Path) -> None:
    normal = describe(video, tmp_path / "out.mkv", UpscaleSettings(scale=3, **CPU))
    assert normal.output_bytes == round(10 * 192 * 144 * 0.25 / 8)
    finer = describe(video, tmp_path / "out.mkv", UpscaleSettings(scale=3, crf=10, **CPU))
    assert finer.output_bytes == 2 * normal.output_bytes
    assert describe(video, tmp_path / "images", UpscaleSettings(**CPU)).codec == "png"


def test_the_frames_of_a_part_are_counted(video: Path, tmp_path: Path) -> None:
    description = describe(
        video, tmp_path / "out.mkv", UpscaleSettings(start=0.2, duration=0.1, **CPU)
    )
    assert description.frames in (2, 3)


@pytest.mark.parametrize("settings", [{"model": "default"}, {"model": "bicubic", "tile": 32}])
def test_the_plan_is_the_one_that_the_run_uses(
    video: Path, tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    description = describe(video, tmp_path / "a.mkv", UpscaleSettings(device="cpu", **settings))
    values = json.loads(json.dumps(description.as_dict()))
    used: list[Plan] = []
    make_plan = Engine.plan

    def spy(engine: Engine, height: int, width: int) -> Plan:
        used.append(make_plan(engine, height, width))
        return used[-1]

    monkeypatch.setattr(Engine, "plan", spy)
    tubelet.upscale(video, tmp_path / "a.mkv", device="cpu", **settings)
    assert used == [Plan.from_json(json.dumps(values["plan"]))]
    assert (values["width"], values["height"]) == used[0].output
