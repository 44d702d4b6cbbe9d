import shutil
import stat
import sys

import pytest
import torch

from tubelet.errors import InputError, ResourceError
from tubelet.metrics import make_meter

FAKE = """#!{python}
import json, sys
if "-filters" in sys.argv:
    print(" .. libvmaf           VV->V      Calculate the VMAF.")
    sys.exit()
width, height = map(int, sys.argv[sys.argv.index("-s") + 1].split("x"))
graph = sys.argv[sys.argv.index("-lavfi") + 1]
if {fail}:
    sys.stdin.buffer.read(100)
    sys.exit("something is wrong\\nthe last line says it")
frames = []
while data := sys.stdin.buffer.read(3 * width * height):
    luma, half = data[: width * height], width * height // 2
    assert set(data[width * height :]) == {{128}}
    worst = max(abs(a - b) for a, b in zip(luma[:half], luma[half:]))
    frames.append({{"frameNum": len(frames), "metrics": {{"vmaf": 100 - worst}}}})
path = graph.split("log_path=")[1].split(":")[0]
json.dump({{"frames": frames, "graph": graph}}, open(path, "w"))
"""


def install(folder, monkeypatch, *, fail=False):
    """Put a program in PATH that answers as an ffmpeg with libvmaf would."""
    program = folder / "ffmpeg"
    program.write_text(FAKE.format(python=sys.executable, fail=fail))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def frame() -> torch.Tensor:
    return torch.full((3, 33, 47), 100 / 255)


def test_frames_go_side_by_side_to_ffmpeg(tmp_path, monkeypatch, frame):
    install(tmp_path, monkeypatch)
    meter = make_meter("vmaf", border=2)
    for level in (100, 110, 90):
        sr = frame.clone()
        sr[:, 20, 20] = level / 255
        # Within the border, so without influence.
        sr[:, 0, 0] = 1
        meter.update(sr, frame)
    # Luma 102 against 102, 110 and 93.
    assert meter.values() == [100, 92, 91]
    assert meter.mean() == pytest.approx(283 / 3)


def test_the_last_message_of_ffmpeg_is_in_the_error(tmp_path, monkeypatch, frame):
    install(tmp_path, monkeypatch, fail=True)
    meter = make_meter("vmaf")
    meter.update(frame, frame)
    with pytest.raises(ResourceError, match="could not compute VMAF: the last line says it"):
        meter.values()


def test_an_absent_ffmpeg_or_libvmaf_or_model_is_one_line(tmp_path, monkeypatch, frame):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="there is no ffmpeg in PATH"):
        make_meter("vmaf")
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho ' ... vmafmotion V->V'\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    with pytest.raises(ResourceError, match="ffmpeg was built without"):
        make_meter("vmaf")
    install(tmp_path, monkeypatch)
    with pytest.raises(ResourceError, match=r"there is no .*absent\.json"):
        make_meter("vmaf", weights=tmp_path / "absent.json")
    with pytest.raises(InputError, match="vmaf, frame 0 has no reference"):
        make_meter("vmaf").update(frame, None)


def test_a_meter_that_is_dropped_ends_its_ffmpeg(tmp_path, monkeypatch, frame):
    import gc
    import weakref

    install(tmp_path, monkeypatch)
    meter = make_meter("vmaf")
    meter.update(frame, frame)
    process = meter._process
    gone = weakref.ref(meter)
    del meter
    gc.collect()
    assert gone() is None
    assert process.poll() is not None


@pytest.mark.slow
def test_the_real_libvmaf_agrees_where_there_is_one(frame):
    try:
        meter = make_meter("vmaf")
    except ResourceError as error:
        pytest.skip(str(error))
    assert shutil.which("ffmpeg")
    image = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        meter.update(image, image)
    assert meter.mean() > 90
