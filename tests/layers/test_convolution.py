from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers import convolution
from tubelet.layers.convolution import (
    Activation,
    ConvAct,
    ConvAdd,
    ConvCat,
    LeakyReLU,
    ShuffleConv,
    UpsampleConv,
)
from tubelet.layers.inference import Backend, prepare_for_inference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 9, 11), (2, 17, 5), (1, 1, 1), (3, 32, 33)]
ACTIVATIONS: list[Activation] = ["none", "relu", LeakyReLU(0.1)]
FORMS: list[Backend] = ["reference", "auto", "unfused"]

needs_onednn = pytest.mark.skipif(
    not convolution._HAS_ONEDNN, reason="no oneDNN for this processor"
)


def _built(layer: nn.Module, layout: torch.memory_format, backend: Backend) -> Any:
    layer = layer.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    return layer if backend == "reference" else prepare_for_inference(layer, backend)


def _draw(size: tuple[int, int, int], channels: int, layout: torch.memory_format) -> Tensor:
    batch, height, width = size
    return torch.randn(batch, channels, height, width).contiguous(memory_format=layout)


def _plain(conv: nn.Conv2d, x: Tensor, act: Activation = "none") -> Tensor:
    y = functional.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)
    if act == "none":
        return y
    slope = act.slope if isinstance(act, LeakyReLU) else 0.0
    return torch.where(y > 0, y, slope * y)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_equals_plain_operations(
    size: tuple[int, int, int], layout: torch.memory_format, act: Activation, backend: Backend
) -> None:
    torch.manual_seed(0)
    x = _draw(size, 12, layout)
    one = _built(ConvAct(12, 8, act=act), layout, backend)
    many = _built(ConvCat(12, 8, act=act, bias=False), layout, backend)
    wide = _built(ConvAct(12, 8, 5, act=act), layout, backend)
    with torch.no_grad():
        torch.testing.assert_close(one(x), _plain(one, x, act), rtol=0, atol=2e-6)
        torch.testing.assert_close(wide(x), _plain(wide, x, act), rtol=0, atol=2e-6)
        for parts in (x.split([3, 4, 5], 1), [x]):
            torch.testing.assert_close(many(*parts), _plain(many, x, act), rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS])
def test_a_sum_leaves_its_inputs_alone(
    layouts: tuple[torch.memory_format, torch.memory_format], backend: Backend
) -> None:
    torch.manual_seed(0)
    conv = _built(ConvAdd(12, 8), layouts[0], backend)
    x = _draw((2, 7, 5), 12, layouts[0])
    other = _draw((2, 7, 5), 8, layouts[1])
    before = x.clone(), other.clone()
    with torch.no_grad():
        torch.testing.assert_close(conv(x, other), _plain(conv, x) + other, rtol=0, atol=2e-6)
        # Broadcast along batch and height.
        row = other[:1, :, :, :1]
        torch.testing.assert_close(conv(x, row), _plain(conv, x) + row, rtol=0, atol=2e-6)
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("act", ["none", LeakyReLU(0.2)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_doubled_equals_plain_operations(
    size: tuple[int, int, int], layout: torch.memory_format, act: Activation, backend: Backend
) -> None:
    torch.manual_seed(0)
    conv = _built(UpsampleConv(12, 8, act=act), layout, backend)
    x = _draw(size, 12, layout)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), _plain(conv, repeated, act), rtol=0, atol=2e-6)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradients_of_the_reference_form_are_those_of_plain_operations(act: Activation) -> None:
    torch.manual_seed(0)
    conv = ConvAct(4, 4, act=act)
    add = ConvAdd(4, 4)
    cat = ConvCat(8, 4, act=act)
    up = UpsampleConv(4, 4, act=act)
    x = torch.randn(1, 4, 5, 6, requires_grad=True)

    def grads(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            y.square().sum(), [x, conv.weight, add.weight, cat.weight, up.weight]
        )

    own = grads(up(cat(x, add(conv(x), x))))
    y = torch.cat([x, _plain(add, _plain(conv, x, act)) + x], 1)
    repeated = functional.interpolate(_plain(cat, y, act), scale_factor=2.0, mode="nearest")
    for grad, expected in zip(own, grads(_plain(up, repeated, act)), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_a_sum_can_have_hooks_of_gradients() -> None:
    """Such a hook makes the result of the convolution a view, which a sum in place would break."""
    conv = ConvAdd(12, 8)
    seen = list[Tensor]()
    conv.register_full_backward_hook(lambda *_: seen.append(torch.ones(1)))
    conv(torch.randn(1, 12, 4, 4, requires_grad=True), torch.ones(1, 8, 4, 4)).sum().backward()
    assert seen


def _watch_winograd(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect the results of Winograd's algorithm."""
    results = list[Tensor]()
    compute = convolution.winograd_conv3x3

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        results.append(compute(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(convolution, "winograd_conv3x3", watched)
    return results


@needs_onednn
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_half_the_multiplications_give_the_same(
    size: tuple[int, int, int], act: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "MIN_CHANNELS", 1)
    results = _watch_winograd(monkeypatch)
    layout = torch.channels_last
    x = _draw(size, 12, layout)
    other = _draw(size, 8, layout)
    parts = [part.contiguous(memory_format=layout) for part in x.split([3, 4, 5], 1)]
    one = _built(ConvAct(12, 8, act=act), layout, "winograd")
    many = _built(ConvCat(12, 8, act=act), layout, "winograd")
    add = _built(ConvAdd(12, 8), layout, "winograd")
    with torch.no_grad():
        torch.testing.assert_close(one(x), _plain(one, x, act), rtol=0, atol=5e-6)
        torch.testing.assert_close(many(*parts), _plain(many, x, act), rtol=0, atol=5e-6)
        torch.testing.assert_close(add(x, other), _plain(add, x) + other, rtol=0, atol=5e-6)
    assert len(results) == 3


@needs_onednn
@pytest.mark.parametrize(
    ("size", "half"),
    [((1, 64, 64), True), ((1, 63, 64), False), ((9, 63, 64), False), ((1, 15, 400), False)],
)
def test_half_the_multiplications_from_some_size_on(
    size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, *, half: bool
) -> None:
    smallest = 64 * 64 * 9 * 64 * 64 // torch.get_num_threads()
    monkeypatch.setattr(convolution, "MIN_MULTIPLICATIONS", smallest)
    results = _watch_winograd(monkeypatch)
    conv = prepare_for_inference(ConvAct(64, 64))
    with torch.no_grad():
        conv(_draw(size, 64, torch.channels_last))
        assert bool(results) == half
        results.clear()
        conv(_draw((size[0], 128, 128), 64, torch.contiguous_format))
        prepare_for_inference(conv, "unfused")(_draw((1, 128, 128), 64, torch.channels_last))
    assert not results


@pytest.mark.parametrize("conv", [ConvAct(64, 64, 5), ConvAct(64, 64, 1), ConvAct(16, 64)])
def test_all_multiplications_where_half_would_not_do(
    conv: ConvAct, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = _watch_winograd(monkeypatch)
    x = _draw((1, 8, 8), conv.in_channels, torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(
            prepare_for_inference(conv, "winograd")(x), _plain(conv, x), rtol=0, atol=5e-6
        )
    assert not results


@needs_onednn
@pytest.mark.parametrize(
    ("build", "run"),
    [
        (lambda: ConvAct(12, 8, act=LeakyReLU(0.1)), lambda conv, x: conv(x)),
        (
            lambda: ConvAdd(12, 8),
            lambda conv, x: conv(x, x[:, :8].contiguous(memory_format=torch.channels_last)),
        ),
        (lambda: ConvCat(12, 8), lambda conv, x: conv(*x.split([6, 6], 1))),
    ],
)
def test_fuses_in_float32_and_bfloat16_on_a_cpu_alone(
    build: Callable[[], nn.Conv2d],
    run: Callable[[nn.Conv2d, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = _draw((1, 6, 6), 12, torch.channels_last)
    monkeypatch.setattr(convolution, "_operators", lambda: pytest.fail("fused"))
    with torch.no_grad():
        run(build(), x)
        run(prepare_for_inference(build()).double(), x.double())
        run(prepare_for_inference(build()).to("meta"), x.to("meta"))
        with torch.autocast("cpu", torch.float16):
            assert run(prepare_for_inference(build()), x).dtype == torch.float16
        with pytest.raises(pytest.fail.Exception, match="fused"):
            run(prepare_for_inference(build()), x)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(pytest.fail.Exception, match="fused"),
        ):
            run(prepare_for_inference(build()), x)


@pytest.mark.skipif(not convolution._has_bfloat16_kernels(), reason="no bfloat16 in oneDNN")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_rounded_once_for_each_layer(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = _draw((2, 9, 11), 12, layout)
    other = _draw((2, 9, 11), 8, layout)
    act = LeakyReLU(0.1)
    conv = _built(ConvAct(12, 8, act=act), layout, "auto")
    add = _built(ConvAdd(12, 8), layout, "auto")
    cat = _built(ConvCat(12, 8, act=act), layout, "auto")
    shuffle = _built(ShuffleConv(12, 2, act=act), layout, "auto")
    double = _built(UpsampleConv(12, 8, act=act), layout, "auto")
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            results = [conv(x), add(x, other), cat(*x.split([3, 9], 1)), shuffle(x), double(x)]
        expected = [
            _plain(conv, x, act),
            _plain(add, x) + other,
            _plain(cat, x, act),
            functional.pixel_shuffle(_plain(shuffle, x, act), 2),
            _plain(double, repeated, act),
        ]
    for result, plain in zip(results, expected, strict=True):
        assert result.dtype == torch.bfloat16
        # Eight digits of inputs, weights and result; a sum of 108 products averages their errors.
        torch.testing.assert_close(result.float(), plain, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_shuffled_equals_plain_operations(
    size: tuple[int, int, int], layout: torch.memory_format, factor: int, backend: Backend
) -> None:
    torch.manual_seed(0)
    act = LeakyReLU(0.2)
    conv = _built(ShuffleConv(12, 5, act=act, factor=factor), layout, backend)
    x = _draw(size, 12, layout)
    expected = functional.pixel_shuffle(_plain(conv, x, act), factor)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=2e-6)
