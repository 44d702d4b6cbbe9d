"""`tubelet models` lists the zoo."""

import json
from pathlib import Path

import pytest

import tubelet
from tubelet.cli import main
from tubelet.models.zoo import list_models

WEIGHTS = Path(tubelet.__path__[0]) / "weights"


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


def test_identify_tells_what_a_checkpoint_is(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(WEIGHTS / "fast-x4-real.safetensors")
    assert main(["models", "identify", path]) == 0
    said = capsys.readouterr().out
    assert f"{path}: FastVSR ×4, 53.6 k parameters" in said
    assert "kind=online, lookahead=1" in said
    assert "depth=4" in said
    assert main(["models", "identify", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["recall_px"] == 3


def test_identify_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pth").write_text("hello")
    assert main(["models", "identify", str(tmp_path / "a.pth")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
