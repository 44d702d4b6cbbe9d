"""Test the claims of LRTI-VSR at small scale: `tubelet ablate lrti`.

    videos ─ ten held out ─┬─ study ─ arms × seeds ─ one training each ─ PSNR of held-out frames
                           │              │                                     │
                           │        cost of a step                        paired differences
                           │              └──────── report.html ─ verdicts ─────┘
                           └─ further studies                 results.json

    out/<study>/plan.json    arms, claims, margins and seeds: written before the first run

Runs of the same seed start from the same weights, and arms with the same kind of samples see the
same ones in the same order. Everything that is finished is kept, so a study can be stopped at any
time and continued by the same command. The same command in a second process takes a share of the
runs.

Source: LRTI-VSR, Tables 1 to 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

from tubelet.data import PanSettings, prepare_clips
from tubelet.errors import CheckpointError, ConfigError, require
from tubelet.files import atomic_write, file_lock
from tubelet.plain_data import build, to_plain
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.frame_scores import FrameScores, mean_psnr
from tubelet.recipes.lrti import LRTITraining
from tubelet.studies.claims import MAX_SEEDS
from tubelet.studies.lrti_clips import ClipKind, ClipSettings, StudyClips, split_clips
from tubelet.studies.lrti_design import Arm, Study
from tubelet.studies.lrti_designs import STUDIES, build_studies
from tubelet.studies.lrti_page import render_page
from tubelet.studies.lrti_progress import StudyProgress
from tubelet.studies.lrti_results import (
    StudyResult,
    gain_curves,
    judge_claims,
    seeds_after_pilot,
    summarize,
)
from tubelet.studies.lrti_runs import StudyRuns
from tubelet.studies.lrti_sizes import NETWORKS

__all__ = ["FinishedRun", "LRTIAblation", "describe", "run"]

_SCALE = 4
_RESULTS_FILE = "results.json"
_POLL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LRTIAblation:
    """Test the claims of LRTI-VSR: train with and without the states of long clips."""

    data: tuple[Path, ...] = ()
    """Folders of videos, of images, or of folders of frames. Ten of the videos with at least 40
    frames are scored, those with the lowest SHA-256 of their name; the others are trained on."""
    out: Path = Path("runs/lrti-ablation")
    """Folder of the runs, report.html and results.json; finished runs in it are reused."""
    cache: Path = Path("cache")
    """Folder of the decoded clips; reused by later runs."""
    preset: str = "small"
    """small: networks of 24 channels, a day on two cores. smoke: a few steps of the smallest
    networks on 3 videos with at least 10 frames, to try a set-up in a minute."""
    studies: tuple[str, ...] = STUDIES
    """Studies to run: mechanism, truncation, block. Those that an earlier command put into `out`
    stay in the report."""
    networks: tuple[str, ...] = NETWORKS
    """Networks of the study truncation: basicvsr, basicvsr_pp, lrti."""
    seeds: int | None = None
    """Runs of each arm, with different initial weights and samples. Default: 4 for mechanism, 6 for
    block; for truncation as many as a pilot of 3 demands, at most 10."""
    steps: int | None = None
    """Training steps of each arm. Default: 4000 for BasicVSR and BasicVSR++, 2000 for LRTI-VSR."""
    device: str = "cpu"
    """Device to train on, for example cpu or cuda."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Floating-point format of the trainings: bf16 is twice as fast on processors that multiply it
    in hardware. Scores are computed in fp32."""

    def __post_init__(self) -> None:
        counts = [count for count in (self.seeds, self.steps) if count is not None]
        require(min(counts, default=1) >= 1, "seeds and steps must be at least 1")
        require(bool(self.studies and self.networks), "studies and networks must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A finished training.

    Attributes:
        study: Name of the study.
        arm: Name of the arm.
        seed: Seed.
        psnr_y: Mean Y-PSNR of all frames of the held-out videos, dB.
    """

    study: str
    arm: str
    seed: int
    psnr_y: float


OnRun = Callable[[FinishedRun], None]


def describe(ablation: LRTIAblation) -> list[str]:
    """Describe the studies in a few lines: arms, steps, seeds, claims.

    Raises:
        RequestError: There is no such preset, study or network.
    """
    lines: list[str] = []
    for study in _studies(ablation):
        seeds = f"{ablation.seeds or study.seeds} seeds"
        if study.is_pilot and ablation.seeds is None:
            seeds = f"{study.seeds} to {MAX_SEEDS} seeds"
        steps = ablation.steps or study.training.loop.steps
        lines.append(
            f"{study.name}: {len(study.arms)} arms of {steps} steps, {seeds}, "
            f"{len(study.claims)} claims and controls"
        )
    return lines


def run(
    ablation: LRTIAblation,
    *,
    on_run: OnRun | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> list[StudyResult]:
    """Train all arms, judge the claims, and write report.html and results.json.

    Args:
        ablation: Settings.
        on_run: Called with every finished run.
        on_progress: Called after training steps, up to ten times a second; the label names the
            current run.
        cancel: Stops after the current training step; the same call resumes.

    Returns:
        The results of these studies.

    Raises:
        RequestError: There is no such preset, study or network.
        ConfigError: No data is given.
        InputError: There are too few clips, or they are too short or too small.
        CheckpointError: The folder contains a study of another design.
        Cancelled: `cancel` was cancelled.
    """
    studies = _studies(ablation)
    videos = _videos(ablation, studies[0].clips, cancel)
    # Clips and settings of all studies come before the first run, so that faults are found now.
    made: dict[tuple[ClipKind, ClipSettings], StudyClips] = {}
    runners: list[_Runner] = []
    for study in studies:
        clips: dict[ClipKind, StudyClips] = {}
        for arm in study.arms:
            key = (arm.clips, study.clips)
            if key not in made:
                made[key] = videos.of_kind(*key)
            clips[arm.clips] = made[key]
        runners.append(_Runner(ablation, study, _Footage(videos, clips), cancel))

    results: list[StudyResult] = []
    for runner in runners:
        results.append(runner.run(on_run, on_progress))
        # After each study, so that a long ablation has a report early.
        _write_report(ablation.out, results)
    return results


def _studies(ablation: LRTIAblation) -> list[Study]:
    return build_studies(ablation.preset, ablation.studies, ablation.networks)


def _videos(
    ablation: LRTIAblation,
    settings: ClipSettings,
    cancel: CancelToken | None,
) -> StudyClips:
    """Decode the videos, and hold some of them out."""
    if not ablation.data:
        raise ConfigError("no data to train on; name folders of clips: --data FOLDER")
    clips = prepare_clips(
        ablation.data,
        ablation.cache,
        preset="bi-u8",
        scale=_SCALE,
        pan=PanSettings(frames=settings.frames, speed="whole"),
        cancel=cancel,
    )
    return split_clips(clips, settings)


@dataclass(frozen=True, slots=True)
class _Footage:
    """What the studies train on and score.

    Attributes:
        videos: The videos themselves.
        clips: Clips that were made from them, by kind.
    """

    videos: StudyClips
    clips: Mapping[ClipKind, StudyClips]

    @property
    def train_names(self) -> tuple[str, ...]:
        """Names of the training videos."""
        return tuple(video.name for video in self.videos.train)

    @property
    def held_out_names(self) -> tuple[str, ...]:
        """Names of the scored videos."""
        return tuple(video.name for video in self.videos.held_out)


class _Runner:
    """Runs one study: plan, costs, arms by seed, verdicts.

    Args:
        ablation: Settings.
        study: Design of the study.
        footage: Its clips.
        cancel: Stops after the current training step.
    """

    def __init__(
        self,
        ablation: LRTIAblation,
        study: Study,
        footage: _Footage,
        cancel: CancelToken | None,
    ) -> None:
        self._ablation = ablation
        self._study = study
        self._footage = footage
        self._cancel = cancel
        self._out = ablation.out / study.name
        self._runs = StudyRuns(
            study,
            footage.clips,
            self._out,
            base=self._complete,
            steps=ablation.steps,
        )
        self._scores: dict[str, list[tuple[FrameScores, ...]]] = {}

    def run(self, on_run: OnRun | None, on_progress: OnProgress | None) -> StudyResult:
        """Run or continue the study; see `run` for the arguments."""
        study = self._study
        progress = StudyProgress(on_progress, study.name, self._cancel)
        num_seeds = self._ablation.seeds or study.seeds
        planned = self._plan(num_seeds)
        self._runs.measure_costs(progress.announce)
        self._train(range(num_seeds), progress, on_run)
        is_pilot = study.is_pilot and self._ablation.seeds is None
        if is_pilot:
            num_needed = seeds_after_pilot(study, self._scores)
            self._train(range(num_seeds, num_needed), progress, on_run)
            planned = (*planned, num_needed)
        progress.finish()
        return StudyResult(
            name=study.name,
            title=study.title,
            regime=study.regime,
            network=_describe_network(study),
            seeds=planned,
            effect_db=study.effect_db,
            is_pilot=is_pilot,
            train_videos=self._footage.train_names,
            held_out=self._footage.held_out_names,
            arms=tuple(summarize(study, self._runs, self._scores)),
            claims=tuple(judge_claims(study, self._scores)),
            curves=tuple(gain_curves(study, self._scores)),
        )

    def _plan(self, num_seeds: int) -> tuple[int, ...]:
        """Write down the design and the number of seeds before the first run, or compare them.

        Returns:
            All numbers of seeds that were planned, in order.

        Raises:
            CheckpointError: The folder contains a study of another design.
        """
        path = self._out / "plan.json"
        design = to_plain(replace(self._study, training=self._complete(self._study.training)))
        # Where the results are and how they are computed does not belong to the design.
        for name in ("data", "out", "cache", "feature_mib"):
            del design["training"][name]
        plan: dict[str, Any] = {
            "design": design,
            "steps": self._ablation.steps or self._study.training.loop.steps,
            "train_videos": self._footage.train_names,
            "held_out": self._footage.held_out_names,
        }
        plan = json.loads(json.dumps(plan))
        seeds: list[int] = []
        self._out.mkdir(parents=True, exist_ok=True)
        with file_lock(self._out / ".plan.lock"):
            if path.is_file():
                written = json.loads(path.read_text(encoding="utf-8"))
                seeds = written.pop("seeds")
                _check_same_plan(path, written, plan)
            if not seeds or seeds[-1] != num_seeds:
                seeds.append(num_seeds)
            with atomic_write(path) as part:
                part.write_text(json.dumps({**plan, "seeds": seeds}, indent=1), encoding="utf-8")
        return tuple(seeds)

    def _train(self, seeds: range, progress: StudyProgress, on_run: OnRun | None) -> None:
        """Train all arms, seed by seed, so that an interrupted study has complete pairs."""
        runs = self._runs
        for arm in self._study.arms:
            cost_s = runs.steps(arm) * runs.costs[arm.name].step_s
            progress.plan(len(seeds) * runs.steps(arm), len(seeds) * cost_s)

        scores: dict[tuple[int, str], tuple[FrameScores, ...]] = {}
        pending = list(product(seeds, self._study.arms))
        while pending:
            # Runs that another process is at.
            busy: list[tuple[int, Arm]] = []
            for seed, arm in pending:
                found = self._train_arm(arm, seed, progress)
                if found is None:
                    busy.append((seed, arm))
                    continue
                scores[seed, arm.name] = found
                if on_run is not None:
                    on_run(_finished_run(self._study, arm, seed, found))
            if len(busy) == len(pending):
                # It will finish them, or leave them when it ends.
                progress.wait(_POLL_S)
            pending = busy

        for seed, arm in product(seeds, self._study.arms):
            self._scores.setdefault(arm.name, []).append(scores[seed, arm.name])

    def _train_arm(
        self,
        arm: Arm,
        seed: int,
        progress: StudyProgress,
    ) -> tuple[FrameScores, ...] | None:
        """Train an arm with a seed; see `StudyRuns`. None: another process is at this run."""
        runs = self._runs
        steps = runs.steps(arm)
        step_s = runs.costs[arm.name].step_s
        with runs.claim(arm, seed) as is_free:
            if not is_free:
                return None
            with progress.run(f"{arm.name}, seed {seed}", steps, step_s) as on_progress:
                return runs.run(arm, seed, on_progress=on_progress, cancel=self._cancel)

    def _complete(self, training: LRTITraining) -> LRTITraining:
        """Add what the design leaves open: data, cache, device and precision."""
        loop = replace(
            training.loop,
            device=self._ablation.device,
            precision=self._ablation.precision,
        )
        return replace(
            training,
            data=self._ablation.data,
            cache=self._ablation.cache,
            loop=loop,
        )


def _finished_run(
    study: Study,
    arm: Arm,
    seed: int,
    scores: Sequence[FrameScores],
) -> FinishedRun:
    return FinishedRun(
        study=study.name,
        arm=arm.name,
        seed=seed,
        psnr_y=mean_psnr(scores),
    )


def _check_same_plan(path: Path, written: dict[str, Any], plan: dict[str, Any]) -> None:
    """Check that the study in a folder has this plan.

    Raises:
        CheckpointError: It has another one.
    """
    for name, value in plan.items():
        if written.get(name) != value:
            detail = f"{written.get(name)}, not {value}" if name == "steps" else "has changed"
            raise CheckpointError(
                f"{path.parent} is a study of another plan: {name} {detail}; name another --out"
            )


def _describe_network(study: Study) -> str:
    training = study.training
    return (
        f"{training.model}, batch {training.batch}, lq {training.patch_px} px, "
        f"Adam, learning rate {training.loop.lr:g} to {training.loop.lr_final:g}, "
        f"EMA {training.loop.ema}, SpyNet {training.flow}"
    )


def _write_report(out: Path, results: list[StudyResult]) -> None:
    """Write both files; results of other studies that are in the folder are kept."""
    with file_lock(out / ".report.lock"):
        by_name: dict[str, StudyResult] = {}
        for result in (*_read_results(out / _RESULTS_FILE), *results):
            by_name[result.name] = result
        merged = list(by_name.values())
        with atomic_write(out / _RESULTS_FILE) as part:
            plain = {"studies": to_plain(merged)}
            part.write_text(json.dumps(plain, indent=1), encoding="utf-8")
        with atomic_write(out / "report.html") as part:
            part.write_text(render_page(merged), encoding="utf-8")


def _read_results(path: Path) -> list[StudyResult]:
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = cast("list[object]", content["studies"])
    return [build(StudyResult, row, str(path)) for row in rows]
