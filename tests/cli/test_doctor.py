"""`tubelet doctor` reports the state of the machine, and missing parts."""

import json
from collections.abc import Iterator

import pytest

from tubelet.cli import doctor, main
from tubelet.cli.doctor import Finding


def test_json_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    for name in ("Python", "torch", "processor", "memory", "disk", "video", "encoders", "speed"):
        assert findings[name]["state"] in ("ok", "note")
    assert "h264" in findings["encoders"]["value"].split("; not ")[0]
    assert "frames a second" in findings["speed"]["value"]


def test_something_missing_is_shown_with_advice_and_exit_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examine() -> Iterator[Finding]:
        yield Finding("weights", "gone [really]", "missing", "install again")

    monkeypatch.setattr(doctor, "_examine", examine)
    assert main(["doctor"]) == 4
    shown = capsys.readouterr().out
    assert "gone [really]" in shown
    assert "→ install again" in shown


def test_a_broken_package_ends_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_imports", lambda name: name != "av")
    findings = list(doctor._examine())
    assert findings[-1].state == "missing"
    assert "av" in findings[-1].value
