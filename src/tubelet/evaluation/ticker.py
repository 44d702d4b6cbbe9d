"""How far an evaluation is, and how long it still takes."""

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
    """A model on a clip, with the score of an earlier run if there is one that still holds.

    `showcase` is the number of the frame that the report shows, or None.
    """

    model: str
    subject: InspectedClip
    identity: Identity
    showcase: int | None
    score: ClipScore | None


class EvaluationTicker:
    """Counts the frames of all models and clips; each report names the model and the clip in `details`.

    What is left is estimated at each model's own speed, or at the mean speed of all where a model has not run yet.

    Args:
        on_progress: called with each report; None reports nothing.
        tasks: all models and clips; what an earlier run has scored does not count.
        cancel: looked at after every frame.
    """

    def __init__(
        self,
        on_progress: OnProgress | None,
        tasks: Sequence[Task],
        *,
        cancel: CancelToken | None = None,
    ) -> None:
        self._left = {task.model: 0 for task in tasks}  # frames to do
        for task in tasks:
            if task.score is None:
                self._left[task.model] += task.subject.frames
        self._done = dict.fromkeys(self._left, 0)
        self._spent_s = dict.fromkeys(self._left, 0.0)
        self._total = sum(self._left.values())
        self._task: Task | None = None
        self._clip_frames = 0
        self._clip_began_s = 0.0
        self._began_s = time.monotonic()
        self._ticker = Ticker(
            on_progress, unit="frame", total=self._total, cancel=cancel, estimate_s=self._estimate_s
        )

    def begin(self, task: Task) -> None:
        """Start a clip."""
        self._task = task
        self._clip_frames = 0
        self._clip_began_s = time.monotonic()
        self._ticker.label = f"{task.model}, {task.subject.name}"
        self._ticker.details = {"model": task.model, "clip": task.subject.name}

    def tick(self) -> None:
        """Count a frame.

        Raises:
            Cancelled: the token was cancelled.
        """
        self._clip_frames += 1
        self._ticker.tick()

    def finish(self, task: Task, score: ClipScore) -> None:
        """End a clip; now its number of frames is known."""
        self._total += score.frames - task.subject.frames
        self._left[task.model] -= task.subject.frames
        self._done[task.model] += score.frames
        self._spent_s[task.model] += time.monotonic() - self._clip_began_s
        self._task = None
        self._clip_frames = 0
        self._ticker.total = self._total
        self._ticker.report()

    def _estimate_s(self) -> float | None:
        """Return the seconds to go; None before the first frame."""
        if not self._ticker.done:
            return None
        average_s = (time.monotonic() - self._began_s) / self._ticker.done
        return sum(self._model_s(model, average_s) for model in self._left)

    def _model_s(self, model: str, average_s: float) -> float:
        """Return the seconds that a model still takes."""
        left = self._left[model]
        done = self._done[model]
        spent_s = self._spent_s[model]
        if self._task is not None and model == self._task.model:
            done += self._clip_frames
            left = max(0, left - self._clip_frames)
            spent_s += time.monotonic() - self._clip_began_s
        frame_s = spent_s / done if done else average_s
        return left * frame_s
