"""The remaining time of an evaluation, from each model's own speed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tubelet.evaluation.pairs import InspectedClip
from tubelet.evaluation.results import ClipScore, Identity
from tubelet.evaluation.ticker import EvaluationTicker, Task
from tubelet.progress import Progress


def task(model: str, clip: str, frames: int, score: ClipScore | None = None) -> Task:
    inspected = InspectedClip(
        name=clip,
        gt=Path(clip),
        lq=None,
        frames=frames,
        width=8,
        height=8,
        scored=None,
        fingerprint="",
    )
    return Task(model, inspected, score_of(model, clip, frames).identity, None, score)


def score_of(model: str, clip: str, frames: int) -> ClipScore:
    identity = Identity(
        model=model,
        weights_sha256=None,
        clip=clip,
        source="",
        protocol={},
        max_frames=None,
        device="cpu",
        precision="fp32",
        tubelet="0",
    )
    return ClipScore(
        identity=identity,
        per_frame={},
        mean={},
        frames=frames,
        first_frame=0,
        width=8,
        height=8,
        seconds_per_frame=1,
    )


def run(
    ticker: EvaluationTicker,
    job: Task,
    frame_s: float,
    wait: Callable[[float], None],
    *,
    frames: int | None = None,
) -> None:
    ticker.begin(job)
    count = job.clip.frames if frames is None else frames
    for _ in range(count):
        wait(frame_s)
        ticker.tick()
    ticker.finish(job, score_of(job.model, job.clip.name, count))


def test_the_remaining_time_uses_each_models_own_speed(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    jobs = [task(model, clip, 10) for model in ("quick", "slow") for clip in "ab"]
    ticker = EvaluationTicker(seen.append, jobs)
    run(ticker, jobs[0], 1, wait)
    assert seen[-1].eta_s == pytest.approx(30)  # the slow one has not run yet: at the average speed
    run(ticker, jobs[1], 1, wait)
    run(ticker, jobs[2], 5, wait)
    assert seen[-1].eta_s == pytest.approx(50)
    assert seen[-1].elapsed_s == pytest.approx(70)
    run(ticker, jobs[3], 5, wait)
    assert (seen[-1].done, seen[-1].total, seen[-1].eta_s) == (40, 40, 0)


def test_stored_scores_are_not_counted(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    jobs = [task("m", "a", 10, score_of("m", "a", 10)), task("m", "b", 4)]
    ticker = EvaluationTicker(seen.append, jobs)
    run(ticker, jobs[1], 1, wait)
    assert (seen[-1].done, seen[-1].total) == (4, 4)


def test_a_header_that_was_wrong_is_put_right(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    jobs = [task("m", "a", 10), task("m", "b", 4)]
    ticker = EvaluationTicker(seen.append, jobs)
    run(ticker, jobs[0], 1, wait, frames=12)
    assert seen[-1].total == 16
    assert seen[-1].eta_s == pytest.approx(4)
    run(ticker, replace(jobs[1]), 1, wait)
    assert (seen[-1].done, seen[-1].total) == (16, 16)


def test_reports_name_model_and_clip(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    job = task("m", "a", 100)
    run(EvaluationTicker(seen.append, [job]), job, 0.01, wait)
    assert {now.label for now in seen} == {"m, a"}
    assert (
        seen[-1].as_dict().items()
        >= {"model": "m", "clip": "a", "frame": 100, "total": 100}.items()
    )
