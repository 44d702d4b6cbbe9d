"""Progress of a long run, and its cancellation: one event, counter and token for all commands.

worker: Ticker.tick() after every frame ──→ on_progress(Progress), at limited frequency
caller: CancelToken.cancel(), from any thread ──→ the next tick raises Cancelled
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tubelet.errors import Cancelled

__all__ = ["MIN_INTERVAL_S", "CancelToken", "OnProgress", "Progress", "Ticker", "Unit"]

Unit = Literal["frame", "byte", "step", "clip", "call", "run"]
"""Unit of the work that is counted."""

MIN_INTERVAL_S = 0.1
"""Minimum time between two reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: Number of finished units, including those of an earlier run that this one continues.
        total: Number of all units; None if it is not known. A header is only a hint.
        unit: Unit of the work.
        elapsed_s: Seconds since this run began.
        rate: Units per second in this run so far.
        eta_s: Remaining seconds; None if the total or the rate is not known.
        label: Description of the work for the user, such as a file name.
        time_s: Time of the last frame in its video, seconds; None if the work is not on a video.
        details: Further JSON values, such as the model and clip of an evaluation.
    """

    done: int
    total: int | None
    unit: Unit
    elapsed_s: float
    rate: float
    eta_s: float | None
    label: str = ""
    time_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def frames_done(self) -> int:
        """The same as `done`, under its name in reports of `upscale`."""
        return self.done

    @property
    def frames_total(self) -> int | None:
        """The same as `total`, under its name in reports of `upscale`."""
        return self.total

    @property
    def fps(self) -> float:
        """The same as `rate`, under its name in reports of `upscale`."""
        return self.rate

    def as_dict(self) -> dict[str, Any]:
        """Return the values of a JSON line.

        If frames are counted, `frame` and `fps` repeat `done` and `rate`.
        """
        eta_s = None
        if self.eta_s is not None:
            eta_s = round(self.eta_s, 2)
        values: dict[str, Any] = {
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": round(self.rate, 3),
            "eta_s": eta_s,
            "elapsed_s": round(self.elapsed_s, 3),
            "label": self.label,
        }
        if self.unit == "frame":
            values["frame"] = values["done"]
            values["fps"] = values["rate"]
        if self.time_s is not None:
            values["time_s"] = round(self.time_s, 6)
        return values | dict(self.details)

    def to_json(self) -> str:
        """Return the event as one line of JSON, without the newline."""
        return json.dumps({"event": "progress", **self.as_dict()}, ensure_ascii=False)


OnProgress = Callable[[Progress], None]
"""Called in the working thread; its exceptions go to the caller of the run. To stop a run, cancel
its token."""


class CancelToken:
    """Requests a run to stop, from any thread.

    The run ends with `Cancelled` after its current frame, step or clip, and leaves no unfinished
    output.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Request the end of the run; further calls have no effect."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether the end was requested."""
        return self._event.is_set()

    def raise_if_cancelled(self) -> None:
        """End the run here if that was requested.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._event.is_set():
            raise Cancelled("cancelled by the caller")


class Ticker:
    """Counts finished units, reports up to ten times a second, and stops a cancelled run.

    Args:
        on_progress: Called with each report; None reports nothing.
        unit: Unit of the work.
        total: Number of all units; None if it is not known.
        label: Description of the work for the user.
        done: Number of units that an earlier run finished; they do not count for the rate.
        cancel: Token that every `tick` checks.
        estimate_s: Returns the remaining seconds, if the mean rate is a poor estimate.

    Attributes:
        done, total, label, details: Values of the next report; they may be set at any time.
    """

    def __init__(
        self,
        on_progress: OnProgress | None = None,
        *,
        unit: Unit = "frame",
        total: int | None = None,
        label: str = "",
        done: int = 0,
        cancel: CancelToken | None = None,
        estimate_s: Callable[[], float | None] | None = None,
    ) -> None:
        self.done = done
        self.total = total
        self.label = label
        self.details: Mapping[str, Any] = {}
        self._on_progress = on_progress
        self._unit: Unit = unit
        self._ticks = 0
        self._cancel = cancel
        self._estimate_s = estimate_s
        self._time_s: float | None = None
        self._began_s = time.monotonic()
        # The first tick is reported.
        self._next_report_s = self._began_s

    def tick(self, count: int = 1, *, time_s: float | None = None) -> None:
        """Count finished units, report if the last report is old enough, and check the token.

        Args:
            count: Number of units that were finished since the last tick.
            time_s: Time of the last frame in its video, seconds.

        Raises:
            Cancelled: The token was cancelled.
        """
        self.done += count
        self._ticks += count
        self._time_s = time_s
        now_s = time.monotonic()
        if now_s >= self._next_report_s:
            self._next_report_s = now_s + MIN_INTERVAL_S
            self.report()
        # After the report, so that a callback can cancel the run.
        if self._cancel is not None:
            self._cancel.raise_if_cancelled()

    def finish(self) -> None:
        """Report the end, at which the total is known."""
        self.total = self.done
        self.report()

    def report(self) -> None:
        """Report now, regardless of the time of the last report."""
        if self._on_progress is None:
            return
        elapsed_s = time.monotonic() - self._began_s
        # Units of an earlier run took none of this time.
        rate = self._ticks / elapsed_s if elapsed_s > 0 else 0.0
        total = self._current_total()
        self._on_progress(
            Progress(
                done=self.done,
                total=total,
                unit=self._unit,
                elapsed_s=elapsed_s,
                rate=rate,
                eta_s=self._remaining_s(total, rate),
                label=self.label,
                time_s=self._time_s,
                details=self.details,
            )
        )

    def _current_total(self) -> int | None:
        """Return the total, which rises if more units are done than the header contained."""
        if self.total is None:
            return None
        return max(self.total, self.done)

    def _remaining_s(self, total: int | None, rate: float) -> float | None:
        """Estimate the remaining time, by the caller's estimate or by the mean rate."""
        if self._estimate_s is not None:
            return self._estimate_s()
        if total is None:
            return None
        if total == self.done:
            return 0.0
        if not rate:
            return None
        return (total - self.done) / rate
