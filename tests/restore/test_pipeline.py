import threading
import time

import pytest
import torch

from tubelet.errors import Cancelled
from tubelet.progress import CancelToken
from tubelet.restore.pipeline import read_ahead, write_behind


def our_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("tubelet-")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert our_threads() == []
    assert torch.get_num_threads() == 2  # the threads' own setting is theirs alone
    torch.set_num_threads(cores)


def test_items_come_in_order_through_both_queues():
    written = []
    with read_ahead(range(100), depth=3) as source, write_behind(written.append, depth=2) as sink:
        for item in source:
            sink.put(item)
    assert written == list(range(100))


def test_no_more_is_read_ahead_than_the_depth():
    pulled = []

    def source():
        for item in range(50):
            pulled.append(item)
            yield item

    with read_ahead(source(), depth=4) as items:
        next(items)
        time.sleep(0.1)
        assert len(pulled) <= 1 + 4 + 1


def test_error_of_the_source_comes_after_its_items():
    def source():
        yield 1
        raise OSError("disk gone")

    got = []
    with pytest.raises(OSError, match="disk gone"), read_ahead(source(), depth=4) as items:
        got.extend(iter(items.__next__, None))
    assert got == [1]


def test_a_token_ends_the_wait_for_a_silent_source():
    token, go_on = CancelToken(), threading.Event()

    def silent():
        yield 0
        go_on.wait()

    with read_ahead(silent(), depth=2, cancel=token) as items:
        assert next(items) == 0
        threading.Timer(0.05, token.cancel).start()
        with pytest.raises(Cancelled):
            next(items)
        go_on.set()


def test_error_of_the_consumer_is_raised_by_put():
    def consume(item):
        raise OSError(f"cannot write {item}")

    def produce():
        with write_behind(consume, depth=2) as sink:
            for item in range(1000):
                sink.put(item)
                time.sleep(0.001)
            pytest.fail("the error was not raised in time")

    with pytest.raises(OSError, match="cannot write 0"):
        produce()


def test_error_of_the_consumer_at_the_last_item_is_raised_at_the_end():
    def consume(item):
        time.sleep(0.05)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), write_behind(consume, depth=2) as sink:
        sink.put(1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_between_stops_both_sides_although_they_wait(error):
    def work():
        with (
            read_ahead(iter(int, 1), depth=1) as source,  # endless: the reader waits for room
            write_behind(lambda item: time.sleep(0.01), depth=1) as sink,
        ):
            for number, item in enumerate(source):
                sink.put(item)
                if number == 3:
                    raise error

    started = time.monotonic()
    with pytest.raises(error):
        work()
    assert time.monotonic() - started < 2


def test_error_of_the_consumer_stops_an_endless_reader():
    def consume(item):
        raise OSError("full")

    def work():
        with read_ahead(iter(int, 1), depth=1) as source, write_behind(consume, depth=1) as sink:
            for item in source:
                sink.put(item)

    with pytest.raises(OSError, match="full"):
        work()


def test_threads_use_one_core_each():
    cores = []

    def source():
        cores.append(torch.get_num_threads())
        yield 1

    def consume(item):
        cores.append(torch.get_num_threads())

    with read_ahead(source(), depth=1) as items, write_behind(consume, depth=1) as sink:
        for item in items:
            sink.put(item)
    assert cores == [1, 1]
