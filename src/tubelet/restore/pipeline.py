"""Overlap decoding, restoration and encoding: one thread on each side of the engine.

    reader thread → bounded queue → engine (calling thread) → bounded queue → writer thread

An exception in one of the threads stops the other two promptly and is raised in the calling thread.
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

_POLL_S = 0.2
"""Waits are split into this time: on some platforms Ctrl-C cannot interrupt a wait for a lock."""
_JOIN_S = 3.0
"""A reader thread that is blocked in a pipe is abandoned after this time."""


class _Stopped(Exception):  # noqa: N818 - not an error: the other side left
    """The other side stopped the queue."""


class _Queue(Generic[T]):
    """A bounded queue that either side can end: `close` after the last item, `stop` immediately."""

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
            self._wait(self._has_space)
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._wait(self._can_continue_reading)
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
            # The first error is the cause of the others.
            self.error = self.error or error
            self._changed.notify_all()

    def _has_space(self) -> bool:
        return len(self._items) < self._depth

    def _can_continue_reading(self) -> bool:
        """Return whether there is an item, or there will be none."""
        is_cancelled = self._cancel is not None and self._cancel.cancelled
        return bool(self._items) or self._closed or is_cancelled

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not self._stopped and not condition():
            self._changed.wait(_POLL_S)
        if self._stopped:
            raise _Stopped


@contextmanager
def read_ahead(
    source: Iterable[T],
    *,
    depth: int,
    cancel: CancelToken | None = None,
) -> Generator[Iterator[T]]:
    """Iterate over `source` in a separate thread.

    Args:
        source: Items; only the thread uses it until the context ends.
        depth: Maximum number of waiting items.
        cancel: Also ends a wait for the next item.

    Yields:
        The items. An exception of `source` is raised after the items before it.

    Raises:
        Cancelled: While iterating, if `cancel` was cancelled.
    """
    queue: _Queue[T] = _Queue(depth, cancel)
    failures: list[BaseException] = []

    def work() -> None:
        # The setting is per thread: the cores are for the model.
        torch.set_num_threads(1)
        try:
            for item in source:
                queue.put(item)
        except _Stopped:
            pass
        except BaseException as error:
            # Any exception is raised again in the calling thread.
            failures.append(error)
        finally:
            queue.close()

    def items() -> Iterator[T]:
        yield from queue
        if failures:
            raise failures[0]

    thread = _start(work, "tubelet-reader")
    try:
        yield items()
    finally:
        queue.stop()
        thread.join(_JOIN_S)


class WriteBehind(Generic[T]):
    """Hands items to the thread of `write_behind`."""

    def __init__(self, queue: _Queue[T]) -> None:
        self._queue = queue

    def put(self, item: T) -> None:
        """Queue an item, or raise the exception that ended the thread."""
        try:
            self._queue.put(item)
        except _Stopped:
            assert self._queue.error is not None
            raise self._queue.error from None


@contextmanager
def write_behind(consume: Callable[[T], None], *, depth: int) -> Generator[WriteBehind[T]]:
    """Call `consume` with each item in a separate thread; a clean exit waits for all items.

    Args:
        consume: Called in the thread; its exception is raised in the calling thread, at the next
            `put` or at the end.
        depth: Maximum number of waiting items.
    """
    queue: _Queue[T] = _Queue(depth)

    def work() -> None:
        torch.set_num_threads(1)
        try:
            for item in queue:
                consume(item)
        except _Stopped:
            pass
        except BaseException as error:
            # Any exception is raised again in the calling thread.
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
    # Fix the number of threads of this thread before the new thread sets its own.
    torch.get_num_threads()
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
