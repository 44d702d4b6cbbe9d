"""Show progress to a user on the standard error: a bar on a terminal, or lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from tubelet.progress import OnProgress, Progress, Unit

__all__ = ["LINE_INTERVAL_S", "at_intervals", "clock", "show_bar", "show_lines"]

LINE_INTERVAL_S = 10.0
"""Time between two lines where there is no bar."""

_SHORT_RATES = {"frame": "fps"}


def clock(seconds: float) -> str:
    """Format a duration as 7.3 s, 2:05 or 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    total_minutes, whole_seconds = divmod(round(seconds), 60)
    if total_minutes < 60:
        return f"{total_minutes}:{whole_seconds:02d}"
    hours, minutes = divmod(total_minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_seconds:02d}"


def show_lines() -> OnProgress:
    """Return a function that writes a line every ten seconds, the first one after ten seconds."""
    return at_intervals(LINE_INTERVAL_S, _write_line, first_s=LINE_INTERVAL_S)


@contextmanager
def show_bar(label: str) -> Generator[OnProgress]:
    """Show a progress bar until the block ends.

    Args:
        label: Description of the work for the user; labels of the events replace it.

    Yields:
        Function to call with each `Progress`.
    """
    # Imported here because rich is slow to import, and only terminals need it.
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}", style="progress.download"),
        TextColumn("{task.fields[speed]}", style="progress.data.speed"),
        TextColumn("{task.fields[times]}", style="progress.remaining"),
    )
    # rich redirects prints to the terminal, which must not happen if they go to a file.
    prints_to_terminal = sys.stdout.isatty()
    bar = Bar(
        *columns,
        console=Console(stderr=True),
        transient=True,
        expand=True,
        redirect_stdout=prints_to_terminal,
    )
    with bar:
        task = bar.add_task(
            label,
            total=None,
            count="",
            speed="",
            times="",
        )

        def update(progress: Progress) -> None:
            bar.update(
                task,
                description=progress.label or label,
                completed=progress.done,
                total=progress.total,
                count=_count(progress),
                speed=_speed(progress),
                times=clock(progress.elapsed_s) + _remaining(progress),
            )

        yield update


def at_intervals(
    every_s: float,
    show: OnProgress,
    *,
    first_s: float = 0.0,
) -> OnProgress:
    """Return a function that calls `show` once per interval at the maximum.

    Args:
        every_s: Interval, seconds.
        show: Function to call.
        first_s: Seconds from now before the first call.
    """
    next_s = time.monotonic() + first_s

    def update(progress: Progress) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if now_s >= next_s:
            next_s = now_s + every_s
            show(progress)

    return update


def _write_line(progress: Progress) -> None:
    unit = progress.unit
    done = _number(progress.done, unit)
    total = ""
    if progress.total is not None:
        total = f" of {_number(progress.total, unit)}"
    if unit == "byte":
        line = f"{progress.label}: {done} MB{total}, {_number(progress.rate, unit)} MB a second"
    elif 0 < progress.rate < 1:
        # Slow work: seconds per unit read better than a rate below 1.
        line = f"{unit} {done}{total}, {clock(1 / progress.rate)} a {unit}"
    else:
        line = f"{unit} {done}{total}, {progress.rate:.1f} {unit}s a second"
    if unit == "step" and progress.label:
        # A study trains many networks in turn. Before the first step, there is only the label.
        line = f"{progress.label}: {line}" if progress.done else progress.label
    sys.stderr.write(f"{line}{_remaining(progress)}\n")
    sys.stderr.flush()


def _remaining(progress: Progress) -> str:
    if progress.eta_s is None:
        return ""
    return f", {clock(progress.eta_s)} left"


def _count(progress: Progress) -> str:
    """Format the finished units and the total, for example 12.5/80.0 MB."""
    unit = progress.unit
    name = "MB" if unit == "byte" else f"{unit}s"
    done = _number(progress.done, unit)
    if not progress.total:
        return f"{done} {name}"
    count = f"{done}/{_number(progress.total, unit)}"
    # The rate in fps already names the frames.
    return count if unit == "frame" else f"{count} {name}"


def _speed(progress: Progress) -> str:
    """Format the rate, for example 3.1 MB/s, 24.0 fps or 2.5 s/frame."""
    unit = progress.unit
    if unit == "byte":
        return f"{_number(progress.rate, unit)} MB/s"
    if 0 < progress.rate < 1:
        return f"{clock(1 / progress.rate)}/{unit}"
    name = _SHORT_RATES.get(unit, f"{unit}s/s")
    return f"{progress.rate:.1f} {name}"


def _number(count: float, unit: Unit) -> str:
    """Format a count; bytes are shown in megabytes."""
    if unit == "byte":
        return f"{count / 1e6:.1f}"
    return str(count)
