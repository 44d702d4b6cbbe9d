import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tubelet
from helpers.toy_models import RECURRENT, build
from helpers.videos import make_video
from tubelet.errors import (
    Cancelled,
    ConfigError,
    IncompleteError,
    InputError,
    RequestError,
    ResourceError,
)
from tubelet.models.architecture import Contract
from tubelet.progress import CancelToken
from tubelet.restore import job
from tubelet.restore.engine import Engine
from tubelet.restore.estimate import describe
from tubelet.restore.job import run
from tubelet.restore.plan import Plan
from tubelet.restore.settings import UpscaleSettings
from tubelet.restore.window_plan import WindowPlan
from tubelet.types import Temporal
from tubelet.video.probe import probe
from tubelet.video.reader import open_reader
from tubelet.zoo.opening import OpenedModel
from tubelet.zoo.spec import ModelSpec

CPU = {"device": "cpu", "model": "bicubic"}


def uneven_video(path: Path, frames: int = 10, size: tuple[int, int] = (64, 48)) -> Path:
    pts = [40 * t + 7 * (t % 3) for t in range(frames)]
    return make_video(
        path,
        frames=frames,
        size=size,
        pts=pts,
        time_base=Fraction(1, 1000),
        options={"crf": "10", "bf": "0"},
    )


def times(path: Path) -> list[float]:
    with open_reader(path) as reader:
        return [frame.time_s for frame in reader]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return uneven_video(tmp_path_factory.mktemp("job") / "in.mp4")


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    cores, in_new_thread = torch.get_num_threads(), []
    torch.set_num_threads(2)
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("tubelet-")] == []
    other = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert in_new_thread == [torch.get_num_threads()] == [2]
    torch.set_num_threads(cores)


def test_a_light_model_leaves_cores_to_the_encoder(video, tmp_path):
    during = set()
    tubelet.upscale(
        video,
        tmp_path / "out.mp4",
        on_progress=lambda _: during.add(torch.get_num_threads()),
        **CPU,
    )
    # The last call comes after the run, with the number of before.
    assert during == {1, 2}


@pytest.mark.parametrize(("scale", "size"), [(None, (256, 192)), (2, (128, 96)), (3, (192, 144))])
def test_upscale_writes_every_frame_at_its_time(video, tmp_path, scale, size):
    out = tmp_path / "out.mp4"
    result = tubelet.upscale(video, out, scale=scale, **CPU)
    assert (result.path, result.frames, result.width, result.height) == (out, 10, *size)
    assert result.model == f"bicubic-x{scale or 4}"
    info = probe(out)
    assert (info.width, info.height) == size
    assert times(out) == pytest.approx(times(video), abs=2e-3)


def test_default_model_works(video, tmp_path):
    assert tubelet.upscale(video, tmp_path / "out.mkv", scale=2, device="cpu").width == 128


def test_height_start_and_duration(video, tmp_path):
    out = tmp_path / "out.mkv"
    result = run(video, out, UpscaleSettings(height=120, start=0.1, duration=0.2, **CPU))
    assert (result.width, result.height) == (160, 120)
    assert result.model == "bicubic-x3"
    assert 0 < result.frames == len(times(out)) < 10


def test_progress_is_reported_in_this_thread(video, tmp_path):
    events, threads = [], set()

    def on_progress(progress):
        events.append(progress)
        threads.add(threading.current_thread())

    tubelet.upscale(video, tmp_path / "out.mp4", on_progress=on_progress, **CPU)
    assert threads == {threading.current_thread()}
    assert events[0].frames_done == 1
    assert (events[-1].frames_done, events[-1].frames_total, events[-1].eta_s) == (10, 10, 0)
    assert len(events) <= 2 + events[-1].elapsed_s / 0.1


def test_a_cancelled_run_stops_at_the_next_frame_and_leaves_nothing(video, tmp_path, monkeypatch):
    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    token, seen = CancelToken(), []

    def on_progress(progress):
        seen.append(progress.done)
        if progress.done == 3:
            token.cancel()

    with pytest.raises(Cancelled):
        tubelet.upscale(video, tmp_path / "out.mp4", on_progress=on_progress, cancel=token, **CPU)
    assert seen == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model": "lancsoz"}, RequestError, "did you mean lanczos"),
        ({"model": "bicubic", "scale": 5}, ConfigError, "scale=5 must be 2, 3 or 4"),
        ({"model": "bicubic", "modle": 1}, ConfigError, "no setting 'modle'; did you mean model"),
        ({"model": "bicubic", "precision": "fp16"}, ConfigError, "precision=fp16"),
        ({"model": "bicubic", "device": "cuda:77"}, ResourceError, "cuda:77"),
    ],
)
def test_impossible_requests_leave_no_file(video, tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        tubelet.upscale(video, tmp_path / "out.mp4", **{"device": "cpu", **settings})
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_before_any_work(video, tmp_path, monkeypatch):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"mine")
    monkeypatch.setattr(job, "open_reader", lambda *_, **__: pytest.fail("the input was opened"))
    with pytest.raises(RequestError, match="exists"):
        tubelet.upscale(video, out, **CPU)
    assert out.read_bytes() == b"mine"


def test_input_that_is_no_video(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(InputError):
        tubelet.upscale(text, tmp_path / "out.mp4", **CPU)
    assert list(tmp_path.iterdir()) == [text]


def test_truncated_input_gives_every_frame_and_says_what_is_missing(tmp_path):
    whole = uneven_video(tmp_path / "whole.mkv", 60, (128, 96))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    out = tmp_path / "out.mp4"
    with pytest.raises(
        IncompleteError, match=r"out\.mp4 has the \d+ frames that could be decoded, but "
    ) as caught:
        tubelet.upscale(cut, out, **CPU)
    assert caught.value.exit_code == 3
    assert 0 < len(times(out)) < 60
    assert f"the {len(times(out))} frames" in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("model broke")])
def test_failure_in_the_middle_leaves_no_output(video, tmp_path, monkeypatch, error):
    original = Engine.restore_scene

    def fails(self, scene, hidden=None):
        for frame in original(self, scene, hidden):
            if frame.index == 4:
                raise error
            yield frame

    monkeypatch.setattr(Engine, "restore_scene", fails)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        tubelet.upscale(video, tmp_path / "out.mp4", **CPU)
    assert list(tmp_path.iterdir()) == []


class Identity(torch.nn.Module):
    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return lq


@pytest.mark.parametrize("clip", ["vid4_calendar", "davis_goat"])  # vivid colors, many beyond RGB
def test_an_identity_run_changes_no_pixel_by_more_than_one_step(
    shared, tmp_path, monkeypatch, clip
):
    frames = [str(p) for p in sorted((shared / "data" / "dev_eval" / clip).iterdir())[:3]]
    src, out = tmp_path / "in.mp4", tmp_path / "out.mkv"
    with av.open(str(src), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for path in frames:
            with av.open(path) as image:
                frame = next(image.decode(video=0)).reformat(
                    width=320, height=240, format="yuv420p"
                )
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    spec = ModelSpec(
        id="identity",
        summary="",
        architecture="Identity",
        contract=Contract(scale=1, temporal=Temporal("frame")),
        build=Identity,
    )
    monkeypatch.setattr(
        job, "open_model", lambda *_, **__: OpenedModel("identity", spec, Identity())
    )
    run(src, out, UpscaleSettings(device="cpu", codec="ffv1"))
    with av.open(str(src)) as before, av.open(str(out)) as after:
        pairs = list(zip(before.decode(video=0), after.decode(video=0), strict=True))
        assert len(pairs) == 3
        for a, b in pairs:
            assert np.array_equal(a.to_ndarray(format="yuv420p"), b.to_ndarray(format="yuv420p"))
            rgb = [x.to_ndarray(format="rgb24").astype(int) for x in (a, b)]
            assert np.abs(rgb[0] - rgb[1]).max() <= 1


@pytest.mark.parametrize("start", [None, 0.12])
def test_images_of_another_size_are_scaled_to_the_size_of_the_first(tmp_path, start):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, size in enumerate([(33, 21)] * 3 + [(40, 30)] * 2):
        Image.new("RGB", size, (10 * number, 200, 90)).save(folder / f"{number:03}.png")
    out = tmp_path / "out"
    with pytest.raises(
        IncompleteError, match="2 frames have another size and were scaled to 33x21"
    ):
        run(folder, out, UpscaleSettings(scale=2, start=start, **CPU))
    for path in out.iterdir():
        with Image.open(path) as image:
            assert image.size == (66, 42)


@pytest.mark.parametrize("segment_frames", [5, 8])
def test_a_recurrent_clip_model_gives_the_same_video_in_segments_of_any_length(
    video, tmp_path, monkeypatch, segment_frames
):
    src = uneven_video(tmp_path / "in.mp4", frames=21)
    opened = OpenedModel("recurrent", RECURRENT, build(RECURRENT))
    monkeypatch.setattr(job, "open_model", lambda *_, **__: opened)
    settings = UpscaleSettings(device="cpu", codec="ffv1")
    plan = describe(src, tmp_path / "o.mkv", settings).plan
    assert plan.window.lookahead == RECURRENT.contract.lookahead_frames
    plan = replace(plan, window=WindowPlan(frames=6, lookahead=2), min_segment_frames=1)
    videos = []
    for frames in (segment_frames, 1000):
        out = tmp_path / f"{frames}.mkv"
        run(src, out, settings, plan=replace(plan, segment_frames=frames))
        with open_reader(out) as reader:
            videos.append(torch.stack([frame.rgb for frame in reader]))
    assert torch.equal(*videos)


def test_a_segment_of_no_frames_is_no_plan(video, tmp_path):
    plan = describe(video, tmp_path / "o.mp4", UpscaleSettings(**CPU)).plan
    with pytest.raises(ConfigError, match="must be at least 1"):
        Plan.from_json(replace(plan, segment_frames=0).to_json())
