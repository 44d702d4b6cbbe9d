"""`tubelet degrade`: what is written, the recipe file, and every error with its exit code."""

import json
from pathlib import Path

import pytest

from helpers.toy_datasets import save_frames
from tubelet.cli import main
from tubelet.data import read_clip


def run(*args: object) -> int:
    return main(["degrade", *(str(arg) for arg in args), "--progress", "none"])


def test_a_video_becomes_a_smaller_video(clip: Path):
    out = clip.with_name("out.mkv")
    assert run(clip, out, "--preset", "bd") == 0
    assert read_clip(out, max_frames=99).shape == (10, 3, 12, 16)


def test_a_recipe_is_written_and_replayed(clip: Path, capsys: pytest.CaptureFixture[str]):
    first, second, recipe = clip.with_name("a"), clip.with_name("b"), clip.with_name("steps.json")
    assert run(clip, first, "--preset", "second-order", "--seed", 4, "--recipe", recipe) == 0
    assert "steps written to" in capsys.readouterr().err
    assert json.loads(recipe.read_text())["seed"] == 4
    assert run(clip, second, "--recipe", recipe) == 0
    assert (read_clip(first, max_frames=99) == read_clip(second, max_frames=99)).all()
    capsys.readouterr()
    assert run(clip, clip.with_name("c"), "--recipe", recipe, "--seed", 5) == 2
    assert "has seed 4, not 5" in capsys.readouterr().err


def test_a_folder_of_clips_and_a_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b"):
        save_frames(tmp_path / "src" / name, 2)
    assert run(tmp_path / "src", tmp_path / "out", "--preset", "bi", "--scale", 2) == 0
    assert "2 clips written, 0 existed already" in capsys.readouterr().err
    assert run(tmp_path / "src", tmp_path / "out", "--preset", "bi", "--scale", 2) == 0
    assert "0 clips written, 2 existed already" in capsys.readouterr().err
    assert run(tmp_path / "src" / "a" / "00000001.png", tmp_path / "one.png", "--preset", "bi") == 0
    assert (tmp_path / "one.png").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("clip.mp4", "out.mkv"), 2, "give --preset, one of bi, bi-u8"),
        (("clip.mp4", "out.mkv", "--preset", "bx"), 2, "unknown degradation 'bx'"),
        (
            ("clip.mp4", "out.mkv", "--preset", "bi", "--scale", "99"),
            2,
            "scale=99 must be between 1 and 16",
        ),
        (("no.mp4", "out.mkv", "--preset", "bi"), 3, "no such file"),
        (("clip.mp4", "clip.mp4", "--preset", "bi", "-y"), 2, "is the input itself"),
        (("clip.mp4", "nowhere/out.mkv", "--preset", "bi"), 2, "does not exist"),
        (("clip.mp4", "-", "--preset", "bi"), 2, "a video file or a folder"),
        (
            ("clip.mp4", "out.mkv", "--preset", "bi", "--recipe", "r.json"),
            2,
            "bi has no random steps",
        ),
        (("empty", "out", "--preset", "bi"), 3, "no video and no folder of frames"),
    ],
)
def test_errors_are_one_line(
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple,
    code: int,
    message: str,
):
    monkeypatch.chdir(clip.parent)
    Path("empty").mkdir()
    before = sorted(Path.cwd().rglob("*"))
    assert run(*args) == code
    written = capsys.readouterr().err
    assert message in written
    assert written.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
