"""`tubelet data`: the list, the check with its exit code, and the copies."""

import json
import re
from pathlib import Path

import pytest

from helpers.toy_datasets import make_vid4, save_frames
from tubelet.cli import main


def test_list_names_every_set_with_its_source(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "list"]) == 0
    text = capsys.readouterr().out
    for name in (
        "reds4",
        "vimeo90k-t",
        "vid4",
        "udm10",
        "spmcs",
        "tos3",
        "videolq",
        "div2k",
        "flickr2k",
    ):
        assert f"\n{name} " in text or text.startswith(name)
    assert main(["data", "list", "--json"]) == 0
    assert all(row["source"].startswith("http") for row in json.loads(capsys.readouterr().out))


def test_an_incomplete_set_fails_where_it_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_vid4(tmp_path, clips=("walk", "city"))
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "Vid4 in" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--set", "vid4"]) == 3
    written = capsys.readouterr()
    assert "missing: calendar, foliage" in written.out
    assert "2 of 4 clips" in written.out
    assert written.err == "Vid4 is not complete\n"


def test_json_holds_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_vid4(tmp_path)
    assert main(["data", "check", str(tmp_path), "--set", "vid4", "--json"]) == 3
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["set"], report["found"], report["complete"]) == ("vid4", 4, False)
    assert report["clips"][1]["problems"] == ["16x12 instead of 704x576"]


def test_a_complete_set_passes(shared: Path):
    assert main(["data", "check", str(shared / "data" / "dev_eval"), "--set", "vid4"]) == 0


def test_prepare_writes_copies_and_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_vid4(tmp_path / "src")
    args = ["data", "prepare", str(tmp_path / "src"), "--preset", "bi", "--progress", "none"]
    assert main([*args, "--set", "vid4", "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "foliage").glob("*.png"))) == 49
    assert "4 clips written, 0 existed already" in capsys.readouterr().err
    save_frames(tmp_path / "clips" / "a", 3, (24, 24))
    cache = [
        "data",
        "prepare",
        str(tmp_path / "clips"),
        "--preset",
        "bd",
        "--cache",
        "--progress",
        "none",
    ]
    assert main([*cache, "--out", str(tmp_path / "cache")]) == 0
    assert [path.name for path in (tmp_path / "cache").rglob("bd*")] == ["bd-x4-0.npy"]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["chek"], 2, "unknown action 'chek'"),
        (["check", "nowhere"], 3, "no such folder: nowhere"),
        (["check", ".", "--set", "vid5"], 2, "did you mean vid4"),
        (["check", "."], 3, "no video and no folder of frames"),
        (["prepare", "."], 2, "give --out DIR and --preset"),
        (["prepare", ".", "--out", "o", "--preset", "bi", "--set", "udm10"], 3, "UDM10 is not in"),
        (["prepare", ".", "--out", "o", "--preset", "bx"], 2, "unknown degradation 'bx'"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list,
    code: int,
    told: str,
):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *args]) == code
    written = capsys.readouterr().err
    assert told in written
    assert written.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    overview = capsys.readouterr().out
    for action in ("list", "check", "prepare"):
        with pytest.raises(SystemExit):
            main(["data", action, "--help"])
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out)) - {"--help"}
        assert options <= set(re.findall(r"--[a-z][\w-]*", overview))
