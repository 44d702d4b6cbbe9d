"""How progress is shown to a user on the standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from tubelet.progress import OnProgress, Progress, Unit

__all__ = ["at_intervals", "clock", "show_bar", "show_lines"]

_LINE_EVERY_S = 10.0
_SHORT_RATES = {"frame": "fps"}


def clock(seconds: float) -> str:
    """Write a duration as 7.3 s, 2:05 or 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def show_lines() -> OnProgress:
    """Return a function that writes a line every ten seconds, the first after ten seconds."""
    return at_intervals(_LINE_EVERY_S, _write_line, first_s=_LINE_EVERY_S)


@contextmanager
def show_bar(label: str) -> Generator[OnProgress]:
    """Show a bar until the block ends.

    Args:
        label: what is being made, for a user; the labels of the events replace it.

    Yields:
        The function to call with each `Progress`.
    """
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
    console = Console(stderr=True)
    keeps_stdout = (
        not sys.stdout.isatty()
    )  # else what is printed to a file would go to the terminal
    with Bar(
        *columns, console=console, transient=True, expand=True, redirect_stdout=not keeps_stdout
    ) as bar:
        task = bar.add_task(label, total=None, count="", speed="", times="")

        def update(progress: Progress) -> None:
            bar.update(
                task,
                description=progress.label or label,
                completed=progress.done,
                total=progress.total,
                count=_count(progress),
                speed=_speed(progress),
                times=clock(progress.elapsed_s) + _left(progress),
            )

        yield update


def at_intervals(every_s: float, show: OnProgress, *, first_s: float = 0.0) -> OnProgress:
    """Return a function that calls `show` at most once per interval, for the first time after `first_s` seconds."""
    due_s = time.monotonic() + first_s

    def update(progress: Progress) -> None:
        nonlocal due_s
        now_s = time.monotonic()
        if now_s >= due_s:
            due_s = now_s + every_s
            show(progress)

    return update


def _write_line(progress: Progress) -> None:
    unit = progress.unit
    total = "" if progress.total is None else f" of {_number(progress.total, unit)}"
    done = _number(progress.done, unit)
    if unit == "byte":
        line = f"{progress.label}: {done} MB{total}, {_number(progress.rate, unit)} MB a second"
    elif 0 < progress.rate < 1:
        line = f"{unit} {done}{total}, {clock(1 / progress.rate)} a {unit}"
    else:
        line = f"{unit} {done}{total}, {progress.rate:.1f} {unit}s a second"
    sys.stderr.write(f"{line}{_left(progress)}\n")
    sys.stderr.flush()


def _left(progress: Progress) -> str:
    return "" if progress.eta_s is None else f", {clock(progress.eta_s)} left"


def _count(progress: Progress) -> str:
    unit = progress.unit
    name = "MB" if unit == "byte" else f"{unit}s"
    done = _number(progress.done, unit)
    if not progress.total:
        return f"{done} {name}"
    count = f"{done}/{_number(progress.total, unit)}"
    return count if unit == "frame" else f"{count} {name}"


def _speed(progress: Progress) -> str:
    unit = progress.unit
    if unit == "byte":
        return f"{_number(progress.rate, unit)} MB/s"
    if 0 < progress.rate < 1:
        return f"{clock(1 / progress.rate)}/{unit}"
    return f"{progress.rate:.1f} {_SHORT_RATES.get(unit, f'{unit}s/s')}"


def _number(count: float, unit: Unit) -> str:
    """Write a count, bytes in megabytes."""
    return f"{count / 1e6:.1f}" if unit == "byte" else str(count)
