"""`tubelet upscale`: its outputs and messages, and every error with its exit code."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helpers.processes import run, start
from helpers.toy_models import RECURRENT, SPACE_TIME, build
from helpers.videos import make_video
from tubelet.cli import main
from tubelet.restore import job
from tubelet.restore.engine import Engine
from tubelet.restore.plan import Plan
from tubelet.video.reader import open_reader
from tubelet.zoo.opening import OpenedModel

FRAMES = 10  # of the fixture `clip`
FAST = ["--model", "bicubic", "--progress", "none"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    written = capsys.readouterr().err
    assert written.startswith("tubelet: error: "), written
    assert written.count("\n") == 1
    return written


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_the_video_and_one_summary_line(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clip.with_name("out.mp4")
    assert main(["upscale", str(clip), str(out), *FAST, "--scale", "2"]) == 0
    with av.open(str(out)) as container:
        assert [(f.width, f.height) for f in container.decode(video=0)] == [(128, 96)] * FRAMES
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{out}: 64×48 → 128×96, {FRAMES} frames in ")
    assert lines[0].endswith("bicubic-x2")


def test_json_events_go_to_the_standard_output(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clip.with_name("out.mkv")
    assert main(["upscale", str(clip), str(out), "-m", "bicubic", "--progress", "json"]) == 0
    written = capsys.readouterr()
    events = [json.loads(line) for line in written.out.splitlines()]
    assert written.err == ""
    assert events[0] == {"event": "start", "input": str(clip), "output": str(out)}
    assert {event["event"] for event in events[1:-1]} == {"progress"}
    assert events[-1]["event"] == "end"
    assert (events[-1]["frames"], events[-1]["width"], events[-1]["height"]) == (FRAMES, 256, 192)


def test_an_error_is_an_event_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["upscale", str(tmp_path / "no.mp4"), str(tmp_path / "o.mp4"), "--progress", "json"])
        == 3
    )
    written = capsys.readouterr()
    last = json.loads(written.out.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("error", 3)
    assert written.err == f"tubelet: error: {last['message']}\n"


def test_dry_run_prints_the_plan_and_writes_nothing(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clip.with_name("out.mp4")
    assert main(["upscale", str(clip), str(out), *FAST, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    for text in (
        "64×48 → 256×192",
        f"{FRAMES} (by the header)",
        "bicubic-x4",
        "whole frames",
        "about",
        "disk",
    ):
        assert text in plan
    assert sorted(path.name for path in clip.parent.iterdir()) == ["clip.mp4"]


def test_dry_run_as_json(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["upscale", str(clip), str(clip.with_name("out.mp4")), *FAST, "--json"]
    assert main([*command, "--dry-run"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["input"], values["width"], values["height"], values["frames"]) == (
        str(clip),
        256,
        192,
        FRAMES,
    )
    assert values["plan"]["output"] == [256, 192]
    assert main(command) == 2
    assert "--json works only with --dry-run" in one_line(capsys)


def test_a_run_follows_the_plan_that_a_dry_run_printed(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clip.with_name("planned.mp4")
    command = ["upscale", str(clip), str(out), *FAST]
    assert main([*command, "--dry-run", "--json", "--tile", "32"]) == 0
    plan = clip.with_name("plan.json")
    plan.write_text(capsys.readouterr().out)
    followed: list[Plan] = []
    follow = Engine.follow

    def spy(engine: Engine, plan: Plan) -> None:
        followed.append(plan)
        follow(engine, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "follow", spy)
        assert main([*command, "--plan", str(plan)]) == 0
    assert followed == [Plan.from_json(json.dumps(json.loads(plan.read_text())["plan"]))]
    assert followed[0].tile_px == 32
    out.unlink()
    plan.unlink()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the plan"),
        ("{", "is not JSON"),
        ("[1]", "must hold"),
        ('{"tile": 3}', "unknown key 'tile'"),
    ],
)
def test_an_invalid_plan_is_refused(
    clip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, words: str
) -> None:
    plan = tmp_path / "plan.json"
    if content is not None:
        plan.write_text(content)
    assert main(["upscale", str(clip), str(tmp_path / "out.mp4"), *FAST, "--plan", str(plan)]) == 2
    assert words in one_line(capsys)


def test_a_plan_of_another_input_or_model_is_refused(
    clip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = make_video(tmp_path / "other.mp4", size=(32, 32))
    plan = tmp_path / "plan.json"
    assert main(["upscale", str(other), str(tmp_path / "o.mp4"), *FAST, "--dry-run", "--json"]) == 0
    plan.write_text(capsys.readouterr().out)
    assert main(["upscale", str(clip), str(tmp_path / "o.mp4"), *FAST, "--plan", str(plan)]) == 2
    assert "the plan is for 32x32, but the input is 64x48" in one_line(capsys)
    command = [
        "upscale",
        str(other),
        str(tmp_path / "o.mp4"),
        "-m",
        "default",
        "--progress",
        "none",
    ]
    assert main([*command, "--plan", str(plan)]) == 2
    assert "not made for the model fast-x4-real" in one_line(capsys)


@pytest.mark.parametrize(
    "flags",
    [
        ["--scale", "3"],
        ["--height", "100"],
        ["--tile", "64"],
        ["--memory", "3"],
        ["--precision", "bf16"],
    ],
)
def test_flags_that_contradict_a_plan_are_refused(
    clip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str]
) -> None:
    command = [
        "upscale",
        str(clip),
        str(tmp_path / "o.mp4"),
        "-m",
        "fast-x4-bi",
        "--device",
        "cpu",
        "--progress",
        "none",
    ]
    assert main([*command, "--precision", "fp32", "--dry-run", "--json"]) == 0
    plan = tmp_path / "plan.json"
    plan.write_text(capsys.readouterr().out)
    assert main([*command, *flags, "--plan", str(plan)]) == 2
    assert "contradicts the plan" in one_line(capsys)
    assert main([*command, "--precision", "fp32", "--plan", str(plan)]) == 0


@pytest.mark.parametrize(
    ("device", "words"), [("cuda:9", "not available"), ("tpuz", "is not a device")]
)
def test_a_plan_for_a_device_that_is_not_there_is_refused(
    clip: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str, words: str
) -> None:
    command = ["upscale", str(clip), str(tmp_path / "o.mp4"), *FAST]
    assert main([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    plan["plan"]["device"] = device
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    assert main([*command, "--plan", str(path)]) in (2, 4)
    assert words in one_line(capsys)


def test_the_rate_of_a_run_is_that_of_its_plan(
    clip: Path, space_time: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "o.mp4"
    assert main(["upscale", str(clip), str(out), *space_time, "--dry-run", "--json"]) == 0
    path = tmp_path / "plan.json"
    path.write_text(capsys.readouterr().out)
    without = [flag for flag in space_time if flag not in ("--fps", "x2")]
    assert (
        main(["upscale", str(clip), str(out), *without, "--progress", "none", "--plan", str(path)])
        == 0
    )
    with open_reader(out) as reader, open_reader(clip) as source:
        doubled, frames = list(reader), list(source)
    assert len(doubled) == 2 * len(frames) - 1
    assert doubled[-1].time_s == pytest.approx(frames[-1].time_s, abs=2e-3)


def test_the_plan_on_a_terminal_of_few_letters(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["upscale", str(clip), str(clip.with_name("o.mp4")), *FAST, "--dry-run"]) == 0
    assert b"64\\xd748" in written.getvalue()


@pytest.fixture
def space_time(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run that doubles the frame rate, with a small model."""
    opened = OpenedModel("space-time", SPACE_TIME, build(SPACE_TIME))
    monkeypatch.setattr(job, "open_model", lambda *_, **__: opened)
    return ["--fps", "x2", "--device", "cpu"]


def test_the_new_frame_rate_is_in_the_plan_and_in_the_events(
    clip: Path, space_time: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["upscale", str(clip), str(clip.with_name("out.mp4")), *space_time]
    assert main([*command, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert f"{2 * FRAMES - 1} (by the header)" in plan
    assert "25 → 50 a second" in plan
    assert main([*command, "--progress", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["total"] for event in events if event["event"] == "progress"} == {2 * FRAMES - 1}
    assert events[-1]["frames"] == 2 * FRAMES - 1


def test_the_look_ahead_of_windows_is_in_the_plan(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = OpenedModel("recurrent", RECURRENT, build(RECURRENT))
    monkeypatch.setattr(job, "open_model", lambda *_, **__: opened)
    command = ["upscale", str(clip), str(clip.with_name("out.mp4")), "--device", "cpu"]
    assert main([*command, "--dry-run"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "whole frames, 60 frames at once, the last 6 as look-ahead" in plan


def test_a_preview_also_shows_the_frame_half_way(clip: Path, space_time: list[str]) -> None:
    png = clip.with_name("out.png")
    assert main(["upscale", str(clip), str(png), *space_time, "--preview", "1"]) == 0
    with Image.open(png) as sheet:
        assert 3 * 128 <= sheet.width < 3 * 128 + 10
        result, half_way = (
            np.asarray(sheet.crop((x, 30, x + 128, 100))).astype(int) for x in (130, 260)
        )
    assert 0 < abs(result - half_way).mean() < 20


@pytest.mark.parametrize(
    ("output", "png"), [("out.mp4", "out.preview.png"), ("look.png", "look.png")]
)
def test_preview_puts_input_and_result_side_by_side(clip: Path, output: str, png: str) -> None:
    assert main(["upscale", str(clip), str(clip.with_name(output)), *FAST, "--preview", "2"]) == 0
    assert sorted(path.name for path in clip.parent.iterdir()) == sorted(["clip.mp4", png])
    with Image.open(clip.with_name(png)) as sheet:
        assert 512 <= sheet.width < 540  # two of 256 and a gap
        assert 2 * 192 <= sheet.height < 2 * 230


def test_compare_writes_a_page_beside_the_output(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clip.with_name("out.mp4")
    assert main(["upscale", str(clip), str(out), *FAST, "--compare"]) == 0
    assert "bicubic-x4" in clip.with_name("out.compare.html").read_text("utf-8")
    assert "out.compare.html" in capsys.readouterr().err


def test_a_missing_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(tmp_path / "no.mp4"), str(tmp_path / "out.mp4")]) == 3
    assert "no.mp4" in one_line(capsys)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (b"just some text\n" * 50, "not a video")]
)
def test_an_input_that_is_no_video(
    tmp_path: Path, content: bytes, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.mp4"
    path.write_bytes(content)
    assert main(["upscale", str(path), str(tmp_path / "out.mp4")]) == 3
    assert word in one_line(capsys)
    assert names_in(tmp_path) == ["odd.mp4"]


def test_an_input_without_video(audio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(audio), str(audio.with_name("out.mp4"))]) == 3
    assert "no video stream" in one_line(capsys)
    assert names_in(audio.parent) == [audio.name]


def test_a_truncated_input_gives_the_frames_that_can_be_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_video(tmp_path / "whole.mkv", frames=60)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    out = tmp_path / "out.mp4"
    assert main(["upscale", str(cut), str(out), *FAST]) == 3
    line = one_line(capsys)
    with av.open(str(out)) as container:
        decoded = sum(1 for _ in container.decode(video=0))
    assert 10 < decoded < 60
    assert f"has the {decoded} frames that could be decoded" in line
    assert f"{decoded} of about 60 frames" in line
    assert names_in(tmp_path) == ["cut.mkv", "out.mp4", "whole.mkv"]
    assert main(["upscale", str(cut), str(out), *FAST, "--overwrite", "--compare"]) == 3
    assert "before and after: " in capsys.readouterr().err
    assert names_in(tmp_path) == ["cut.mkv", "out.compare.html", "out.mp4", "whole.mkv"]


def test_a_video_without_its_end_and_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=60)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert main(["upscale", str(cut), str(tmp_path / "out.mp4"), *FAST]) == 3
    assert "before its index" in one_line(capsys)
    assert names_in(tmp_path) == ["cut.mp4", "whole.mp4"]


def test_a_start_behind_the_end(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), str(clip.with_name("out.mp4")), *FAST, "--start", "7"]) == 3
    assert "no image from 7 s on; its video is 0.40 s long" in one_line(capsys)
    assert names_in(clip.parent) == ["clip.mp4"]


def test_a_folder_that_does_not_exist(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upscale", str(clip), str(clip.parent / "nowhere" / "out.mp4"), *FAST]) == 2
    assert "nowhere" in one_line(capsys)
    assert names_in(clip.parent) == ["clip.mp4"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_that_cannot_be_written(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip.parent / "locked"
    folder.mkdir(mode=0o555)
    assert main(["upscale", str(clip), str(folder / "out.mp4"), *FAST]) == 2
    assert "locked" in one_line(capsys)


def test_a_pseudo_file_system_that_cannot_be_written(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    assert main(["upscale", str(clip), "/proc/out.mp4", *FAST]) == 2
    assert "/proc" in one_line(capsys)


def test_output_equal_to_input(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = clip.read_bytes()
    assert main(["upscale", str(clip), str(clip), *FAST, "--overwrite"]) == 2
    assert "input itself" in one_line(capsys)
    assert clip.read_bytes() == before
    assert names_in(clip.parent) == ["clip.mp4"]


def test_an_existing_output_is_kept_unless_told_otherwise(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clip.with_name("out.mp4")
    out.write_bytes(b"precious")
    assert main(["upscale", str(clip), str(out), *FAST]) == 2
    assert "--overwrite" in one_line(capsys)
    assert out.read_bytes() == b"precious"
    assert main(["upscale", str(clip), str(out), *FAST, "--overwrite"]) == 0
    assert out.read_bytes() != b"precious"


@pytest.mark.parametrize(
    ("flags", "companion_name"),
    [(["--compare"], "out.compare.html"), (["--preview", "1"], "out.preview.png")],
)
def test_an_existing_companion_is_kept_too(
    clip: Path, flags: list[str], companion_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip.with_name(companion_name).write_bytes(b"precious")
    assert main(["upscale", str(clip), str(clip.with_name("out.mp4")), *FAST, *flags]) == 2
    assert companion_name in one_line(capsys)
    assert clip.with_name(companion_name).read_bytes() == b"precious"
    assert not clip.with_name("out.mp4").exists()


def test_an_unknown_model_suggests_the_nearest(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["upscale", str(clip), str(clip.with_name("out.mp4")), "--model", "bicubik-x4"]) == 2
    )
    assert "bicubic-x4" in one_line(capsys)
    assert names_in(clip.parent) == ["clip.mp4"]


@pytest.mark.parametrize(("source", "output", "code"), [("clip.mp4", "", 2), ("", "out.mp4", 3)])
def test_an_empty_name(
    clip: Path,
    source: str,
    output: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(clip.parent)
    assert main(["upscale", source, output, *FAST]) == code
    assert "has no name" in one_line(capsys)
    assert names_in(clip.parent) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--scale", "2", "--height", "720"], "contradict"),
        (["--preview", "0"], "preview=0"),
        (["--preview", "2", "--compare"], "cannot be combined"),
        (["--tile", "5"], "tile=5"),
        (["--codec", "prores"], "prores"),
        (["--preset", "sluggish"], "ultrafast"),
        (["--fps", "x2"], "bicubic-x4 does not; use a checkpoint of ZoomingSlowMo or TMNet"),
    ],
)
def test_flags_that_make_no_sense(
    clip: Path, flags: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", str(clip), str(clip.with_name("out.mp4")), *FAST, *flags]) == 2
    assert word in one_line(capsys)


@pytest.mark.parametrize("flag", ["--dry-run", "--compare"])
def test_a_pipe_cannot_be_read_twice(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "-", str(tmp_path / "out.mp4"), flag]) == 2
    assert "pipe" in one_line(capsys)


@pytest.mark.parametrize(("output", "word"), [("-", "pipe"), ("images", "no times")])
def test_compare_needs_a_video_file(
    clip: Path,
    output: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(clip.parent)
    assert main(["upscale", "clip.mp4", output, *FAST, "--compare"]) == 2
    assert word in one_line(capsys)
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]


def command(*arguments: str) -> None:
    """`tubelet` itself, for a process of its own."""
    sys.exit(main(list(arguments)))


def test_a_pipe_carries_the_video_and_nothing_else(clip: Path) -> None:
    done = run(command, "upscale", str(clip), "-", "-m", "bicubic", "--progress", "json")
    assert done.code == 0
    assert done.stdout.startswith(b"YUV4MPEG2 ")
    assert len(done.stdout) > FRAMES * 256 * 192 * 3 // 2
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()][-1] == "end"


def test_an_interrupt_while_the_pipe_is_idle(tmp_path: Path) -> None:
    video = make_video(tmp_path / "in.y4m", codec="rawvideo").read_bytes()
    out = str(tmp_path / "out.mp4")
    flags = ("-m", "bicubic", "--progress", "json")
    with start(command, "upscale", "-", out, *flags) as process:
        process.stdin.write(video[: len(video) // 2])
        process.stdin.flush()
        assert any(b'"progress"' in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read().decode()
    assert process.code == 130
    assert error == "tubelet: error: interrupted; no unfinished output is left\n"
    assert names_in(tmp_path) == ["in.y4m"]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More frames than are restored before a signal comes."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return make_video(path, frames=250, size=(160, 120), options={"preset": "ultrafast"})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(
    long_clip: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = str(tmp_path / "out.mp4")
    flags = ("-m", "bicubic", "--progress", "json")
    with start(command, "upscale", str(long_clip), out, *flags) as process:
        assert any(names_in(tmp_path) for _ in process.stdout)  # there is something to remove
        process.send_signal(number)
        error = process.stderr.read().decode()
    assert process.code == code
    assert error.startswith("tubelet: error: ")
    assert error.count("\n") == 1
    assert names_in(tmp_path) == []
