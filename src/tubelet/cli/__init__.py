"""The command `tubelet`: find the verb, run it, and turn errors into one line and an exit code.

Nothing heavy is imported here, so that `tubelet --help` answers before torch would be loaded. The
module of a verb is imported when the verb is typed; it has a function `main(args) -> int`.
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

from tubelet.errors import RequestError, ResourceError, TubeletError, suggest

__all__ = ["VERBS", "main"]

VERBS = {
    "upscale": "upscale a video; audio, subtitles and timing are kept",
    "demo": "show a result within a minute, on a generated clip",
    "models": "list the models, identify checkpoints, download weights",
    "doctor": "check this machine: devices, memory, codecs, weights, speed",
    "evaluate": "score models on a benchmark, next to the published scores",
    "compare": "compare two videos: metrics, and a page with a slider",
    "train": "train a model",
    "ablate": "train the variants of a method, and test the claims of its paper",
    "degrade": "make a low-quality version of a video, as in benchmarks or realistic",
    "data": "list, check and prepare the standard datasets",
    "bench": "measure the parameters, FLOPs, memory and time of models",
}
"""Verb and summary; the module `tubelet.cli.<verb>` has the `main` of the verb."""

_EXAMPLES = """\
  tubelet upscale old.mp4 new.mp4                        with the default model, at its scale
  tubelet upscale old.mp4 new.mkv --height 1080          to a height of 1080 pixels
  tubelet upscale old.mp4 new.mp4 --preview 4            only 4 frames, before and after, as a PNG
  tubelet upscale old.mp4 new.mp4 --compare              also write a page with a slider
  ffmpeg -i old.avi -f yuv4mpegpipe - | tubelet upscale - - | ffplay -i -
  tubelet demo                                           try it without a video
"""

_EXIT_INTERRUPTED = 130
# SIGPIPE has the number 13; Windows does not define it.
_EXIT_BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)

# Errors of the operating system that the user can solve. All others are defects with a traceback.
_OS_REMEDIES = {
    errno.ENOSPC: "free disk space and run the command again",
    errno.EDQUOT: "free disk space and run the command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n) and run the command again",
    errno.EROFS: "choose an output on a disk that can be written",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised as an exception: it ends a run as cleanly as Ctrl-C does."""

    exit_code = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the name of the command; by default those of the process.

    Returns:
        0, or an exit code of `tubelet.errors` and docs/command-line.md.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal can show × or →. Escape them, as stderr does, instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _termination_as_interrupt(), _renamings_as_notes():
            code = _dispatch(args)
            # A reader that has closed the pipe is noticed here, not at the exit of the interpreter.
            sys.stdout.flush()
            return code
    except TubeletError as error:
        return _fail(str(error), error.exit_code)
    except _Terminated:
        return _fail(f"terminated; {_state_after_stop(args)}", _Terminated.exit_code)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_state_after_stop(args)}", _EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Without a new stdout, the last flush of the interpreter fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _EXIT_BROKEN_PIPE
    except MemoryError:
        return _fail("out of memory; try --tile 128, or a smaller model", ResourceError.exit_code)
    except OSError as error:
        if error.errno not in _OS_REMEDIES:
            raise
        file = error.filename or "writing the output"
        remedy = _OS_REMEDIES[error.errno]
        return _fail(f"{error.strerror}: {file}; {remedy}", ResourceError.exit_code)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0 if args else RequestError.exit_code
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        sys.stdout.write(f"tubelet {version('tubelet')}\n")
        return 0
    verb = args[0]
    if verb not in VERBS:
        raise RequestError(f"unknown verb {verb!r}; {suggest(verb, VERBS)}")
    run: Callable[[list[str]], int] = importlib.import_module(f"tubelet.cli.{verb}").main
    return run(args[1:])


def _help() -> str:
    verbs = "\n".join(f"  {verb:10}{summary}" for verb, summary in VERBS.items())
    return (
        "usage: tubelet VERB [OPTIONS]\n\n"
        "Video super-resolution: upscale videos, and evaluate and train the models that do it.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`tubelet VERB --help` lists the options of a verb; `tubelet --version` prints the version."
        f"\n\nexamples:\n{_EXAMPLES}"
    )


def _fail(message: str, code: int) -> int:
    """Print an error as one line, and return the exit code."""
    line = " ".join(message.split())
    sys.stderr.write(f"tubelet: error: {line}\n")
    return code


def _state_after_stop(args: Sequence[str]) -> str:
    """Describe the state of the output after a run was stopped."""
    if args and args[0] in ("train", "ablate"):
        return "run the same command again to resume"
    return "no unfinished output is left"


@contextmanager
def _renamings_as_notes() -> Generator[None]:
    """Print a warning about a renamed setting as one line, without its position in the code."""
    show_warning = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *position: Any) -> None:
        # Imported here: `tubelet --help` does not need it.
        from tubelet.field_names import RenamedFieldWarning

        if issubclass(category, RenamedFieldWarning):
            sys.stderr.write(f"tubelet: note: {message}\n")
        else:
            show_warning(message, category, *position)

    warnings.showwarning = show_note
    try:
        yield
    finally:
        warnings.showwarning = show_warning


@contextmanager
def _termination_as_interrupt() -> Generator[None]:
    """Raise an exception on SIGTERM, so that unfinished files are removed."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        previous = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:
        # Only the main thread may set a handler. Elsewhere, SIGTERM keeps its meaning.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
