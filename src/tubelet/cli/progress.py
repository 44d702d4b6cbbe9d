"""Progress of a run: a bar on a terminal, plain lines in a log, or JSON lines for programs.

The bar and the plain lines go to standard error. JSON lines go to standard output, or to standard
error if the video itself goes to standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from tubelet.errors import IncompleteError, TubeletError
from tubelet.progress import OnProgress, Progress
from tubelet.progress_display import at_intervals, show_bar, show_lines

__all__ = ["ProgressStyle", "error_events", "json_line", "show_progress", "write_json"]

ProgressStyle = Literal["auto", "bar", "json", "none"]

_JSON_INTERVAL_S = 0.25


@contextmanager
def show_progress(
    style: ProgressStyle,
    *,
    label: str,
    json_to: TextIO,
    json_interval_s: float = _JSON_INTERVAL_S,
) -> Generator[OnProgress]:
    """Show the progress of one run until the block ends.

    Args:
        style: "auto" is a bar if standard error is a terminal, otherwise a line every ten seconds.
        label: Name of the output, shown next to the bar.
        json_to: Stream of the JSON lines.
        json_interval_s: Minimum time between two JSON lines, seconds.

    Yields:
        The function to call with each `Progress`.
    """
    if style == "json":
        yield _json_lines(json_to, json_interval_s)
    elif style == "none":
        yield lambda progress: None
    elif style == "bar" or sys.stderr.isatty():
        with show_bar(label) as update:
            yield update
    else:
        yield show_lines()


def json_line(stream: TextIO, event: str, **fields: Any) -> None:
    """Write one event as one line of JSON, and flush it."""
    _write_line(stream, json.dumps({"event": event, **fields}, ensure_ascii=False))


def write_json(value: object, stream: TextIO) -> None:
    """Write a value as indented JSON, which a user can also read."""
    json.dump(value, stream, indent=2, ensure_ascii=False)
    stream.write("\n")


@contextmanager
def error_events(stream: TextIO) -> Generator[None]:
    """Write an `error` event if the block fails, and raise the error again."""
    try:
        yield
    except TubeletError as error:
        fields: dict[str, Any] = {"exit_code": error.exit_code, "message": str(error)}
        if isinstance(error, IncompleteError):
            fields["notes"] = list(error.notes)
        json_line(stream, "error", **fields)
        raise
    except KeyboardInterrupt as error:
        exit_code = getattr(error, "exit_code", 130)
        json_line(stream, "error", exit_code=exit_code, message="interrupted")
        raise


def _write_line(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _json_lines(stream: TextIO, interval_s: float) -> OnProgress:
    """Return a function that writes events at intervals, and always the event of the last unit."""

    def write(progress: Progress) -> None:
        _write_line(stream, progress.to_json())

    write_at_intervals = at_intervals(interval_s, write)

    def update(progress: Progress) -> None:
        if progress.done == progress.total:
            write(progress)
        else:
            write_at_intervals(progress)

    return update
