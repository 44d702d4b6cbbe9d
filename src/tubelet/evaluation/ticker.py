"""How far an evaluation is, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tubelet.evaluation.pairs import Subject
from tubelet.evaluation.results import ClipScore, Identity

__all__ = ["EvaluateProgress", "Task", "Ticker"]

_REPORT_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateProgress:
    """How far an evaluation is.

    Attributes:
        model: that runs now.
        clip: that it is at.
        frames_done: of all models and clips together, what was stored before left out.
        frames_total: to do in all, by the headers of the clips.
        elapsed_s: seconds since it began.
        fps: frames a second so far.
        eta_s: seconds to go, at each model's own speed where that is known; None before the first frame.
        score: of the clip that was just finished, or None.
    """

    model: str
    clip: str
    frames_done: int
    frames_total: int
    elapsed_s: float
    fps: float
    eta_s: float | None
    score: ClipScore | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A model on a clip, with the score of an earlier run if there is one that still holds.

    `showcase` is the number of the frame that the report shows, or None.
    """

    model: str
    subject: Subject
    identity: Identity
    showcase: int | None
    score: ClipScore | None


class Ticker:
    """Counts frames and reports progress, not too often."""

    def __init__(self, report: Callable[[EvaluateProgress], None] | None, tasks: Sequence[Task]) -> None:
        self._report = report
        self._left = {task.model: 0 for task in tasks}  # frames to do
        for task in tasks:
            if task.score is None:
                self._left[task.model] += task.subject.frames
        self._total = sum(self._left.values())
        self._done = dict.fromkeys(self._left, 0)
        self._spent_s = dict.fromkeys(self._left, 0.0)
        self._began_s = self._clip_began_s = time.monotonic()
        self._next_s = 0.0
        self._task: Task | None = None
        self._clip_frames = 0

    def begin(self, task: Task) -> None:
        """Start a clip."""
        self._task = task
        self._clip_frames = 0
        self._clip_began_s = time.monotonic()

    def tick(self) -> None:
        """Count a frame."""
        assert self._task is not None
        self._clip_frames += 1
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _REPORT_EVERY_S
            self._send(self._task, None)

    def finish(self, task: Task, score: ClipScore) -> None:
        """End a clip; now its number of frames is known."""
        self._total += score.frames - task.subject.frames
        self._left[task.model] -= task.subject.frames
        self._done[task.model] += score.frames
        self._spent_s[task.model] += time.monotonic() - self._clip_began_s
        self._clip_frames = 0
        self._send(task, score)

    def _send(self, task: Task, score: ClipScore | None) -> None:
        if self._report is None:
            return
        now_s = time.monotonic()
        done = sum(self._done.values()) + self._clip_frames
        elapsed_s = now_s - self._began_s
        self._report(
            EvaluateProgress(
                model=task.model,
                clip=task.subject.name,
                frames_done=done,
                frames_total=max(self._total, done),
                elapsed_s=elapsed_s,
                fps=done / elapsed_s if elapsed_s else 0.0,
                eta_s=self._eta_s(task.model, now_s if score is None else None, elapsed_s / done if done else None),
                score=score,
            )
        )

    def _eta_s(self, model: str, now_s: float | None, average_s: float | None) -> float | None:
        """Sum what is left of each model at its own speed, or at the average where that is not known yet."""
        if average_s is None:
            return None
        eta_s = 0.0
        for name, left in self._left.items():
            done, spent_s = self._done[name], self._spent_s[name]
            if name == model and now_s is not None:
                done, left = done + self._clip_frames, max(0, left - self._clip_frames)
                spent_s += now_s - self._clip_began_s
            eta_s += left * (spent_s / done if done else average_s)
        return eta_s
