"""Results of the studies of LRTI-VSR: scores of arms, costs, and verdicts on claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from tubelet.metrics.fidelity import Channel
from tubelet.recipes.frame_scores import FrameScores, psnr_by_distance
from tubelet.studies.claims import (
    MAX_SEEDS,
    Interval,
    bootstrap_interval,
    judge_absence,
    judge_excess,
    num_seeds_needed,
    paired_interval,
)
from tubelet.studies.lrti_clips import ClipKind
from tubelet.studies.lrti_design import Claim, Role, Study
from tubelet.studies.lrti_endpoints import Endpoint, endpoint_db
from tubelet.studies.lrti_runs import StudyRuns

__all__ = [
    "ArmResult",
    "ClaimResult",
    "GainCurve",
    "Score",
    "StudyResult",
    "gain_curves",
    "judge_claims",
    "seeds_after_pilot",
    "summarize",
]

Scores = Mapping[str, Sequence[Sequence[FrameScores]]]
"""Scores of the videos by the name of the arm, then by seed."""

NOT_JUDGED = "not judged"
NOT_DECIDABLE = "not decidable here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Mean PSNR over the seeds, dB; `spread_db` is the standard deviation, None with one seed."""

    mean_db: float
    spread_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """Scores and cost of an arm.

    Attributes:
        name: Name of the arm.
        clips: Clips that it is scored on; only arms with the same ones can be compared.
        steps: Training steps.
        psnr_y: Y-PSNR of all frames.
        psnr_rgb: RGB-PSNR of all frames.
        inner_y: Y-PSNR of frames 5 to T-4.
        ends_y: Y-PSNR of the first and last two frames.
        step_s: Time of a step, seconds.
        peak_bytes: Peak memory of training.
        published_memory_gb: Memory in the paper.
        published_days: Training time in the paper.
        published_db: RGB-PSNR in the paper.
    """

    name: str
    clips: ClipKind
    steps: int
    psnr_y: Score
    psnr_rgb: Score
    inner_y: Score
    ends_y: Score
    step_s: float
    peak_bytes: int
    published_memory_gb: float | None = None
    published_days: float | None = None
    published_db: float | None = None

    @property
    def train_s(self) -> float:
        """Time of a whole training, seconds."""
        return self.steps * self.step_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult:
    """A verdict, and what it is based on.

    Attributes:
        id: Short name of the claim.
        text: What is claimed.
        role: Claim or control.
        endpoint: What is compared.
        outcome: Verdict.
        mean_db: Mean paired difference, d.
        half_width_db: Half the width of its 95 % interval, h; None with one seed.
        rgb_db: The mean paired difference in RGB-PSNR.
        bootstrap_db: 95 % interval over other seeds and videos.
        differences_db: Paired difference of every seed.
        margin_db: Margin, or limit of an absence.
        floor_db: Smallest effect of interest; None if the claim has a margin.
        published_db: Difference in the paper; None if it has none.
        seeds_needed: Seeds that show the study's smallest effect; None: more than 21, or unknown.
    """

    id: str
    text: str
    role: Role
    endpoint: Endpoint
    outcome: str
    mean_db: float
    half_width_db: float | None
    rgb_db: float
    bootstrap_db: tuple[float, float]
    differences_db: tuple[float, ...]
    margin_db: float
    floor_db: float | None
    published_db: float | None
    seeds_needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GainCurve:
    """Mean gain of one arm over another by the distance from the nearer end of a video, dB."""

    name: str
    gains_db: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Results of a study.

    Attributes:
        name: Name of the study.
        title: Heading.
        regime: Clips and samples.
        network: Network and its settings, in words.
        seeds: Numbers of seeds that were planned, in order; the last one was run.
        effect_db: Smallest effect that the seeds should show.
        is_pilot: Whether the number of seeds followed from a pilot.
        train_videos: Names of the training videos.
        held_out: Names of the scored videos.
        arms: Results of the arms.
        claims: Verdicts.
        curves: Gains by the distance from the ends.
    """

    name: str
    title: str
    regime: str
    network: str
    seeds: tuple[int, ...]
    effect_db: float
    is_pilot: bool
    train_videos: tuple[str, ...]
    held_out: tuple[str, ...]
    arms: tuple[ArmResult, ...]
    claims: tuple[ClaimResult, ...]
    curves: tuple[GainCurve, ...]


def seeds_after_pilot(study: Study, scores: Scores) -> int:
    """Return how many seeds a study needs by the spread of its pilot.

    Claims that need more than `MAX_SEEDS` are not decidable, and do not count.
    """
    counts: list[int] = [study.seeds]
    for needed in _seeds_needed(study, scores).values():
        if needed is not None and needed <= MAX_SEEDS:
            counts.append(needed)
    return max(counts)


def _seeds_needed(study: Study, scores: Scores) -> dict[str, int | None]:
    """Return the number of seeds of each claim: from the pooled spread, or its own if far larger.

    Without two seeds, there is none.
    """
    spreads: dict[str, float] = {}
    for claim in study.claims:
        spreads[claim.id] = paired_interval(_differences(claim, scores)).spread_db
    pooled_db = math.sqrt(fmean(np.square(list(spreads.values()))))
    needed: dict[str, int | None] = {}
    for claim_id, spread_db in spreads.items():
        effective_db = spread_db if spread_db > 2 * pooled_db else pooled_db
        needed[claim_id] = num_seeds_needed(effective_db, study.effect_db)
    return needed


def judge_claims(study: Study, scores: Scores) -> list[ClaimResult]:
    """Judge all claims of a study; its controls come first."""
    needed = _seeds_needed(study, scores)
    results = [_judge(claim, scores, needed[claim.id]) for claim in study.claims]
    if _has_failed(results, "positive control"):
        return list(map(_without_verdict, results))
    if _has_failed(results, "negative control"):
        return list(map(_without_gain, results))
    return results


def _has_failed(results: Sequence[ClaimResult], role: Role) -> bool:
    """Return whether a control of this kind does not hold."""
    return any(result.role == role and result.outcome == "does not hold" for result in results)


def _without_verdict(result: ClaimResult) -> ClaimResult:
    return _replaced(result, NOT_JUDGED)


def _without_gain(result: ClaimResult) -> ClaimResult:
    """Take back that a claim holds, because there is a gain even without a reason for one."""
    return _replaced(result, "does not hold") if result.outcome.startswith("holds") else result


def _replaced(result: ClaimResult, outcome: str) -> ClaimResult:
    """Replace the verdict of a claim; controls keep theirs."""
    return replace(result, outcome=outcome) if result.role == "claim" else result


def _judge(claim: Claim, scores: Scores, seeds_needed: int | None) -> ClaimResult:
    interval = paired_interval(_differences(claim, scores))
    rgb = paired_interval(_differences(claim, scores, "rgb"))
    return ClaimResult(
        id=claim.id,
        text=claim.text,
        role=claim.role,
        endpoint=claim.endpoint,
        outcome=_outcome(claim, interval, seeds_needed),
        mean_db=interval.mean_db,
        half_width_db=interval.half_width_db if interval.seeds > 1 else None,
        rgb_db=rgb.mean_db,
        bootstrap_db=bootstrap_interval(_video_differences(claim, scores)),
        differences_db=tuple(_differences(claim, scores)),
        margin_db=claim.margin_db,
        floor_db=claim.floor_db,
        published_db=claim.published_db,
        seeds_needed=seeds_needed,
    )


def _outcome(claim: Claim, interval: Interval, seeds_needed: int | None) -> str:
    if claim.kind == "absence":
        outcome = judge_absence(interval, limit_db=claim.margin_db)
    else:
        outcome = judge_excess(interval, margin_db=claim.margin_db, floor_db=claim.floor_db)
    needs_more = seeds_needed is None or seeds_needed > MAX_SEEDS
    if outcome == "inconclusive" and needs_more and interval.seeds > 1:
        return NOT_DECIDABLE
    return outcome


def _differences(claim: Claim, scores: Scores, channel: Channel = "y") -> list[float]:
    """Return the paired difference of each seed, the mean over the videos."""
    return list(map(fmean, _video_differences(claim, scores, channel)))


def _video_differences(
    claim: Claim,
    scores: Scores,
    channel: Channel = "y",
) -> list[list[float]]:
    """Return the paired differences of each seed on every video, dB."""
    rows: list[list[float]] = []
    for better, worse in zip(scores[claim.better], scores[claim.worse], strict=True):
        row: list[float] = []
        for video, other in zip(better, worse, strict=True):
            value_db = endpoint_db(video, claim.endpoint, channel)
            row.append(value_db - endpoint_db(other, claim.endpoint, channel))
        rows.append(row)
    return rows


def summarize(study: Study, runs: StudyRuns, scores: Scores) -> list[ArmResult]:
    """Summarize the arms of a study: mean scores over the seeds, and cost."""
    results: list[ArmResult] = []
    for arm in study.arms:
        cost = runs.costs[arm.name]
        published = arm.published
        result = ArmResult(
            name=arm.name,
            clips=arm.clips,
            steps=runs.steps(arm),
            psnr_y=_score(scores[arm.name], "all"),
            psnr_rgb=_score(scores[arm.name], "all", "rgb"),
            inner_y=_score(scores[arm.name], "inner"),
            ends_y=_score(scores[arm.name], "ends"),
            step_s=cost.step_s,
            peak_bytes=cost.peak_bytes,
            published_memory_gb=published.memory_gb if published else None,
            published_days=published.days if published else None,
            published_db=published.psnr_db if published else None,
        )
        results.append(result)
    return results


def _score(
    seeds: Sequence[Sequence[FrameScores]],
    endpoint: Endpoint,
    channel: Channel = "y",
) -> Score:
    means: list[float] = []
    for videos in seeds:
        means.append(fmean([endpoint_db(video, endpoint, channel) for video in videos]))
    spread_db = statistics.stdev(means) if len(means) > 1 else None
    return Score(mean_db=fmean(means), spread_db=spread_db)


def gain_curves(study: Study, scores: Scores) -> list[GainCurve]:
    """Return the mean gain of each claim's arm by the distance from the ends; pairs once."""
    curves: dict[str, GainCurve] = {}
    for claim in study.claims:
        name = f"{claim.better} - {claim.worse}"
        if name not in curves:
            better = _mean_by_distance(scores[claim.better])
            worse = _mean_by_distance(scores[claim.worse])
            gains_db = np.subtract(better, worse)
            curves[name] = GainCurve(name=name, gains_db=tuple(gains_db.tolist()))
    return list(curves.values())


def _mean_by_distance(seeds: Sequence[Sequence[FrameScores]]) -> list[float]:
    by_seed = list(map(psnr_by_distance, seeds))
    return np.mean(by_seed, 0).tolist()
