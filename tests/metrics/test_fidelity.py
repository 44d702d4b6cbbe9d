import math

import pytest
import torch

from helpers.recordings import recorded, rules
from tubelet.metrics import psnr, ssim


def _images(recordings, row):
    """Build the two 8-bit images of a recorded row, (3, H, W) RGB in [0, 1].

    The recorded channel order is BGR.
    """
    make = rules(recordings)
    shape = tuple(row["shape"])
    x = make.image(row["key"], shape)
    kind, amount = row["distortion"]
    if kind == "noise":
        count = math.prod(shape)
        noise = 20 * make.fill("noise:" + row["key"], (count,)).reshape(shape)
        y = x + (noise * (amount / 255)).astype("float32")
    elif kind == "shift":
        y = torch.from_numpy(x).roll(amount, 2).numpy()
    else:
        y = (x - 0.5) * (amount if kind == "scale" else 1) + 0.5
    return (torch.from_numpy(p).clamp(0, 1).flip(0) for p in (x, y))


def test_equals_recorded_values(recordings):
    description, _ = recorded(recordings, "psnr_ssim")
    rows = [row for row in description["results"] if row["shape"][0] == 3]
    assert len(rows) == 24
    for row in rows:
        x, y = _images(recordings, row)
        convention = {"channel": "y" if row["y_channel"] else "rgb", "border": row["crop_border"]}
        value = psnr(y, x, **convention).item()
        expected = float(row["psnr"])
        assert value == expected or abs(value - expected) < 1e-4, row
        assert abs(ssim(y, x, **convention).item() - row["ssim"]) < 1e-4, row


def test_psnr_of_a_known_error():
    gt = torch.full((3, 16, 16), 100 / 255)
    sr = torch.full((3, 16, 16), 110 / 255)
    assert psnr(sr, gt, channel="rgb").item() == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(sr, gt).item() == pytest.approx(
        20 * math.log10(255 / (10 * (65.481 + 128.553 + 24.966) / 255))
    )


def test_batches_and_borders():
    sr = torch.rand(2, 4, 3, 24, 30)
    gt = torch.rand(2, 4, 3, 24, 30)
    for metric in (psnr, ssim):
        assert metric(sr, gt).shape == (2, 4)
        assert metric(sr, gt)[1, 3].item() == pytest.approx(metric(sr[1, 3], gt[1, 3]).item())
    assert psnr(sr, gt, border=4)[0, 0] == psnr(sr[0, 0, :, 4:-4, 4:-4], gt[0, 0, :, 4:-4, 4:-4])


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    gt = torch.rand(3, 32, 32)
    assert ssim(gt, gt).item() == pytest.approx(1)
    assert (
        ssim(gt + 0.2 * torch.randn(3, 32, 32), gt)
        < ssim(gt + 0.02 * torch.randn(3, 32, 32), gt)
        < 1
    )


def _ssim_by_definition(sr, gt):
    """One channel in [0, 255], by a two-dimensional convolution of the whole image."""
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    mean_a, mean_b, aa, bb, ab = (
        torch.nn.functional.conv2d(x[None], window)[0] for x in (sr, gt, sr * sr, gt * gt, sr * gt)
    )
    top = (2 * mean_a * mean_b + 6.5025) * (2 * (ab - mean_a * mean_b) + 58.5225)
    return (
        top / ((mean_a**2 + mean_b**2 + 6.5025) * (aa + bb - mean_a**2 - mean_b**2 + 58.5225))
    ).mean()


@pytest.mark.parametrize("height", [73, 74, 75, 138, 150])
def test_ssim_of_tall_images_counts_every_row_once(height):
    gt = torch.randint(0, 256, (3, height, 20)).double()
    sr = (gt + torch.randint(-9, 10, gt.shape)).clamp(0, 255)
    expected = sum(_ssim_by_definition(a[None], b[None]) for a, b in zip(sr, gt, strict=True)) / 3
    assert ssim(sr / 255, gt / 255, channel="rgb").item() == pytest.approx(
        expected.item(), abs=1e-9
    )


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="must agree"):
        psnr(torch.rand(3, 8, 8), torch.rand(3, 8, 9))
    with pytest.raises(ValueError, match="border=4 leaves nothing"):
        psnr(torch.rand(3, 8, 8), torch.rand(3, 8, 8), border=4)
    with pytest.raises(ValueError, match="11×11"):
        ssim(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="'y' or 'rgb'"):
        psnr(torch.rand(3, 8, 8), torch.rand(3, 8, 8), channel="luma")
