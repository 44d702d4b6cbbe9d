"""Functions in processes of their own, forked from one that has imported torch, which takes seconds.

    done = run(function, *arguments, stdin=b"...")    as subprocess.run, with all output captured
    process = start(function, *arguments)             as subprocess.Popen, with three pipes

The function and its arguments are pickled, as for any process; the rest of this one stays unknown
to it, changes to the environment as well.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, BinaryIO

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
"""Elsewhere, as on Windows, every process begins anew: slower, and no more."""

PROCESSES: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    PROCESSES.set_forkserver_preload(["pytest", "torch", "av", "numpy", "PIL.Image"])

TIMEOUT_S = 120


@dataclass(frozen=True)
class Finished:
    """What a process printed, and its exit code: negative if a signal ended it."""

    code: int
    stdout: bytes
    stderr: bytes


class Running:
    """A process, and this end of its pipes; a `with` statement waits for its end.

    Attributes:
        code: its exit code, once it has ended: negative if a signal ended it.
    """

    code: int

    def __init__(self, process: BaseProcess, pipes: tuple[Connection, Connection, Connection]):
        self.process = process
        self.stdin: BinaryIO = _file_of(pipes[0], "wb")
        self.stdout: BinaryIO = _file_of(pipes[1], "rb")
        self.stderr: BinaryIO = _file_of(pipes[2], "rb")

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.process.kill()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        self.process.join(TIMEOUT_S)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"the process did not end within {TIMEOUT_S} s")
        self.code = self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start(function: Callable[..., object], *arguments: object) -> Running:
    """Call a function in a process whose standard input, output and error are pipes."""
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = (
        PROCESSES.Pipe(duplex=False) for _ in range(3)
    )
    theirs = (stdin, stdout, stderr)
    call = pickle.dumps((function, arguments))
    process = PROCESSES.Process(target=_call, args=(theirs, call), daemon=True)
    process.start()
    for pipe in theirs:
        pipe.close()
    return Running(process, (to_stdin, from_stdout, from_stderr))


def run(function: Callable[..., object], *arguments: object, stdin: bytes = b"") -> Finished:
    """Call a function in a process, and wait for its end."""
    with start(function, *arguments) as process, ThreadPoolExecutor(2) as pool:
        outputs = [pool.submit(pipe.read) for pipe in (process.stdout, process.stderr)]
        with process.stdin as pipe:
            pipe.write(stdin)
        stdout, stderr = (output.result() for output in outputs)
    return Finished(process.code, stdout, stderr)


def _file_of(connection: Connection, mode: str) -> BinaryIO:
    with connection:
        return os.fdopen(os.dup(connection.fileno()), mode)  # type: ignore[return-value]


def _call(
    pipes: tuple[Connection, Connection, Connection],
    call: bytes,
) -> None:
    """In the process: connect the pipes and call the function; what it returns is lost."""
    for number, pipe in enumerate(pipes):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False)  # noqa: SIM115
        for number, mode in enumerate("rww")
    )
    # A shell that runs the tests in the background lets them ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Now, so that what imports print goes into the pipes.
    function, arguments = pickle.loads(call)
    function(*arguments)
