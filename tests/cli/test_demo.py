"""`tubelet demo` makes a clip, restores it, and writes the page."""

from pathlib import Path

import av
import pytest

from tubelet.cli import demo, main


@pytest.mark.slow
def test_demo_leaves_three_videos_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path / "show"), "--frames", "8", "--model", "bicubic"]) == 0
    folder = tmp_path / "show"
    names = [
        "street-input.mp4",
        "street-original.mp4",
        "street-restored.mp4",
        "street.compare.html",
    ]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name, size in (("street-input.mp4", (320, 180)), ("street-restored.mp4", (1280, 720))):
        with av.open(str(folder / name)) as container:
            assert len(container.streams.audio) == 1
            assert [(f.width, f.height) for f in container.decode(video=0)] == [size] * 8
    output = capsys.readouterr().out
    assert "street.compare.html" in output
    assert "PSNR of luma" in output


@pytest.mark.parametrize("frames", ["3", "1001"])
def test_a_length_out_of_range(frames: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--frames", frames]) == 2
    assert f"frames={frames}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["demo", str(tmp_path / "file" / "show")]) == 2
    assert "cannot create the folder" in capsys.readouterr().err


def test_no_browser_opens_in_automation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(demo.sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(demo.sys, "platform", "linux")
    monkeypatch.delenv("CI", raising=False)
    assert demo._has_desktop()
    monkeypatch.setenv("CI", "true")
    assert not demo._has_desktop()
