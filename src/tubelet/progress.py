"""How far a long run is, and how to stop it: the same event, counter and token for every verb.

worker: Ticker.tick() after every frame ──→ on_progress(Progress), not too often
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

__all__ = ["CancelToken", "OnProgress", "Progress", "Ticker", "Unit"]

Unit = Literal["frame", "byte", "step", "clip", "call", "run"]
"""What is counted."""

_MIN_INTERVAL_S = 0.1  # between two reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        done: units that are finished, those of an earlier run that this one continues included.
        total: units in all, as far as known; None where nothing tells. A header is only a hint.
        unit: what is counted.
        elapsed_s: seconds since this run began.
        rate: units a second in this run so far.
        eta_s: seconds to go, or None where the total or the rate is unknown.
        label: what is being worked on, for a user.
        time_s: time of the last frame in its video, seconds; None where the work is not on a video.
        details: further values that JSON can hold, such as the model and clip of an evaluation.
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
        """`done`, as reports of `upscale` call it."""
        return self.done

    @property
    def frames_total(self) -> int | None:
        """`total`, as reports of `upscale` call it."""
        return self.total

    @property
    def fps(self) -> float:
        """`rate`, as reports of `upscale` call it."""
        return self.rate

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON lines hold; `frame` and `fps` repeat `done` and `rate` where frames are counted."""
        values: dict[str, Any] = {
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": round(self.rate, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 2),
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
        """Return the event as one line of JSON, without the line's end."""
        return json.dumps({"event": "progress", **self.as_dict()}, ensure_ascii=False)


OnProgress = Callable[[Progress], None]
"""Called in the thread that works. To stop a run, cancel its token; what a callback raises goes to the caller."""


class CancelToken:
    """Asks a run to stop, from any thread.

    The run ends with `Cancelled` after the frame, step or clip that it is at, and leaves no unfinished output.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the end; more than once does no harm."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def raise_if_cancelled(self) -> None:
        """End here if that was asked for.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._event.is_set():
            raise Cancelled("cancelled by the caller")


class Ticker:
    """Counts what is done, reports it at most ten times a second, and stops where its token asks for it.

    Args:
        on_progress: called with each report; None reports nothing.
        unit: what is counted.
        total: units to do, or None where that is unknown.
        label: what is being worked on, for a user.
        done: units that an earlier run has done; they do not count for the rate.
        cancel: looked at by every `tick`.
        estimate_s: returns the seconds to go, where more than the mean rate is known.

    Attributes:
        done, total, label, details: of the next report; they may be set at any time.
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
        self._due_s = self._began_s  # the first tick is reported

    def tick(self, count: int = 1, *, time_s: float | None = None) -> None:
        """Count units, report if it is time to, and stop if that was asked for.

        Args:
            count: units that are finished now.
            time_s: time of the last frame in its video, seconds.

        Raises:
            Cancelled: the token was cancelled.
        """
        self.done += count
        self._ticks += count
        self._time_s = time_s
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + _MIN_INTERVAL_S
            self.report()
        if self._cancel is not None:
            self._cancel.raise_if_cancelled()

    def finish(self) -> None:
        """Report the end; now the total is known."""
        self.total = self.done
        self.report()

    def report(self) -> None:
        """Report now, whenever the last report was."""
        if self._on_progress is None:
            return
        elapsed_s = time.monotonic() - self._began_s
        rate = self._ticks / elapsed_s if elapsed_s > 0 else 0.0
        total = self._total_so_far()
        self._on_progress(
            Progress(
                done=self.done,
                total=total,
                unit=self._unit,
                elapsed_s=elapsed_s,
                rate=rate,
                eta_s=self._left_s(total, rate),
                label=self.label,
                time_s=self._time_s,
                details=self.details,
            )
        )

    def _total_so_far(self) -> int | None:
        """Return the total, raised where more is done than a header told."""
        if self.total is None:
            return None
        return max(self.total, self.done)

    def _left_s(self, total: int | None, rate: float) -> float | None:
        if self._estimate_s is not None:
            return self._estimate_s()
        if total is None:
            return None
        if total == self.done:
            return 0.0
        return (total - self.done) / rate if rate else None
