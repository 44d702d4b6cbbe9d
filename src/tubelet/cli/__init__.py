"""The command `tubelet`: finds the verb, runs it, and turns errors into one line and an exit code.

Nothing heavy is imported here: `tubelet --help` answers before torch would be loaded. A verb's module is
imported when the verb is typed, and has `main(args) -> int`.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tubelet.errors import RequestError, TubeletError, suggest

__all__ = ["VERBS", "main"]

VERBS = {
    "upscale": "make a video larger and sharper; audio, subtitles and timing stay",
    "demo": "see a result in a minute, on a clip that is made on the spot",
    "models": "list the models",
    "doctor": "say what this machine can do, and what is missing",
    "evaluate": "score models on a benchmark, beside the published figures",
    "compare": "measure two videos, and show them with a slider",
    "train": "train a model",
    "ablate": "train the variants of a method several times, and judge what its paper claims",
    "degrade": "make the low-quality version of a video, by a benchmark's rule or a realistic one",
    "data": "list, check and prepare the standard sets",
    "bench": "measure what models cost: parameters, FLOPs, memory, time",
}
"""Verb → what it does; `tubelet.cli.<verb>` holds its `main`."""

_EXAMPLES = """\
  tubelet upscale old.mp4 new.mp4                        the default model, its own scale
  tubelet upscale old.mp4 new.mkv --height 1080          to an exact height
  tubelet upscale old.mp4 new.mp4 --preview 4            four frames, before and after, in one PNG
  tubelet upscale old.mp4 new.mp4 --compare              and a page with a before/after slider
  ffmpeg -i old.avi -f yuv4mpegpipe - | tubelet upscale - - | ffplay -i -
  tubelet demo"""
_EXIT_PIPE = 128 + getattr(signal, "SIGPIPE", 13)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as cleanly as Ctrl-C does."""

    exit_code = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the command's name; by default those of the process.

    Returns:
        0, or the exit code that `tubelet.errors` and docs/command-line.md give.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # as stderr: not every terminal has every letter
    try:
        with _termination_as_interrupt(), _warnings_as_notes():
            code = _dispatch(args)
            sys.stdout.flush()  # so that a reader who left is noticed here, not at exit
            return code
    except TubeletError as error:
        return _fail(str(error), error.exit_code)
    except _Terminated:
        return _fail(f"terminated; {_what_is_left(args)}", _Terminated.exit_code)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_what_is_left(args)}", 130)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # else the interpreter's last flush fails again
        return _EXIT_PIPE
    except MemoryError:
        return _fail("memory ran out; try --tile 128, or a smaller model", 4)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS):
            raise
        return _fail(
            f"{error.strerror}: {error.filename or 'writing the output'}; free some, run again", 4
        )


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        sys.stdout.write(f"tubelet {version('tubelet')}\n")
        return 0
    verb = args[0]
    if verb not in VERBS:
        raise RequestError(f"no verb {verb!r}; {suggest(verb, VERBS)}")
    run: Callable[[list[str]], int] = importlib.import_module(f"tubelet.cli.{verb}").main
    return run(args[1:])


def _help() -> str:
    verbs = "\n".join(f"  {verb:9}{summary}" for verb, summary in VERBS.items())
    return (
        "usage: tubelet VERB [OPTIONS]\n\nVideo super-resolution: makes videos larger and sharper.\n\n"
        f"verbs:\n{verbs}\n\n`tubelet VERB --help` lists the options of a verb; `tubelet --version`.\n\n"
        f"examples:\n{_EXAMPLES}\n"
    )


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"tubelet: error: {' '.join(message.split())}\n")
    return code


def _what_is_left(args: Sequence[str]) -> str:
    if args[:1] in (["train"], ["ablate"]):
        return "give the same command again to go on"
    return "no unfinished output is left"


@contextmanager
def _warnings_as_notes() -> Generator[None]:
    """Print notes about names that were replaced as one line, without a place in the code."""
    show = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, FutureWarning) and "old name is accepted" in str(message):
            sys.stderr.write(f"tubelet: note: {message}\n")
        else:
            show(message, category, *where)

    warnings.showwarning = show_note
    try:
        yield
    finally:
        warnings.showwarning = show


@contextmanager
def _termination_as_interrupt() -> Generator[None]:
    """Let SIGTERM raise, so that unfinished files are removed; only the main thread may set handlers."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
