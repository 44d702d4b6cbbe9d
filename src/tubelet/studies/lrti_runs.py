"""Train and score single arms, and measure what a training step costs.

    out/<study>/costs.json                   time and memory of a step of each arm, measured once
    out/<study>/runs/<arm>-<seed>/           run folder of `tubelet train lrti`
        model.safetensors, frame-scores.json

An arm that was stopped resumes from its last checkpoint, with the same result. Several processes
can share a study: each takes the runs that no other one is at.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from tubelet.data import CachedClip
from tubelet.files import atomic_write, file_lock
from tubelet.plain_data import build, to_plain
from tubelet.progress import CancelToken, OnProgress
from tubelet.recipes.frame_scores import FrameScores, run_arm
from tubelet.recipes.lrti import LRTITraining, describe, main
from tubelet.restore.memory import peak_tensor_bytes
from tubelet.studies.lrti_clips import ClipKind, StudyClips
from tubelet.studies.lrti_design import Arm, Study

__all__ = ["Cost", "StudyRuns", "slug"]

_COSTS_FILE = "costs.json"
_COST_CLIPS = 3
"""Long clips that a measurement of time trains on; the first one is not timed."""
_MEMORY_STEPS = 2
"""Steps of a measurement of memory: the optimizer has its states after the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of a training step of an arm."""

    step_s: float
    """Time, seconds: of the processor on a CPU, otherwise of the clock."""
    peak_bytes: int
    """Maximum of all tensors that exist at the same time, with network and optimizer."""


class StudyRuns:
    """The runs of a study.

    Args:
        study: Design of the study.
        clips: Clips by their kind.
        out: Folder of the study.
        base: Settings of all arms that the design leaves open: data, cache and device.
        steps: Steps of an arm; None: those of the design.

    Attributes:
        costs: Cost of a step by the name of the arm; empty before `measure_costs`.
    """

    def __init__(
        self,
        study: Study,
        clips: Mapping[ClipKind, StudyClips],
        out: Path,
        *,
        base: Callable[[LRTITraining], LRTITraining],
        steps: int | None,
    ) -> None:
        self.costs: dict[str, Cost] = {}
        self._study = study
        self._clips = clips
        self._out = out
        self._base = base
        self._steps = steps or study.training.loop.steps
        for arm in study.arms:
            # A description needs network, samples and clips that fit together.
            describe(base(study.configure(arm)))

    def measure_costs(self, on_arm: Callable[[str], None] | None = None) -> None:
        """Measure the cost of a step of every arm, or read what an earlier run measured.

        Args:
            on_arm: Called with the name of each arm before it is measured.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        with file_lock(self._out / ".costs.lock"):
            path = self._out / _COSTS_FILE
            if path.is_file():
                rows = json.loads(path.read_text(encoding="utf-8"))
                self.costs = {name: build(Cost, row, str(path)) for name, row in rows.items()}
                return
            self._measure_all(on_arm)
            rows = {name: to_plain(cost) for name, cost in self.costs.items()}
            with atomic_write(path) as part:
                part.write_text(json.dumps(rows, indent=1), encoding="utf-8")

    def _measure_all(self, on_arm: Callable[[str], None] | None) -> None:
        """Measure the cost of a step of every arm."""
        known: dict[str, Cost] = {}
        for arm in self._study.arms:
            # Neither other clips nor more steps change the cost of a step.
            key = repr((arm.strategy, arm.length, sorted(arm.network.items()), arm.is_framewise))
            if key not in known:
                if on_arm is not None:
                    on_arm(arm.name)
                known[key] = self._measure(arm)
            self.costs[arm.name] = known[key]

    def steps(self, arm: Arm) -> int:
        """Return the number of steps of an arm: that of the study, or what fits its time."""
        if not arm.time_of:
            return self._steps
        ratio = self.costs[arm.time_of].step_s / self.costs[arm.name].step_s
        return max(1, round(self._steps * ratio))

    @contextmanager
    def claim(self, arm: Arm, seed: int) -> Generator[bool]:
        """Keep other processes from a run until the block ends, unless one is at it.

        Args:
            arm: Arm of the run.
            seed: Seed of the run.

        Yields:
            Whether no other process is at this run.
        """
        folder = self.config(arm, seed).out
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_name(f".{folder.name}.lock"), waits=False) as is_free:
            yield is_free

    def run(
        self,
        arm: Arm,
        seed: int,
        *,
        on_progress: OnProgress | None = None,
        cancel: CancelToken | None = None,
    ) -> tuple[FrameScores, ...]:
        """Train an arm with a seed, and score it; a finished run is only read.

        Raises:
            TubeletError: See `tubelet.recipes.lrti.main`.
        """
        config = self.config(arm, seed)
        clips = self._clips[arm.clips]
        held_out = clips.held_out
        if arm.is_framewise:
            held_out = _single_frames(held_out, self._study.clips.frames)
        finished = run_arm(
            config,
            clips.train,
            held_out,
            num_frames=self._study.clips.frames,
            on_progress=on_progress,
            cancel=cancel,
        )
        # The training state is only for resuming, and larger than the network.
        (config.out / "state.pt").unlink(missing_ok=True)
        return _join_frames(finished.scores) if arm.is_framewise else finished.scores

    def config(self, arm: Arm, seed: int) -> LRTITraining:
        """Build the settings of a run."""
        config = self._base(self._study.configure(arm))
        loop = replace(config.loop, seed=seed, steps=self.steps(arm))
        return replace(config, out=self._out / "runs" / f"{slug(arm.name)}-{seed}", loop=loop)

    def _measure(self, arm: Arm) -> Cost:
        """Measure a step of an arm, averaged over whole long clips."""
        config = self._base(self._study.configure(arm))
        samples = config.samples
        clips = self._clips[arm.clips].train
        times: list[float] = []
        clock = time.process_time if _is_cpu(config) else time.perf_counter

        def note_time(record: Mapping[str, Any]) -> None:
            if "loss" in record:
                times.append(clock())

        with tempfile.TemporaryDirectory() as folder:
            timed = replace(config.loop, steps=_COST_CLIPS * samples, log_every=samples)
            main(
                replace(config, out=Path(folder) / "time", loop=timed),
                clips=clips,
                on_log=note_time,
            )
            short = replace(config.loop, steps=_MEMORY_STEPS)
            weighed = replace(config, out=Path(folder) / "memory", loop=short)
            peak_bytes = _peak_bytes(weighed, clips)
        num_steps = (len(times) - 1) * samples
        return Cost(step_s=(times[-1] - times[0]) / num_steps, peak_bytes=peak_bytes)


def _is_cpu(config: LRTITraining) -> bool:
    return torch.device(config.loop.device).type == "cpu"


def _peak_bytes(config: LRTITraining, clips: Sequence[CachedClip]) -> int:
    """Train a few steps, and return the peak memory of the tensors on the device."""

    def train() -> None:
        main(config, clips=clips)

    if torch.device(config.loop.device).type != "cuda":
        return peak_tensor_bytes(train)
    torch.cuda.reset_peak_memory_stats(config.loop.device)
    train()
    return torch.cuda.max_memory_allocated(config.loop.device)


def _single_frames(clips: Sequence[CachedClip], num_frames: int) -> list[CachedClip]:
    """Make a video of every frame of every clip."""
    frames: list[CachedClip] = []
    for clip in clips:
        for t in range(num_frames):
            lq = clip.lqs[0][t : t + 1]
            frames.append(CachedClip(clip.name, clip.gt[t : t + 1], (lq,)))
    return frames


def _join_frames(frames: Sequence[FrameScores]) -> tuple[FrameScores, ...]:
    """Put the scores of single frames together again, by the names of their videos."""
    videos: list[FrameScores] = []
    for name, group in groupby(frames, key=lambda scores: scores.name):
        scores = list(group)
        joined = FrameScores(
            name=name,
            psnr_y=tuple(frame.psnr_y[0] for frame in scores),
            psnr_rgb=tuple(frame.psnr_rgb[0] for frame in scores),
        )
        videos.append(joined)
    return tuple(videos)


def slug(name: str) -> str:
    """Turn a name into one for a folder: "TB 8 of 40" into "tb-8-of-40"."""
    plain = name.lower().replace("²", "2")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
