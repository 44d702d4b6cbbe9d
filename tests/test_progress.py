"""The one event of progress, its counter, and the token that stops a run."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tubelet.errors import Cancelled
from tubelet.progress import CancelToken, Progress, Ticker


def event(**changed: object) -> Progress:
    values = {
        "done": 120,
        "total": 500,
        "unit": "frame",
        "elapsed_s": 4.97912,
        "rate": 24.10049,
        "eta_s": 15.7676,
    }
    return Progress(**(values | changed))


def test_a_frame_event_also_has_the_names_that_upscale_reports() -> None:
    now = event(label="old.mp4", time_s=4.76)
    assert (now.frames_done, now.frames_total, now.fps) == (now.done, now.total, now.rate)
    assert json.loads(now.to_json()) == {
        "event": "progress",
        "done": 120,
        "total": 500,
        "unit": "frame",
        "rate": 24.1,
        "eta_s": 15.77,
        "elapsed_s": 4.979,
        "label": "old.mp4",
        "frame": 120,
        "fps": 24.1,
        "time_s": 4.76,
    }


def test_other_units_have_neither_frames_nor_a_time() -> None:
    values = event(unit="step", total=None, eta_s=None, details={"loss": 0.5}).as_dict()
    assert values.keys().isdisjoint({"frame", "fps", "time_s"})
    assert values.items() >= {"unit": "step", "total": None, "eta_s": None, "loss": 0.5}.items()


def test_an_event_is_one_line() -> None:
    assert "\n" not in event(label="a\nb").to_json()


def test_the_ticker_tells_rate_and_time_left(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    ticker = Ticker(seen.append, total=10, label="x")
    for frame in range(1, 5):
        wait(0.5)
        ticker.tick(time_s=frame / 25)
    last = seen[-1]
    assert (last.done, last.total, last.rate, last.eta_s, last.elapsed_s) == (4, 10, 2.0, 3.0, 2.0)
    assert (last.label, last.time_s, last.unit) == ("x", 0.16, "frame")


def test_what_an_earlier_run_did_counts_as_done_and_not_for_the_rate(
    wait: Callable[[float], None],
) -> None:
    seen: list[Progress] = []
    ticker = Ticker(seen.append, unit="step", total=100, done=80)
    wait(2)
    ticker.tick(10)
    assert (seen[-1].done, seen[-1].rate, seen[-1].eta_s) == (90, 5.0, 2.0)


def test_reports_are_not_too_frequent(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    ticker = Ticker(seen.append, total=100)
    for _ in range(100):
        ticker.tick()
        wait(0.01)
    assert seen[0].done == 1
    assert 9 <= len(seen) <= 11


def test_a_total_that_was_too_small_grows_and_the_end_sets_it(
    wait: Callable[[float], None],
) -> None:
    seen: list[Progress] = []
    ticker = Ticker(seen.append, total=2)
    for _ in range(3):
        wait(1)
        ticker.tick()
    assert (seen[-1].total, seen[-1].eta_s) == (3, 0)
    ticker = Ticker(seen.append, total=9)
    wait(1)
    ticker.tick()
    ticker.finish()
    assert (seen[-1].done, seen[-1].total, seen[-1].eta_s) == (1, 1, 0)


def test_without_a_total_the_time_left_is_unknown(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    ticker = Ticker(seen.append)
    wait(1)
    ticker.tick()
    assert (seen[-1].total, seen[-1].eta_s, seen[-1].rate) == (None, None, 1.0)


def test_a_better_estimate_replaces_that_by_the_rate(wait: Callable[[float], None]) -> None:
    seen: list[Progress] = []
    ticker = Ticker(seen.append, total=10, estimate_s=lambda: 77.0)
    wait(1)
    ticker.tick()
    assert seen[-1].eta_s == 77.0


def test_a_tick_ends_a_run_that_was_cancelled_in_another_thread() -> None:
    token = CancelToken()
    ticker = Ticker(cancel=token)
    ticker.tick()
    thread = threading.Thread(target=token.cancel)
    thread.start()
    thread.join()
    assert token.cancelled
    with pytest.raises(Cancelled) as caught:
        ticker.tick()
    assert caught.value.exit_code == 130
    assert ticker.done == 2


def test_what_a_callback_raises_goes_to_the_caller() -> None:
    def fail(now: Progress) -> None:
        raise ValueError(now.done)

    with pytest.raises(ValueError, match="1"):
        Ticker(fail).tick()


def test_nothing_heavy_is_imported() -> None:
    program = "import sys, tubelet.progress; print(sorted({'torch', 'av', 'numpy', 'rich'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
