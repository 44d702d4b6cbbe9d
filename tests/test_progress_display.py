"""Progress as a user sees it."""

import pytest

from tubelet.progress import Progress
from tubelet.progress_display import clock, show_bar, show_lines


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.25, "7.2 s"), (59.94, "59.9 s"), (125.4, "2:05"), (3725.0, "1:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.fixture
def megabytes() -> Progress:
    return Progress(
        done=2_500_000,
        total=10_000_000,
        unit="byte",
        elapsed_s=5.0,
        rate=500_000.0,
        eta_s=15.0,
        label="w.pth",
    )


def test_a_log_tells_bytes_in_megabytes(
    megabytes: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tubelet.progress_display.LINE_INTERVAL_S", 0.0)
    show_lines()(megabytes)
    assert capsys.readouterr().err == "w.pth: 2.5 MB of 10.0, 0.5 MB a second, 15.0 s left\n"


def test_slow_work_is_told_in_seconds_a_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tubelet.progress_display.LINE_INTERVAL_S", 0.0)
    show_lines()(Progress(done=3, total=27, unit="run", elapsed_s=300.0, rate=0.01, eta_s=2400.0))
    assert capsys.readouterr().err == "run 3 of 27, 1:40 a run, 40:00 left\n"


def test_a_log_tells_which_training_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tubelet.progress_display.LINE_INTERVAL_S", 0.0)
    show = show_lines()
    show(
        Progress(done=0, total=None, unit="step", elapsed_s=1.0, rate=0.0, eta_s=None, label="a: b")
    )
    show(Progress(done=3, total=9, unit="step", elapsed_s=1.0, rate=3.0, eta_s=2.0, label="a: c"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["a: b", "a: c: step 3 of 9, 3.0 steps a second, 2.0 s left"]


def test_a_bar_tells_bytes_in_megabytes(
    megabytes: Progress, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with show_bar("file") as update:
        update(megabytes)
    shown = capsys.readouterr().err
    for text in ("w.pth", "2.5/10.0 MB", "0.5 MB/s", "15.0 s left"):
        assert text in shown
