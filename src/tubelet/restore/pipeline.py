"""Overlap decoding, restoring and encoding: a thread on each side of the engine, with bounded queues between.

    reader thread → queue → engine (calling thread) → queue → writer thread

An exception in any of them stops the other two promptly and is raised in the calling thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from tubelet.progress import CancelToken

__all__ = ["WriteBehind", "read_ahead", "write_behind"]

T = TypeVar("T")

_POLL_S = 0.2  # lets Ctrl-C through on platforms where waiting for a lock cannot be interrupted
_JOIN_S = 3.0  # a reader that is stuck in a pipe is left behind after this


class _Stopped(Exception):  # noqa: N818 - not an error: the other side left
    """The queue was stopped by the other side."""


class _Queue(Generic[T]):
    """A bounded queue that either side can end: `close` after the last item, `stop` at once."""

    def __init__(self, depth: int, cancel: CancelToken | None = None) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._cancel = cancel
        self._changed = threading.Condition()
        self._closed = False
        self._stopped = False
        self.error: BaseException | None = None

    def put(self, item: T) -> None:
        with self._changed:
            self._wait(lambda: len(self._items) < self._depth)
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._wait(lambda: bool(self._items) or self._closed or self._is_cancelled())
                if self._cancel is not None:
                    self._cancel.raise_if_cancelled()
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._stopped = True
            self._items.clear()
            self.error = self.error or error
            self._changed.notify_all()

    def _is_cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.cancelled

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not (self._stopped or ready()):
            self._changed.wait(_POLL_S)
        if self._stopped:
            raise _Stopped


@contextmanager
def read_ahead(
    source: Iterable[T], *, depth: int, cancel: CancelToken | None = None
) -> Generator[Iterator[T]]:
    """Iterate over `source` in a thread of its own.

    Args:
        source: used by the thread alone until the context ends.
        depth: items that may wait.
        cancel: ends the wait for the next item, too.

    Yields:
        The items; an exception of `source` is raised after those that came before it.

    Raises:
        Cancelled: from the items, where `cancel` was cancelled.
    """
    queue: _Queue[T] = _Queue(depth, cancel)
    failure: list[BaseException] = []

    def work() -> None:
        torch.set_num_threads(1)  # the setting is per thread: the cores are for the model
        try:
            for item in source:
                queue.put(item)
        except _Stopped:
            pass
        except BaseException as error:  # handed to the calling thread, whatever it is
            failure.append(error)
        finally:
            queue.close()

    def items() -> Iterator[T]:
        yield from queue
        if failure:
            raise failure[0]

    thread = _start(work, "tubelet-reader")
    try:
        yield items()
    finally:
        queue.stop()
        thread.join(_JOIN_S)


class WriteBehind(Generic[T]):
    """What `write_behind` gives: `put` hands an item to the thread."""

    def __init__(self, queue: _Queue[T]) -> None:
        self._queue = queue

    def put(self, item: T) -> None:
        """Queue an item, or raise what the thread failed with."""
        try:
            self._queue.put(item)
        except _Stopped:
            assert self._queue.error is not None
            raise self._queue.error from None


@contextmanager
def write_behind(consume: Callable[[T], None], *, depth: int) -> Generator[WriteBehind[T]]:
    """Call `consume` for each item in a thread of its own; a clean exit waits until all are consumed.

    Args:
        consume: called in the thread; what it raises is raised in the calling thread, at the next `put` or at
            the end.
        depth: items that may wait.
    """
    queue: _Queue[T] = _Queue(depth)

    def work() -> None:
        torch.set_num_threads(1)
        try:
            for item in queue:
                consume(item)
        except _Stopped:
            pass
        except BaseException as error:  # handed to the calling thread, whatever it is
            queue.stop(error)

    thread = _start(work, "tubelet-writer")
    try:
        yield WriteBehind(queue)
        queue.close()
        while thread.is_alive():
            thread.join(_POLL_S)
    except BaseException:
        queue.stop()
        thread.join()
        raise
    if queue.error is not None:
        raise queue.error


def _start(work: Callable[[], None], name: str) -> threading.Thread:
    torch.get_num_threads()  # fixes the calling thread's number before the new thread sets its own
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
