import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers import upsampling
from tubelet.layers.convolution import ConvAct, LeakyReLU, UpsampleConv
from tubelet.layers.inference import prepare_for_inference
from tubelet.layers.upsampling import (
    TailConvs,
    enlarge,
    repeat_and_convolve,
    shuffle_to_image,
    shuffle_x4,
    shuffle_x4_convs,
)


def _convs() -> TailConvs:
    torch.manual_seed(0)
    return shuffle_x4_convs(6, 8)


def _plain(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return functional.conv2d(x, conv.weight, conv.bias, padding=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_layers_written_plainly(layout: torch.memory_format) -> None:
    x = torch.randn(2, 6, 7, 5)
    base = torch.rand(2, 3, 28, 20)
    convs = _convs()
    first, second, detail, last = convs
    y = functional.leaky_relu(functional.pixel_shuffle(_plain(first, x), 2), 0.1)
    y = functional.leaky_relu(functional.pixel_shuffle(_plain(second, y), 2), 0.1)
    expected = _plain(last, functional.leaky_relu(_plain(detail, y), 0.1)) + base
    for conv in convs:
        conv.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(shuffle_x4(x, base, convs), expected, rtol=0, atol=1e-6)
    for conv in convs:
        prepare_for_inference(conv)
    with torch.no_grad():
        torch.testing.assert_close(shuffle_x4(x, base, convs), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("height", [8, 9, 17, 26])
def test_strips_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, height: int, layout: torch.memory_format
) -> None:
    # Strips of 8 lines.
    monkeypatch.setattr(upsampling, "STRIP_BYTES", 1)
    x = torch.randn(2, 6, height, 5).contiguous(memory_format=layout)
    base = torch.rand(2, 3, 4 * height, 20)
    convs = _convs()
    whole = shuffle_x4(x, base, convs)
    calls: list[int] = []
    convs[0].register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[2]))
    for conv in convs:
        prepare_for_inference(conv)
    with torch.no_grad():
        torch.testing.assert_close(shuffle_x4(x, base, convs), whole, rtol=0, atol=1e-6)
    assert max(calls) <= 8 + 4
    assert len(calls) == -(-height // 8)


@pytest.mark.parametrize("height", [1, 9, 21])
@pytest.mark.parametrize("doublings", [0, 1, 2, 3])
def test_repeated_pixels_in_strips_equal_the_layers_written_plainly(
    monkeypatch: pytest.MonkeyPatch, doublings: int, height: int
) -> None:
    # Strips of 8 lines.
    monkeypatch.setattr(upsampling, "STRIP_BYTES", 1)
    torch.manual_seed(0)
    ups = [UpsampleConv(6, 6, act=LeakyReLU(0.2)) for _ in range(doublings)]
    detail = ConvAct(6, 6, act=LeakyReLU(0.2))
    last = ConvAct(6, 3)
    x = torch.randn(2, 6, height, 5)
    y = x
    for conv in ups:
        y = functional.leaky_relu(
            _plain(conv, y.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2
        )
    expected = _plain(last, functional.leaky_relu(_plain(detail, y), 0.2))
    torch.testing.assert_close(
        repeat_and_convolve(x, ups, detail, last), expected, rtol=0, atol=1e-6
    )
    calls: list[int] = []
    last.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape[2]))
    for conv in (*ups, detail, last):
        prepare_for_inference(conv)
    with torch.no_grad():
        torch.testing.assert_close(
            repeat_and_convolve(x, ups, detail, last), expected, rtol=0, atol=1e-6
        )
    assert len(calls) == -(-height // 8)
    assert max(calls) <= 8 * 2**doublings + 2


def test_the_sum_keeps_the_precision_of_the_image() -> None:
    base = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert shuffle_x4(torch.randn(1, 6, 2, 2), base, _convs()).dtype == torch.float32


def test_gradients_reach_everything() -> None:
    x = torch.randn(1, 6, 4, 3, requires_grad=True)
    base = torch.rand(1, 3, 16, 12)
    convs = _convs()
    shuffle_x4(x, base, convs).square().mean().backward()
    assert x.grad is not None
    assert x.grad.all()
    assert all(p.grad is not None and p.grad.any() for conv in convs for p in conv.parameters())


def test_enlarge_keeps_the_mean_and_reaches_the_size() -> None:
    frame = torch.rand(1, 3, 3, 5)
    assert enlarge(frame, 4).shape == (1, 3, 12, 20)
    torch.testing.assert_close(
        enlarge(torch.full_like(frame, 0.3), 4), torch.full((1, 3, 12, 20), 0.3)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "factor"), [(1, 4), (3, 2), (3, 3)])
def test_channels_become_pixels_of_planes(
    channels: int, factor: int, layout: torch.memory_format
) -> None:
    x = torch.randn(2, channels * factor**2, 5, 7).contiguous(memory_format=layout)
    image = shuffle_to_image(x, factor)
    assert torch.equal(image, functional.pixel_shuffle(x, factor))
    assert image.is_contiguous()


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("scale", [2, 4])
def test_images_and_features_are_enlarged_bilinearly(channels: int, scale: int) -> None:
    x = torch.rand(2, channels, 9, 14).contiguous(memory_format=torch.channels_last)
    expected = functional.interpolate(x, scale_factor=float(scale), mode="bilinear")
    torch.testing.assert_close(enlarge(x, scale), expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(enlarge(x, scale), enlarge(x.clone(), scale))
        assert enlarge(x, scale).dtype == torch.float32
