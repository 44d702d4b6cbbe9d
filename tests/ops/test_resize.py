import math

import pytest
import torch
from torch.autograd import gradcheck

from helpers.recordings import recorded, recorded_input
from tubelet.ops import imresize, resample


@pytest.mark.parametrize("case", ["imresize_even", "imresize_odd", "imresize_up", "imresize_gray"])
def test_equals_recorded_values(recordings, case):
    description, outputs = recorded(recordings, case)
    x = recorded_input(recordings, case, tuple(description["inputs"]["x"]))
    compared = 0
    for (scale, antialiased), expected in zip(description["variants"], outputs, strict=True):
        if antialiased:
            torch.testing.assert_close(imresize(x, scale), expected, atol=1e-5, rtol=0)
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("scale", [0.25, 0.5, 1 / 3, 2, 4, 1.5])
@pytest.mark.parametrize("size", [(37, 300), (8, 9)])
def test_blocks_agree_with_a_direct_sum(scale, size):
    """Compare the banded matrix products with the definition, at one output pixel."""
    x = torch.rand(*size, dtype=torch.float64)
    out = imresize(x, scale)
    assert out.shape == tuple(math.ceil(n * scale - 1e-9) for n in size)
    row = out.shape[0] // 2
    column = out.shape[1] - 1
    expected = _weights(size[0], row, scale) @ x @ _weights(size[1], column, scale)
    torch.testing.assert_close(out[row, column], expected)


def _weights(size: int, out: int, scale: float) -> torch.Tensor:
    shrink = min(scale, 1.0)
    center = (out + 0.5) / scale - 0.5
    weights = torch.zeros(size, dtype=torch.float64)
    for tap in range(math.floor(center - 2 / shrink), math.ceil(center + 2 / shrink) + 1):
        d = abs(shrink * (center - tap))
        inner_weight = 1.5 * d**3 - 2.5 * d**2 + 1
        outer_weight = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        value = 0.0
        if d <= 1:
            value = inner_weight
        elif d <= 2:
            value = outer_weight
        position = tap % (2 * size)
        weights[position if position < size else 2 * size - 1 - position] += value
    return weights / weights.sum()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bilinear_enlarges_as_torch_does(scale):
    x = torch.rand(2, 3, 37, 9)
    out = resample(x, (37 * scale, 9 * scale), kernel="bilinear")
    expected = torch.nn.functional.interpolate(x, scale_factor=float(scale), mode="bilinear")
    torch.testing.assert_close(out, expected, atol=5e-6, rtol=0)


def test_autocast_changes_nothing():
    x = torch.rand(3, 20, 30)
    with torch.autocast("cpu", torch.bfloat16):
        out = resample(x, (40, 60))
    assert torch.equal(out, resample(x, (40, 60)))


def test_is_differentiable():
    x = torch.rand(1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: imresize(t, 0.5), x)
    assert gradcheck(lambda t: imresize(t, 2), x)


def test_u8_rounds_after_each_pass():
    x = (torch.rand(3, 16, 16) * 255).round() / 255
    twice = imresize(x, 0.25, rounding="u8")
    assert torch.equal((twice * 255).round() / 255, twice)
    once = (imresize(x, 0.25).clamp(0, 1) * 255).round() / 255
    assert 0 < (twice - once).abs().max() <= 3 / 255


def test_constant_stays_constant_and_batches_agree():
    x = torch.rand(2, 4, 3, 20, 30)
    torch.testing.assert_close(
        imresize(torch.full_like(x, 0.3), 0.25), torch.full((2, 4, 3, 5, 8), 0.3)
    )
    torch.testing.assert_close(imresize(x, 2)[1, 2], imresize(x[1, 2], 2))


def test_exact_size_and_lanczos():
    x = torch.rand(3, 36, 64)
    assert resample(x, (50, 90)).shape == (3, 50, 90)
    assert torch.equal(resample(x, (36, 64), kernel="lanczos3"), x)
    ramp = torch.linspace(0, 1, 64).expand(3, 36, 64)
    inner = resample(ramp, (72, 128), kernel="lanczos3")[0, 36, 12:-12].diff()
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5 / 63), atol=1e-3, rtol=0)


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="scale=0 must be positive"):
        imresize(torch.rand(3, 4, 4), 0)
    with pytest.raises(ValueError, match="uint8"):
        imresize(torch.zeros(3, 4, 4, dtype=torch.uint8), 2)


def test_what_inference_has_built_serves_a_training():
    image = torch.rand(1, 3, 11, 13, dtype=torch.float64)
    with torch.inference_mode():
        resample(image, (23, 29))
    image.requires_grad_()
    resample(image, (23, 29)).square().sum().backward()
    assert image.grad is not None
