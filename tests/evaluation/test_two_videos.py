"""Two videos compared with each other or a reference: paired by time, in one size."""

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from helpers.evaluation_clips import read_frames, write_frames
from helpers.videos import image
from tubelet.errors import Cancelled, InputError, RequestError, ResourceError
from tubelet.evaluation.two_videos import compare_videos
from tubelet.metrics import psnr
from tubelet.ops.resize import resample
from tubelet.progress import CancelToken, Progress

Y = ("psnr-y",)


def video(path: Path, numbers: Iterable[int] = range(10), *, rate: int = 25) -> Path:
    """A lossless video that shows image n at n / `rate` seconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            frame.pts, frame.time_base = 1000 * number // rate, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_video_equals_itself(tmp_path: Path) -> None:
    comparison = compare_videos(
        video(tmp_path / "a.mkv"), video(tmp_path / "b.mkv"), metrics=("psnr-y", "ssim-y")
    )
    scores = {score.metric: score for score in comparison.scores}
    assert scores["psnr-y"].second == math.inf
    assert scores["ssim-y"].second == pytest.approx(1)
    assert scores["psnr-y"].first is None
    assert (comparison.frames, comparison.left_out, comparison.width, comparison.height) == (
        10,
        (0, 0),
        64,
        48,
    )


def test_both_are_measured_against_the_reference(tmp_path: Path) -> None:
    folders = [write_frames(tmp_path / name, 3, offset=n) for n, name in enumerate("abr")]
    a, b, r = map(read_frames, folders)
    (score,) = compare_videos(folders[0], folders[1], reference=folders[2], metrics=Y).scores
    assert score.first == pytest.approx(psnr(a, r).mean().item())
    assert score.second == pytest.approx(psnr(b, r).mean().item())
    (score,) = compare_videos(folders[0], folders[1], metrics=Y).scores
    assert score.first is None
    assert score.second == pytest.approx(psnr(b, a).mean().item())


def test_frames_are_paired_by_time_not_by_number(tmp_path: Path) -> None:
    full = video(tmp_path / "full.mkv")
    gap = video(tmp_path / "gap.mkv", [0, 1, 2, 5, 6, 8])
    comparison = compare_videos(full, gap, metrics=Y)
    assert comparison.scores[0].second == math.inf  # every pair is of the same image
    assert (comparison.frames, comparison.left_out) == (6, (4, 0))
    assert any("4 frames of" in note and "full.mkv" in note for note in comparison.notes)
    comparison = compare_videos(
        gap, video(tmp_path / "other.mkv", [0, 1, 3, 5, 6, 7, 8]), reference=full, metrics=Y
    )
    assert (comparison.frames, comparison.left_out) == (5, (1, 2, 5))
    assert comparison.scores[0].first == comparison.scores[0].second == math.inf


def test_the_longer_video_is_cut(tmp_path: Path) -> None:
    comparison = compare_videos(
        video(tmp_path / "a.mkv"), video(tmp_path / "b.mkv", range(7)), metrics=Y
    )
    assert (comparison.frames, comparison.left_out) == (7, (3, 0))
    assert comparison.scores[0].second == math.inf


def test_times_a_little_apart_are_one_moment(tmp_path: Path) -> None:
    pal, ntsc = video(tmp_path / "a.mkv", rate=24), video(tmp_path / "b.mkv", rate=25)
    assert (
        compare_videos(pal, ntsc, metrics=Y).frames == 10
    )  # 15 ms apart at the end, half a frame is 20


def test_a_smaller_video_is_enlarged(tmp_path: Path) -> None:
    small, large = (
        write_frames(tmp_path / "s", 2, size=(32, 24)),
        write_frames(tmp_path / "l", 2, size=(64, 48)),
    )
    comparison = compare_videos(small, large, metrics=Y)
    up = resample(read_frames(small), (48, 64)).clamp(0, 1)
    assert (comparison.width, comparison.height) == (64, 48)
    assert comparison.scores[0].second == pytest.approx(psnr(read_frames(large), up).mean().item())


def test_other_shapes_and_larger_than_the_reference_are_refused(tmp_path: Path) -> None:
    a, tall = write_frames(tmp_path / "a", 2), write_frames(tmp_path / "tall", 2, size=(48, 64))
    with pytest.raises(InputError, match="not the same shape"):
        compare_videos(a, tall)
    small = write_frames(tmp_path / "small", 2, size=(32, 24))
    with pytest.raises(InputError, match=r"a is 64×48 and .*small 32×24: larger"):
        compare_videos(small, a, reference=small)


def test_missing_and_empty_are_named(tmp_path: Path) -> None:
    a = write_frames(tmp_path / "a", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="gone"):
        compare_videos(a, tmp_path / "gone.mp4")
    with pytest.raises(InputError, match="empty"):
        compare_videos(tmp_path / "empty", a)


def test_a_requested_metric_must_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = write_frames(tmp_path / "a", 3), write_frames(tmp_path / "b", 3, offset=3)
    with pytest.raises(RequestError, match="no metric"):
        compare_videos(a, b, metrics=("nice",))

    from tubelet.evaluation import two_videos

    make = two_videos.make_meter

    def without_flow(name: str, **keywords: str):
        if name == "warp-error":
            raise ResourceError("warp-error needs a package")
        return make(name, **keywords)

    monkeypatch.setattr(two_videos, "make_meter", without_flow)
    comparison = compare_videos(a, b, reference=a)
    assert "without warp-error: warp-error needs a package" in comparison.notes
    assert "warp-error" not in {score.metric for score in comparison.scores}
    with pytest.raises(ResourceError):
        compare_videos(a, b, metrics=("warp-error",))


def test_progress_counts_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    a = write_frames(tmp_path / "a", 3)
    compare_videos(a, a, metrics=Y, on_progress=seen.append)
    assert [(now.done, now.total) for now in seen] == [(1, 3), (2, 3), (3, 3), (3, 3)]


def test_a_token_stops_it_after_the_frame_it_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    token = CancelToken()

    def stop(now: Progress) -> None:
        seen.append(now)
        token.cancel()

    a = write_frames(tmp_path / "a", 3)
    with pytest.raises(Cancelled):
        compare_videos(a, a, metrics=Y, on_progress=stop, cancel=token)
    assert [now.done for now in seen] == [1]
