"""How a run is shown while it goes: a bar on a terminal, a line now and then in a log, JSON for programs.

The bar and the lines go to the standard error. JSON lines go to the standard output, or to the standard error
where the video itself goes to the standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from tubelet.errors import IncompleteError, TubeletError
from tubelet.progress import OnProgress, Progress

__all__ = ["ProgressStyle", "clock", "error_events", "json_line", "show_progress"]

ProgressStyle = Literal["auto", "bar", "json", "none"]

_JSON_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
_SHORT_RATES = {"frame": "fps"}


@contextmanager
def show_progress(style: ProgressStyle, *, label: str, json_to: TextIO) -> Generator[OnProgress]:
    """Show the progress of one run until the block ends.

    Args:
        style: "auto" is a bar where the standard error is a terminal, and a line every ten seconds elsewhere.
        label: what is being made, for a person.
        json_to: stream of the JSON lines.

    Yields:
        The function to call with each `Progress`.
    """
    if style == "json":
        yield _sparse(_JSON_EVERY_S, lambda progress: _write(json_to, progress.to_json()))
    elif style == "none":
        yield lambda progress: None
    elif style == "bar" or sys.stderr.isatty():
        with _bar(label) as update:
            yield update
    else:
        yield _sparse(_LINE_EVERY_S, _write_line, wait=True)


def json_line(stream: TextIO, event: str, **fields: Any) -> None:
    """Write one event as one line of JSON, at once."""
    _write(stream, json.dumps({"event": event, **fields}, ensure_ascii=False))


@contextmanager
def error_events(stream: TextIO) -> Generator[None]:
    """Write the last event where the block fails, and let the error go on."""
    try:
        yield
    except TubeletError as error:
        notes = {"notes": list(error.notes)} if isinstance(error, IncompleteError) else {}
        json_line(stream, "error", exit_code=error.exit_code, message=str(error), **notes)
        raise
    except KeyboardInterrupt as error:
        json_line(stream, "error", exit_code=getattr(error, "exit_code", 130), message="interrupted")
        raise


def clock(seconds: float) -> str:
    """Write a duration as 7.3 s, 2:05 or 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _sparse(every_s: float, show: OnProgress, *, wait: bool = False) -> OnProgress:
    """Call `show` at most once per interval and when all is done, the first time at once or after one interval."""
    due_s = time.monotonic() + (every_s if wait else 0.0)

    def update(progress: Progress) -> None:
        nonlocal due_s
        now_s = time.monotonic()
        if now_s >= due_s or (progress.done == progress.total and not wait):
            due_s = now_s + every_s
            show(progress)

    return update


def _write_line(progress: Progress) -> None:
    total = "" if progress.total is None else f" of {progress.total}"
    eta = "" if progress.eta_s is None else f", {clock(progress.eta_s)} left"
    unit = progress.unit
    _write(sys.stderr, f"{unit} {progress.done}{total}, {progress.rate:.1f} {unit}s a second{eta}")


@contextmanager
def _bar(label: str) -> Generator[OnProgress]:
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
    with Bar(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task(label, total=None, count="", speed="", times="")

        def update(progress: Progress) -> None:
            total = progress.total
            unit = progress.unit
            eta = "" if progress.eta_s is None else f", {clock(progress.eta_s)} left"
            bar.update(
                task,
                completed=progress.done,
                total=total,
                count=f"{progress.done}/{total}" if total else f"{progress.done} {unit}s",
                speed=f"{progress.rate:.1f} {_SHORT_RATES.get(unit, f'{unit}s/s')}",
                times=f"{clock(progress.elapsed_s)}{eta}",
            )

        yield update
