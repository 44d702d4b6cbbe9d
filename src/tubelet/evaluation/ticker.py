"""Progress of an evaluation, with an estimate of the remaining time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tubelet.evaluation.pairs import InspectedClip
from tubelet.evaluation.results import ClipScore, Identity
from tubelet.progress import CancelToken, OnProgress, Ticker

__all__ = ["EvaluationTicker", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One model on one clip.

    Attributes:
        model: Name of the model.
        clip: The clip.
        identity: Everything that determines the score.
        showcase: Index of the frame that the report shows; None if it does not show the clip.
        score: Score of an earlier run that is still valid, or None.
    """

    model: str
    clip: InspectedClip
    identity: Identity
    showcase: int | None
    score: ClipScore | None


class EvaluationTicker:
    """Counts the frames of all models and clips, and reports the model and clip in `details`.

    The remaining time is estimated from each model's own speed, or from the average speed of all
    models for a model that has not run yet.

    Args:
        on_progress: Called with each report; None reports nothing.
        tasks: All models and clips; those with a score of an earlier run are not counted.
        cancel: Checked after every frame.
    """

    def __init__(
        self,
        on_progress: OnProgress | None,
        tasks: Sequence[Task],
        *,
        cancel: CancelToken | None = None,
    ) -> None:
        # Per model: frames to do, frames done, and seconds spent, all in finished clips.
        self._remaining: dict[str, int] = {}
        for task in tasks:
            frames = task.clip.frames if task.score is None else 0
            self._remaining[task.model] = self._remaining.get(task.model, 0) + frames
        self._done = dict.fromkeys(self._remaining, 0)
        self._spent_s = dict.fromkeys(self._remaining, 0.0)
        self._total = sum(self._remaining.values())

        # The clip in progress.
        self._task: Task | None = None
        self._clip_frames = 0
        self._clip_started_s = 0.0

        self._started_s = time.monotonic()
        self._ticker = Ticker(
            on_progress,
            unit="frame",
            total=self._total,
            cancel=cancel,
            estimate_s=self._estimate_s,
        )

    def begin(self, task: Task) -> None:
        """Start a clip."""
        self._task = task
        self._clip_frames = 0
        self._clip_started_s = time.monotonic()
        self._ticker.label = f"{task.model}, {task.clip.name}"
        self._ticker.details = {"model": task.model, "clip": task.clip.name}

    def tick(self) -> None:
        """Count a frame.

        Raises:
            Cancelled: The token was cancelled.
        """
        self._clip_frames += 1
        self._ticker.tick()

    def finish(self, task: Task, score: ClipScore) -> None:
        """Finish a clip, whose exact number of frames is now known."""
        self._total += score.frames - task.clip.frames
        self._remaining[task.model] -= task.clip.frames
        self._done[task.model] += score.frames
        self._spent_s[task.model] += time.monotonic() - self._clip_started_s
        self._task = None
        self._clip_frames = 0
        self._ticker.total = self._total
        self._ticker.report()

    def _estimate_s(self) -> float | None:
        """Estimate the remaining seconds; None before the first frame."""
        if not self._ticker.done:
            return None
        average_s = (time.monotonic() - self._started_s) / self._ticker.done
        remaining_s = 0.0
        for model in self._remaining:
            remaining_s += self._model_estimate_s(model, average_s)
        return remaining_s

    def _model_estimate_s(self, model: str, average_s: float) -> float:
        """Estimate the remaining seconds of a model.

        Args:
            model: Name of the model.
            average_s: Time of a frame over all models, for a model that has not run yet.
        """
        remaining = self._remaining[model]
        done = self._done[model]
        spent_s = self._spent_s[model]
        # Add the clip in progress.
        if self._task is not None and model == self._task.model:
            done += self._clip_frames
            remaining = max(0, remaining - self._clip_frames)
            spent_s += time.monotonic() - self._clip_started_s
        frame_s = spent_s / done if done else average_s
        return remaining * frame_s
