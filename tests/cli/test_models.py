"""`tubelet models` lists the zoo."""

import json

import pytest

from tubelet.cli import main
from tubelet.models.zoo import list_models


def test_the_table_has_every_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    for spec in list_models():
        row = next(line for line in table.splitlines() if line.split()[:1] == [spec.id])
        assert f"×{spec.scale}" in row
        assert spec.temporal.kind in row
        assert spec.summary in row


def test_json_counts_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [spec.id for spec in list_models()]
    assert rows["bicubic-x4"]["parameters"] == 0
    for spec in list_models():
        assert rows[spec.id]["parameters"] == sum(p.numel() for p in spec.build().parameters())
