import math

import pytest
import torch

from tubelet.errors import InputError, RequestError, ResourceError
from tubelet.metrics import METRICS, make_meter, metric_info, psnr, ssim

ALWAYS = [name for name in (info.name for info in METRICS) if name.startswith(("psnr", "ssim"))]


def test_the_table_is_whole():
    names = [info.name for info in METRICS]
    assert len(set(names)) == len(names)
    assert {
        "psnr-y",
        "psnr-rgb",
        "ssim-y",
        "ssim-rgb",
        "lpips",
        "dists",
        "clip-iqa",
        "niqe",
    } <= set(names)
    assert {"warp-error", "tof", "tlpips", "flicker", "vmaf"} <= set(names)
    for info in METRICS:
        assert info.low < info.high
        assert info.summary
        assert metric_info(info.name) is info


def test_every_metric_is_in_the_document():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    for info in METRICS:
        row = next(
            (line for line in text.splitlines() if line.startswith(f"| `{info.name}` |")), ""
        )
        assert f"| {info.direction} |" in row, (
            f"{info.name} has no row in docs/metrics.md, or another direction"
        )


def test_an_unknown_name_has_a_near_one():
    with pytest.raises(RequestError, match="no metric 'PSNR-Y'; did you mean psnr-y"):
        make_meter("PSNR-Y")
    with pytest.raises(RequestError, match="known are psnr-y"):
        metric_info("qqqq")
    with pytest.raises(RequestError, match="border=-1"):
        make_meter("psnr-y", border=-1)
    with pytest.raises(ResourceError, match="device 'cuda:99' cannot be used"):
        make_meter("psnr-y", device="cuda:99")


@pytest.mark.parametrize("name", ALWAYS)
def test_meters_give_what_the_functions_give(name):
    sr = torch.rand(3, 3, 24, 30)
    gt = torch.rand(3, 3, 24, 30)
    meter = make_meter(name, border=4)
    for pair in zip(sr, gt, strict=True):
        meter.update(*pair)
    function = psnr if name.startswith("psnr") else ssim
    expected = function(sr, gt, channel=name.split("-")[1], border=4)
    assert meter.values() == pytest.approx(expected.tolist())
    assert meter.mean() == pytest.approx(expected.mean().item())


def test_a_meter_without_frames_has_no_score():
    assert make_meter("psnr-y").values() == []
    assert math.isnan(make_meter("psnr-y").mean())


def test_frames_that_do_not_fit_are_one_clear_line():
    frame = torch.rand(3, 24, 30)
    with pytest.raises(InputError, match="psnr-y, frame 0 has no reference"):
        make_meter("psnr-y").update(frame, None)
    with pytest.raises(InputError, match="frame 0 is 30×24 but its reference is 30×20"):
        make_meter("psnr-y").update(frame, frame[:, :20])
    with pytest.raises(InputError, match=r"must be \(3, H, W\)"):
        make_meter("psnr-y").update(frame[:1], frame[:1])
    with pytest.raises(InputError, match="ssim-y: SSIM needs at least 11×11"):
        make_meter("ssim-y").update(frame[:, :8], frame[:, :8])
    meter = make_meter("psnr-y")
    meter.update(frame, frame)
    with pytest.raises(InputError, match="frame 1 is 30×20 after frames of 30×24"):
        meter.update(frame[:, :20], frame[:, :20])
    assert meter.values() == [math.inf]
