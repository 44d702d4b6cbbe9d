"""`tubelet bench` measures models and shows the figures of papers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tubelet.cli import bench, main
from tubelet.evaluation import cost as cost_module
from tubelet.evaluation.cost import Cost, CostReport, CostSettings
from tubelet.evaluation.machine import describe_machine
from tubelet.models.fast import FastConfig, FastVSR
from tubelet.zoo.checkpoint import save_checkpoint

TINY = ["--size", "32x24", "--runs", "2", "--warmup", "1", "--device", "cpu"]


def cost(model: str, *, architecture: str = "Net", scale: int = 4) -> Cost:
    return Cost(
        model=model,
        architecture=architecture,
        kind="frame",
        scale=scale,
        precision="fp32",
        width=32,
        height=24,
        frames_in=1,
        frames_out=1,
        parameters=1,
        flops=1.0,
        peak_bytes=1,
        process_bytes=None,
        times_s=(0.1, 0.3, 0.2),
    )


def test_published_figures_are_in_a_second_table(capsys: pytest.CaptureFixture[str]) -> None:
    bench._print_published(
        Console(width=100), [cost("basicvsr-plus-plus-x4"), cost("fast-x4-real")]
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["7.30", "–", "223", "77.0", "320x180"] in [row[1:6] for row in rows]
    assert not any(row[:1] == ["fast-x4-real"] for row in rows)


def test_the_table_has_every_model_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "bicubic-x4", "fast-x2-real", *TINY]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    bicubic = next(line for line in lines if line.startswith("bicubic-x4"))
    fast = next(line for line in lines if line.startswith("fast-x2-real"))
    assert "128×96" in bicubic
    assert "64×48" in fast
    assert "multiply-adds" in out
    assert "torch uses" in lines[-1]
    assert "on the CPU" in lines[-1]
    assert max(map(len, lines[:6])) <= 80


def test_json_has_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "bicubic-x4", "bicubic-x4", *TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["size"] == "32x24"
    assert report["machine"]["device"] == "cpu"
    (row,) = report["models"]  # named twice, measured once
    assert row["model"] == "bicubic-x4"
    assert len(row["times_s"]) == 2
    assert row["p10_s"] <= row["median_s"] <= row["p90_s"]
    assert row["fps"] == pytest.approx(1 / row["median_s"])


def test_a_checkpoint_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.safetensors"
    model = FastVSR(FastConfig(scale=2, channels=4, num_blocks=1))
    save_checkpoint(path, model, {})
    assert main(["bench", str(path), *TINY, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["model"] == str(path)
    assert row["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["bicubicc-x4"], 2, "did you mean bicubic-x4"),
        (["bicubic-x4", "--size", "320"], 2, "size='320' must be width x height"),
        (["bicubic-x4", "--size", "32x24", "--device", "cuda:99"], 4, "cuda:99"),
        (
            ["bicubic-x4", "--size", "32x24", "--device", "cpu", "--precision", "bf16"],
            2,
            "it takes fp32",
        ),
        (["absent.safetensors"], 3, "absent.safetensors"),
        ([], 2, "no model is given"),
    ],
)
def test_errors_are_one_line(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *args]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


def test_a_model_that_runs_out_of_memory_is_reported_and_the_others_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost_module, "free_bytes", lambda _: 20_000_000)
    size = ["--size", "320x180", *TINY[2:]]
    assert main(["bench", "fast-x4-real", "bicubic-x2", *size]) == 4
    captured = capsys.readouterr()
    assert any(line.startswith("bicubic-x2") for line in captured.out.splitlines())
    assert captured.err.startswith("fast-x4-real: memory does not suffice for 320x180: ")
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("times_s", "warned"), [((0.1, 0.1, 0.11), False), ((0.1, 0.1, 0.3), True)]
)
def test_a_busy_machine_is_noticed(times_s: tuple[float, ...], warned: bool) -> None:
    machine = describe_machine(torch.device("cpu"))
    measured = replace(cost("a"), times_s=times_s, frames_in=5, frames_out=5, height=28)
    notes = bench._notes(CostReport(machine, CostSettings(size="32x24", runs=9), (measured,), ()))
    assert any("busy" in note for note in notes) is warned
    assert "a: calls of 5 frames; figures are per frame" in notes
    assert "a needs, and was measured at, 32×28" in notes
    assert "a: only 3 calls within the limit of 60 s" in notes


def test_published_figures_are_found_by_the_name_of_the_method() -> None:
    found = bench._published(cost("basicvsr-plus-plus-x4-reds"))
    assert found
    assert all(entry.method.startswith("BasicVSR++") for entry in found)
    assert bench._published(cost("runs/mine.safetensors", architecture="BasicVSRPlusPlus")) == found
    assert bench._published(cost("basicvsr-plus-plus-x2", scale=2)) == []
    assert bench._published(cost("fast-x4-real")) == []
    assert not set(bench._published(cost("basicvsr-x4"))) & set(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "–"), (0.0714, "0.0714"), (7.3, "7.30"), (77, "77.0"), (99.96, "100"), (1041, "1041")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert bench._number(value) == text
