"""`tubelet evaluate`: several models in one call, progress for people and programs, one line for what goes wrong."""

import json
from pathlib import Path

import pytest

from helpers.evaluation_clips import write_frames, write_set
from tubelet.cli import main


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_set(tmp_path / "clips")


def command(clips: Path, *more: str) -> list[str]:
    base = [
        "evaluate",
        "--protocol",
        "folder-bi-x4",
        "--data",
        str(clips),
        "--out",
        str(clips.parent / "out"),
    ]
    return [*base, "--device", "cpu", *more]


def test_several_models_in_one_call(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(clips, "--model", "bicubic", "fast-x4-bi", "--metrics", "psnr-y")) == 0
    printed = capsys.readouterr()
    out = clips.parent / "out"
    assert str(out / "report.html") in printed.out
    rows = {line.split()[0]: line.split() for line in printed.out.splitlines() if line.split()[1:]}
    stored = json.loads((out / "results.json").read_text("utf-8"))
    for model in stored["models"]:
        assert rows[model["model"]][1] == f"{model['mean']['psnr-y']:.2f}"
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "results.json",
        "report.md",
        "report.csv",
        "report.tex",
        "report.html",
    }
    assert "fast-x4-bi  b  psnr-y" in printed.err
    assert not list(out.rglob("*.part"))


def test_events_for_programs(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(clips, "--model", "bicubic", "--progress", "json")) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert [event["clip"] for event in events if event["event"] == "score"] == ["a", "b"]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert last["frame"] == last["total"] == 10
    assert last["eta_s"] == 0
    assert events[-1]["mean"]["bicubic-x4"].keys() == {"psnr-y", "ssim-y"}
    assert all(Path(path).is_file() for path in events[-1]["reports"])


def test_a_rerun_only_writes_the_report(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(clips, "--model", "bicubic")) == 0
    page = clips.parent / "out" / "report.html"
    before = page.read_text("utf-8")
    page.unlink()
    capsys.readouterr()
    assert main(command(clips, "--model", "bicubic", "--progress", "json")) == 0
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["start", "end"]
    assert page.read_text("utf-8") == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "fast-x2-bi"], 2, "×2"),
        (["--model", "bicubick"], 2, "did you mean"),
        ([], 2, "no model is named"),
        (["--model", "bicubic", "--protocol", "vid4-bi-x3"], 2, "vid4-bi-x4"),
        (["--model", "bicubic", "--metrics", "psnr"], 2, "psnr-y"),
        (["--model", "gone.safetensors"], 3, "gone.safetensors"),
        (["--model", "bicubic", "--data", "nowhere"], 3, "nowhere"),
        (["--model", "bicubic", "--protocol", "vid4-bi-x4"], 3, "Vid4 is not in"),
        (["--model", "bicubic", "--max-frames", "0"], 2, "max_frames=0"),
        (["--model", "bicubic", "--device", "cuda:99"], 4, "cuda:99"),
    ],
)
def test_what_goes_wrong_is_one_line(
    clips: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert main(command(clips, *arguments)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("tubelet: error: ")
    assert words in line
    assert not (clips.parent / "out").exists()


def test_no_protocol_lists_them(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", "bicubic"]) == 2
    assert "reds4-bi-x4" in capsys.readouterr().err


def test_an_error_is_the_last_event(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_frames(clips / "c", 3)
    (clips / "c" / "001.png").write_bytes(b"broken")
    assert main(command(clips, "--model", "bicubic", "--progress", "json")) == 3
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "error"
    assert events[-1]["exit_code"] == 3
    assert "c: " in events[-1]["message"]
    assert not (clips.parent / "out" / "report.html").exists()


def test_checkpoints_take_part(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tubelet.models.fast import FastConfig, FastVSR
    from tubelet.zoo.checkpoint import save_checkpoint

    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, FastVSR(FastConfig(channels=8, num_blocks=1)), {})
    assert main(command(clips, "--model", "bicubic", str(path), "--max-frames", "2")) == 0
    assert "mine" in capsys.readouterr().out
    assert "Only the first 2 frames" in (clips.parent / "out" / "report.md").read_text("utf-8")
