"""`tubelet compare`: numbers and a page for any two videos."""

import json
from pathlib import Path

import pytest

from helpers.evaluation_clips import write_frames
from helpers.videos import make_video
from tubelet.cli import main


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    low = make_video(tmp_path / "low.mp4", options={"crf": "45"})
    return str(low), str(make_video(tmp_path / "high.mp4", options={"crf": "12"}))


def test_numbers_and_a_page(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = str(make_video(tmp_path / "original.mkv", codec="ffv1", pix_fmt="yuv444p"))
    assert main(["compare", *pair, "--reference", original, "--metrics", "psnr-y", "ssim-y"]) == 0
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if "PSNR-Y" in line)
    assert float(row[-2]) < float(row[-1])  # the first is compressed harder
    page = (tmp_path / "high.compare.html").read_text("utf-8")
    for words in ("low.mp4", "high.mp4", "Original", "PSNR-Y"):
        assert words in page
    assert "Lanczos" not in page  # nothing is enlarged
    assert f"page: {tmp_path / 'high.compare.html'}" in printed
    assert not list(tmp_path.glob("*.part"))


def test_json(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", *pair, "--json", "--out", str(page), "--metrics", "psnr-y"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["psnr-y"]["first"] is None
    assert 15 < found["scores"]["psnr-y"]["second"] < 60
    assert (found["frames"], found["left_out"]) == (10, {"first": 0, "second": 0})
    assert (found["width"], found["height"], found["page"]) == (64, 48, str(page))
    assert page.is_file()


def test_equal_videos_are_valid_json(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", pair[0], pair[0], "--json", "--no-page", "--metrics", "psnr-y"]) == 0
    text = capsys.readouterr().out
    assert "Infinity" not in text
    assert json.loads(text)["scores"]["psnr-y"]["second"] == "inf"


def test_a_smaller_video_is_enlarged_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_video(tmp_path / "clip.mp4", size=(32, 24))
    (tmp_path / "large").mkdir()
    large = make_video(tmp_path / "large" / "clip.mp4")
    for first, second, page in ((small, large, "a.html"), (large, small, "b.html")):
        arguments = [
            "compare",
            str(first),
            str(second),
            "--out",
            str(tmp_path / page),
            "--metrics",
            "psnr-y",
        ]
        assert main(arguments) == 0
        text = (tmp_path / page).read_text("utf-8")
        assert str(Path("large") / "clip.mp4") in text  # two files of one name are told apart
        assert ".actual .frame { width: 64px; }" in text
    assert "Lanczos" in (tmp_path / "a.html").read_text("utf-8")
    assert "64×48" in capsys.readouterr().out


def test_a_video_and_its_frames(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_frames(tmp_path / "frames", 40)
    assert (
        main(
            [
                "compare",
                pair[0],
                str(folder),
                "--out",
                str(tmp_path / "p.html"),
                "--metrics",
                "ssim-y",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "10 frames, compared at 64×48" in printed.out
    assert "note: 30 frames of" in printed.err


@pytest.mark.parametrize(
    ("second", "arguments", "code", "words"),
    [
        ("gone.mp4", [], 3, "gone.mp4"),
        ("wide.mp4", [], 3, "not the same shape"),
        ("empty", [], 3, "empty"),
        ("low.mp4", ["--out", "page.txt"], 2, "page.txt"),
        ("low.mp4", ["--out", "there.html"], 2, "--overwrite"),
        ("low.mp4", ["--out", "nowhere/page.html"], 2, "nowhere"),
        ("low.mp4", ["--metrics", "psnr"], 2, "psnr-y"),
        ("-", [], 2, "pipe"),
    ],
)
def test_what_goes_wrong_is_one_line(
    pair: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    second: str,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "wide.mp4", size=(96, 48))
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.html").write_text("mine")
    before = sorted(tmp_path.iterdir())
    assert main(["compare", "high.mp4", second, *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tubelet: error: ")
    assert words in line
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.html").read_text() == "mine"
