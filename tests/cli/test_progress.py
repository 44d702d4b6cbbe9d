"""Progress on a terminal, in a log, and for programs."""

import io
import json

import pytest

from tubelet.cli.progress import show_progress
from tubelet.progress import Progress


def at(frame: int, total: int | None = 20) -> Progress:
    eta_s = None if total is None else (total - frame) / 10
    return Progress(
        done=frame,
        total=total,
        unit="frame",
        elapsed_s=frame / 10,
        rate=10.0,
        eta_s=eta_s,
        label="x.mp4",
        time_s=frame / 25,
    )


def test_json_lines_have_the_documented_fields() -> None:
    stream = io.StringIO()
    with show_progress("json", label="x", json_to=stream, json_interval_s=0.0) as update:
        update(at(5))
        update(at(6, None))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first == {
        "event": "progress",
        "done": 5,
        "unit": "frame",
        "rate": 10.0,
        "label": "x.mp4",
        "frame": 5,
        "total": 20,
        "fps": 10.0,
        "eta_s": 1.5,
        "elapsed_s": 0.5,
        "time_s": 0.2,
    }
    assert second["total"] is None
    assert second["eta_s"] is None


def test_json_lines_are_sparse() -> None:
    stream = io.StringIO()
    with show_progress("json", label="x", json_to=stream) as update:
        for frame in range(100):
            update(at(frame))
    assert len(stream.getvalue().splitlines()) < 5


def test_the_last_json_line_says_that_all_is_done() -> None:
    stream = io.StringIO()
    with show_progress("json", label="x", json_to=stream) as update:
        for frame in range(1, 21):
            update(at(frame))
    assert json.loads(stream.getvalue().splitlines()[-1])["done"] == 20


def test_none_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("none", label="x", json_to=io.StringIO()) as update:
        update(at(5))
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_plain_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tubelet.progress_display.LINE_INTERVAL_S", 0.0)
    with show_progress("auto", label="x", json_to=io.StringIO()) as update:
        update(at(5))
        update(at(6, None))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "frame 5 of 20, 10.0 frames a second, 1.5 s left",
        "frame 6, 10.0 frames a second",
    ]


def test_the_bar_shows_frames_speed_and_eta(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with show_progress("bar", label="video.mp4", json_to=io.StringIO()) as update:
        update(at(5))
    shown = capsys.readouterr().err
    for text in ("video.mp4", "5/20", "10.0 fps", "1.5 s left"):
        assert text in shown
