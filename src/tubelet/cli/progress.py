"""How a run is shown while it goes: a bar on a terminal, a line now and then in a log, JSON for programs.

The bar and the lines go to the standard error. JSON lines go to the standard output, or to the standard error
where the video itself goes to the standard output.
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

_JSON_EVERY_S = 0.25


@contextmanager
def show_progress(style: ProgressStyle, *, label: str, json_to: TextIO) -> Generator[OnProgress]:
    """Show the progress of one run until the block ends.

    Args:
        style: "auto" is a bar where the standard error is a terminal, and a line every ten seconds elsewhere.
        label: what is being made, for a user.
        json_to: stream of the JSON lines.

    Yields:
        The function to call with each `Progress`.
    """
    if style == "json":
        yield _json_lines(json_to)
    elif style == "none":
        yield lambda progress: None
    elif style == "bar" or sys.stderr.isatty():
        with show_bar(label) as update:
            yield update
    else:
        yield show_lines()


def json_line(stream: TextIO, event: str, **fields: Any) -> None:
    """Write one event as one line of JSON, at once."""
    _write(stream, json.dumps({"event": event, **fields}, ensure_ascii=False))


def write_json(value: object, stream: TextIO) -> None:
    """Write a value as JSON of several lines, for a user to read too."""
    json.dump(value, stream, indent=2, ensure_ascii=False)
    stream.write("\n")


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
        json_line(
            stream, "error", exit_code=getattr(error, "exit_code", 130), message="interrupted"
        )
        raise


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _json_lines(stream: TextIO) -> OnProgress:
    """Return a function that writes events now and then, and the one that says that all is done."""

    def write(progress: Progress) -> None:
        _write(stream, progress.to_json())

    sparse = at_intervals(_JSON_EVERY_S, write)

    def update(progress: Progress) -> None:
        show = write if progress.done == progress.total else sparse
        show(progress)

    return update
