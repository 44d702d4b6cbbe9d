"""An evaluation: its scores, the reuse of an earlier run, and errors before anything runs."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.evaluation_clips import read_frames, write_frames, write_set
from tubelet.degrade import degrade
from tubelet.errors import (
    Cancelled,
    CheckpointError,
    ConfigError,
    InputError,
    RequestError,
    ResourceError,
    TubeletError,
)
from tubelet.evaluation import evaluate as evaluate_module
from tubelet.evaluation.evaluate import evaluate
from tubelet.evaluation.results import ClipScore, ModelScore, read_results
from tubelet.evaluation.settings import EvaluateSettings
from tubelet.metrics import psnr, ssim
from tubelet.metrics.protocols import find_protocol
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.ops.resize import resample
from tubelet.progress import CancelToken, Progress
from tubelet.restore.engine import Engine
from tubelet.types import Frame
from tubelet.zoo.checkpoint import save_checkpoint

CPU = EvaluateSettings(device="cpu")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_set(tmp_path / "clips")


def run(
    root: Path, out: Path, *models: str, settings: EvaluateSettings = CPU, **keywords: Any
) -> list[ModelScore]:
    return evaluate(
        models or ("bicubic-x4",), "folder-bi-x4", root, out, settings=settings, **keywords
    )


def expected(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """PSNR and SSIM of bicubic, per frame, without the tested code."""
    gt = read_frames(folder)
    sr = resample(degrade(gt, "bi"), (48, 64))
    return psnr(sr, gt), ssim(sr, gt)


def forbid_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Iterator[Frame]:
        raise AssertionError("the engine ran")

    monkeypatch.setattr(Engine, "restore", fail)


def test_scores_are_those_of_the_frames(clips: Path, tmp_path: Path) -> None:
    (score,) = run(clips, tmp_path / "out")
    assert [clip.identity.clip for clip in score.clips] == ["a", "b"]
    for clip in score.clips:
        values = expected(clips / clip.identity.clip)
        assert clip.per_frame["psnr-y"] == pytest.approx(values[0].tolist(), abs=2e-3)
        assert clip.mean["ssim-y"] == pytest.approx(values[1].mean().item(), abs=1e-4)
        assert clip.seconds_per_frame > 0


def test_the_mean_is_over_clips_not_over_frames(clips: Path, tmp_path: Path) -> None:
    (score,) = run(clips, tmp_path / "out")
    a, b = (expected(clips / name)[0].mean().item() for name in "ab")
    assert abs(a - b) > 0.02  # six frames and four: the mean over frames is another
    assert score.mean["psnr-y"] == pytest.approx((a + b) / 2, abs=2e-3)
    stored = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    (entry,) = stored["models"]
    assert entry["mean"]["psnr-y"] == pytest.approx((a + b) / 2, abs=2e-3)
    assert entry["clips"]["a"]["psnr-y"] == pytest.approx(a, abs=2e-3)


def test_a_score_file_identifies_its_model_clip_and_protocol(clips: Path, tmp_path: Path) -> None:
    run(
        clips,
        tmp_path / "out",
        "fast-x4-bi",
        settings=EvaluateSettings(device="cpu", precision="fp32"),
    )
    stored = json.loads((tmp_path / "out" / "scores" / "fast-x4-bi" / "a.json").read_text("utf-8"))
    assert len(stored["per_frame"]["psnr-y"]) == stored["frames"] == 6
    assert stored["identity"]["model"] == "fast-x4-bi"
    assert len(stored["identity"]["weights_sha256"]) == 64
    assert stored["identity"]["precision"] == "fp32"
    assert stored["identity"]["protocol"]["degradation"] == "bi"
    assert stored["machine"]["versions"].keys() >= {"tubelet", "torch", "av"}
    assert stored["machine"]["hardware"]["device"] == "cpu"


def test_results_are_read_back_as_they_were(clips: Path, tmp_path: Path) -> None:
    scores = run(clips, tmp_path / "out", "bicubic-x4", "lanczos")
    results = read_results(tmp_path / "out")
    assert [model.model for model in results.models] == ["bicubic-x4", "lanczos-x4"]
    for score, again in zip(scores, results.models, strict=True):
        assert again.mean == pytest.approx(score.mean, abs=1e-6)
        assert [clip.identity for clip in again.clips] == [clip.identity for clip in score.clips]
        assert again.clips[0].showcase == score.clips[0].showcase is not None


def test_ends_and_middle_are_left_out_of_the_score_only(clips: Path, tmp_path: Path) -> None:
    plain = find_protocol("folder-bi-x4")
    whole = expected(clips / "a")[0].tolist()
    dropped = evaluate(
        ["bicubic"], replace(plain, drop_ends=1), clips, tmp_path / "drop", settings=CPU
    )[0].clips[0]
    assert dropped.per_frame["psnr-y"] == pytest.approx(whole[1:-1], abs=2e-3)
    assert (dropped.first_frame, dropped.frames) == (1, 6)
    middle = evaluate(
        ["bicubic"], replace(plain, frames="middle"), clips, tmp_path / "mid", settings=CPU
    )[0].clips[0]
    assert middle.per_frame["psnr-y"] == pytest.approx([whole[3]], abs=2e-3)
    with pytest.raises(RequestError, match="only 4 frames"):
        evaluate(["bicubic"], replace(plain, drop_ends=2), clips, tmp_path / "none", settings=CPU)


def test_the_border_reaches_the_metric(clips: Path, tmp_path: Path) -> None:
    protocol = replace(find_protocol("folder-bi-x4"), border=8)
    (score,) = evaluate(["bicubic"], protocol, clips, tmp_path / "out", settings=CPU)
    gt = read_frames(clips / "a")
    inside = psnr(resample(degrade(gt, "bi"), (48, 64)), gt, border=8)
    assert score.clips[0].per_frame["psnr-y"] == pytest.approx(inside.tolist(), abs=2e-3)


def test_odd_sizes_are_cut_to_a_multiple_of_the_scale(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clips" / "odd", 3, size=(67, 49))
    (score,) = run(tmp_path / "clips", tmp_path / "out")
    gt = read_frames(folder)[..., :48, :64]
    assert (score.clips[0].width, score.clips[0].height) == (64, 48)
    values = psnr(resample(degrade(gt, "bi"), (48, 64)), gt)
    assert score.clips[0].per_frame["psnr-y"] == pytest.approx(values.tolist(), abs=2e-3)


def test_finished_clips_are_not_measured_again(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(clips, tmp_path / "out")
    forbid_running(monkeypatch)
    after = run(clips, tmp_path / "out")
    assert after[0].mean == pytest.approx(before[0].mean, abs=1e-6)
    fewer = run(
        clips, tmp_path / "out", settings=EvaluateSettings(device="cpu", metrics=("ssim-y",))
    )
    assert list(fewer[0].mean) == ["ssim-y"]
    for changed in (
        EvaluateSettings(device="cpu", fresh=True),
        EvaluateSettings(device="cpu", max_frames=2),
        EvaluateSettings(device="cpu", metrics=("psnr-rgb",)),
    ):
        with pytest.raises(AssertionError, match="the engine ran"):
            run(clips, tmp_path / "out", settings=changed)


def test_other_weights_or_frames_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out, path = write_set(tmp_path / "clips"), tmp_path / "out", tmp_path / "mine.safetensors"
    save_checkpoint(path, FastVSR(FastConfig(channels=8, num_blocks=1)), {})
    before = run(root, out, str(path))
    model = FastVSR(FastConfig(channels=8, num_blocks=1))
    torch.nn.init.constant_(next(model.parameters()), 0.01)
    save_checkpoint(path, model, {})
    after = run(root, out, str(path))
    assert after[0].weights_sha256 != before[0].weights_sha256
    assert after[0].clips[0].identity.weights_sha256 == after[0].weights_sha256
    write_frames(tmp_path / "other", 6, offset=9)
    shutil.copy(tmp_path / "other" / "000.png", root / "a" / "000.png")
    forbid_running(monkeypatch)
    with pytest.raises(AssertionError, match="the engine ran"):
        run(root, out, str(path))


def test_an_interrupted_run_continues_after_its_last_clip(clips: Path, tmp_path: Path) -> None:
    ran: list[str] = []

    token = CancelToken()
    with pytest.raises(Cancelled):
        run(clips, tmp_path / "out", on_score=lambda score: token.cancel(), cancel=token)
    left = sorted(
        path.name
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and path.suffix != ".png"
    )
    assert left == ["a.json"]
    run(clips, tmp_path / "out", on_progress=lambda now: ran.append(now.details["clip"]))
    assert set(ran) == {"b"}


def test_progress_counts_every_frame(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tubelet.progress.MIN_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    scores: list[ClipScore] = []
    run(
        clips,
        tmp_path / "out",
        "bicubic",
        "lanczos",
        on_progress=seen.append,
        on_score=scores.append,
    )
    assert sorted({now.done for now in seen}) == list(range(1, 21))
    assert {now.total for now in seen} == {20}
    assert seen[-1].eta_s == 0
    assert all(now.eta_s is not None and now.eta_s >= 0 for now in seen)
    assert [(score.identity.model, score.identity.clip) for score in scores] == [
        (model, clip) for model in ("bicubic-x4", "lanczos-x4") for clip in "ab"
    ]


def test_the_network_runs_through_the_engine_with_its_state(clips: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    model = FastVSR(FastConfig(channels=8, num_blocks=1)).eval()
    save_checkpoint(path, model, {})
    settings = EvaluateSettings(device="cpu", precision="fp32")
    (score,) = run(clips, tmp_path / "out", str(path), settings=settings)
    gt = read_frames(clips / "b")
    with torch.no_grad():
        sr = model(degrade(gt, "bi")[None])[0]
    assert score.model == "mine"
    assert score.parameters == sum(p.numel() for p in model.parameters())
    assert score.clips[1].per_frame["psnr-y"] == pytest.approx(psnr(sr, gt).tolist(), abs=2e-3)


@pytest.mark.parametrize(
    ("models", "settings", "error", "line"),
    [
        ((), {}, RequestError, "no model is named"),
        (("bicubick",), {}, RequestError, "did you mean"),
        (("fast-x2-bi",), {}, RequestError, "×2.*×4.*bicubic-x4"),
        (("gone.safetensors",), {}, CheckpointError, "no such checkpoint: gone.safetensors"),
        (("bicubic",), {"metrics": ("psnr",)}, RequestError, "no metric 'psnr'"),
        (("bicubic",), {"device": "cuda:99"}, ResourceError, "cuda:99"),
        (("bicubic",), {"precision": "fp16"}, ConfigError, "fp16"),
    ],
)
def test_invalid_requests_fail_with_one_line_before_anything_runs(
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: tuple[str, ...],
    settings: dict[str, Any],
    error: type[TubeletError],
    line: str,
) -> None:
    forbid_running(monkeypatch)
    evaluate_settings = EvaluateSettings(**{"device": "cpu", **settings})
    with pytest.raises(error, match=line) as caught:
        evaluate(models, "folder-bi-x4", clips, tmp_path / "out", settings=evaluate_settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_metric_without_its_weights_is_one_line(clips: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(
        device="cpu", metrics=("lpips",), metric_weights=tmp_path / "nowhere"
    )
    with pytest.raises(ResourceError) as caught:
        run(clips, tmp_path / "out", settings=settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_clips_and_empty_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out")
    write_frames(tmp_path / "vid4" / "calendar", 3)
    with pytest.raises(InputError, match="city"):
        evaluate(["bicubic"], "vid4-bi-x4", tmp_path / "vid4", tmp_path / "out", settings=CPU)
    assert not (tmp_path / "out").exists()


def test_a_damaged_frame_ends_the_run_without_a_score(clips: Path, tmp_path: Path) -> None:
    (clips / "b" / "002.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"b: .*1 of 4 images could not be decoded"):
        run(clips, tmp_path / "out")
    assert (tmp_path / "out" / "scores" / "bicubic-x4" / "a.json").exists()
    assert not list((tmp_path / "out").rglob("b.*"))
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_folder_of_another_protocol_is_not_written_over(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "out")
    with pytest.raises(RequestError, match="has the results of folder-bi-x4"):
        evaluate(["bicubic"], "folder-bd-x4", clips, tmp_path / "out", settings=CPU)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="is a file"):
        run(clips, tmp_path / "file")


def test_memory_does_not_grow_with_the_clip(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    take = evaluate_module.FramePairs.pop

    def counted(self: Any) -> Any:
        waiting.append(len(self._waiting))
        return take(self)

    monkeypatch.setattr(evaluate_module.FramePairs, "pop", counted)
    run(clips, tmp_path / "out", "fast-x4-bi")
    assert len(waiting) == 10
    assert max(waiting) <= 3  # the frame, and the look-ahead of an online model


@pytest.mark.slow
def test_bicubic_on_vid4_is_what_the_papers_print(shared: Path, tmp_path: Path) -> None:
    (score,) = evaluate(
        ["bicubic"], "vid4-bi-x4", shared / "data" / "dev_eval", tmp_path / "out", settings=CPU
    )
    assert score.mean["psnr-y"] == pytest.approx(23.78, abs=0.05)
    assert score.mean["ssim-y"] == pytest.approx(0.6347, abs=0.002)
