"""Progress of a study: steps of all its runs, and a remaining time that knows what each costs."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from tubelet.progress import CancelToken, OnProgress, Progress, Ticker

__all__ = ["StudyProgress"]


class StudyProgress:
    """Counts the steps of all runs of a study.

    A step of one arm takes many times as long as that of another, so the remaining time is not
    estimated from steps, but from the measured cost of those that are left.

    Args:
        on_progress: Called with each report; None reports nothing.
        study: Name of the study.
        cancel: Token that stops the study between two runs.
    """

    def __init__(
        self,
        on_progress: OnProgress | None,
        study: str,
        cancel: CancelToken | None,
    ) -> None:
        self._study = study
        self._cancel = cancel
        self._ticker = Ticker(
            on_progress,
            unit="step",
            cancel=cancel,
            estimate_s=self._remaining_s,
        )
        self._planned_s = 0.0
        self._finished_s = 0.0
        # Cost of the steps that this process trained, and the time that they took.
        self._trained_s = 0.0
        self._elapsed_s = 0.0

    def announce(self, arm: str) -> None:
        """Report that the cost of an arm is measured."""
        self._ticker.label = f"{self._study}: measuring {arm}"
        self._ticker.report()

    def wait(self, seconds: float) -> None:
        """Report that other processes are at all runs that are left, and wait.

        Raises:
            Cancelled: The study was cancelled.
        """
        self._ticker.label = f"{self._study}: waiting for another process"
        self._ticker.report()
        if self._cancel is not None:
            self._cancel.raise_if_cancelled()
        time.sleep(seconds)

    def plan(self, steps: int, cost_s: float) -> None:
        """Add steps that will be trained, and their cost."""
        self._ticker.total = (self._ticker.total or 0) + steps
        self._planned_s += cost_s

    @contextmanager
    def run(self, label: str, steps: int, step_s: float) -> Generator[OnProgress]:
        """Count the steps of a run, whose step costs `step_s`; yields its `on_progress`."""
        self._ticker.label = f"{self._study}: {label}"
        self._ticker.report()
        done_before = self._ticker.done
        finished_s = self._finished_s
        trained_s = self._trained_s
        elapsed_s = self._elapsed_s
        start_s = time.monotonic()
        first_done: int | None = None

        def update(progress: Progress) -> None:
            nonlocal first_done
            if first_done is None:
                # An earlier process trained the others.
                first_done = max(0, progress.done - 1)
            self._finished_s = finished_s + progress.done * step_s
            self._trained_s = trained_s + (progress.done - first_done) * step_s
            self._elapsed_s = elapsed_s + time.monotonic() - start_s
            self._ticker.tick(done_before + progress.done - self._ticker.done)

        yield update
        self._ticker.done = done_before + steps
        self._finished_s = finished_s + steps * step_s
        self._ticker.report()

    def finish(self) -> None:
        """Report the end."""
        self._ticker.label = self._study
        self._ticker.finish()

    def _remaining_s(self) -> float | None:
        """Scale the cost of the steps that are left by how much slower or faster steps were."""
        if not self._trained_s:
            return None
        slowdown = self._elapsed_s / self._trained_s
        return slowdown * (self._planned_s - self._finished_s)
