from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers import convolution
from tubelet.layers.convolution import convolve, convolve_add, convolve_doubled, convolve_parts, convolving

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 9, 11), (2, 17, 5), (1, 1, 1), (3, 32, 33)]


def _conv(layout: torch.memory_format) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(12, 8, 3, padding=1).to(memory_format=layout)  # pyright: ignore[reportCallIssue]


def _step_by_step(conv: nn.Conv2d, x: Tensor, slope: float | None) -> Tensor:
    y = functional.conv2d(x, conv.weight, conv.bias, padding=1)
    return y if slope is None else torch.where(y > 0, y, slope * y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slope", [None, 0.0, 0.1])
@pytest.mark.parametrize("grad", [False, True])
def test_equals_step_by_step(
    size: tuple[int, int, int], layout: torch.memory_format, slope: float | None, *, grad: bool
) -> None:
    conv, (batch, height, width) = _conv(layout), size
    x = torch.randn(batch, 12, height, width).contiguous(memory_format=layout)
    expected = _step_by_step(conv, x, slope)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(convolve(conv, x, slope), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(convolve_parts(conv, x.split([3, 4, 5], 1), slope), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(convolve_parts(conv, [x], slope), expected, rtol=0, atol=2e-6)


def _watch_columns(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect what is convolved with half of the products."""
    made, columns = list[Tensor](), convolution.convolve_columns

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        made.append(columns(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(convolution, "convolve_columns", watched)
    return made


@pytest.mark.parametrize("size", SIZES)
def test_half_of_the_products_give_the_same(size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    conv, (batch, height, width) = _conv(torch.channels_last), size
    x, other = (torch.randn(batch, c, height, width).contiguous(memory_format=torch.channels_last) for c in (12, 8))
    parts = [part.contiguous(memory_format=torch.channels_last) for part in x.split([3, 4, 5], 1)]
    monkeypatch.setattr(convolution, "_LEAST_CHANNELS", 1)
    made = _watch_columns(monkeypatch)
    with torch.no_grad(), convolving("as large"):
        for slope in (None, 0.0, 0.1):
            expected = _step_by_step(conv, x, slope)
            torch.testing.assert_close(convolve(conv, x, slope), expected, rtol=0, atol=5e-6)
            torch.testing.assert_close(convolve_parts(conv, parts, slope), expected, rtol=0, atol=5e-6)
        expected = _step_by_step(conv, x, None) + other
        torch.testing.assert_close(convolve_add(conv, x, other), expected, rtol=0, atol=5e-6)
        first = other[:1].contiguous(memory_format=torch.channels_last)
        expected = _step_by_step(conv, x, None) + first
        torch.testing.assert_close(convolve_add(conv, x, first), expected, rtol=0, atol=5e-6)
    assert len(made) == (7 + (batch == 1) if convolution._HAS_ONEDNN else 0)


@pytest.mark.skipif(not convolution._HAS_ONEDNN, reason="no oneDNN for this processor")
@pytest.mark.parametrize(
    ("size", "half"), [((1, 64, 64), True), ((1, 63, 64), False), ((9, 63, 64), False), ((1, 15, 400), False)]
)
def test_half_of_the_products_from_some_size_on(
    size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, *, half: bool
) -> None:
    monkeypatch.setattr(convolution, "_LEAST_PRODUCTS", 64 * 64 * 9 * 64 * 64 // torch.get_num_threads())
    made, conv = _watch_columns(monkeypatch), nn.Conv2d(64, 64, 3, padding=1)
    batch, height, width = size
    x = torch.randn(batch, 64, height, width).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        convolve(conv, x)
        assert bool(made) == half
        made.clear()
        convolve(conv, torch.randn(size[0], 64, 128, 128))  # not pixel by pixel
        with convolving("as written"):
            convolve(conv, torch.randn(1, 64, 128, 128).contiguous(memory_format=torch.channels_last))
    assert not made


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 64, 5, padding=1),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(16, 64, 3, padding=1),
    ],
)
def test_all_products_where_half_would_not_do(conv: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _watch_columns(monkeypatch)
    x = torch.randn(1, conv.in_channels, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), convolving("as large"):
        torch.testing.assert_close(convolve(conv, x), conv(x), rtol=0, atol=5e-6)
    assert not made


def test_sums_with_gradients_are_new() -> None:
    conv, seen = _conv(torch.channels_last), list[Tensor]()
    conv.register_full_backward_hook(lambda *_: seen.append(torch.ones(1)))
    x = torch.randn(1, 12, 4, 4, requires_grad=True)
    convolve_add(conv, x, torch.ones(1, 8, 4, 4)).sum().backward()
    assert seen


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize("grad", [False, True])
def test_doubled_equals_step_by_step(
    size: tuple[int, int, int], layout: torch.memory_format, slope: float | None, *, grad: bool
) -> None:
    conv, (batch, height, width) = _conv(layout), size
    x = torch.randn(batch, 12, height, width).contiguous(memory_format=layout)
    expected = _step_by_step(conv, x.repeat_interleave(2, 2).repeat_interleave(2, 3), slope)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(convolve_doubled(conv, x, slope), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_doubled_with_a_convolution_of_another_shape(conv: nn.Conv2d) -> None:
    x = torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        expected = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        torch.testing.assert_close(convolve_doubled(conv, x), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("layouts", [(a, b) for a in LAYOUTS for b in LAYOUTS])
@pytest.mark.parametrize("grad", [False, True])
def test_sum_leaves_its_inputs_alone(layouts: tuple[torch.memory_format, torch.memory_format], *, grad: bool) -> None:
    conv = _conv(layouts[0])
    x = torch.randn(2, 12, 7, 5).contiguous(memory_format=layouts[0])
    other = torch.randn(2, 8, 7, 5).contiguous(memory_format=layouts[1])
    before = x.clone(), other.clone()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(
            convolve_add(conv, x, other), _step_by_step(conv, x, None) + other, rtol=0, atol=2e-6
        )
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])


@pytest.mark.skipif(not convolution._HAS_ONEDNN, reason="no oneDNN for this processor")
@pytest.mark.parametrize(
    "run",
    [
        lambda conv, x: convolve(conv, x, 0.1),
        lambda conv, x: convolve_add(conv, x, x[:, :8].contiguous(memory_format=torch.channels_last)),
        lambda conv, x: convolve_parts(conv, x.split([6, 6], 1), 0.1),
    ],
)
def test_fuses_without_gradients_alone(
    run: Callable[[nn.Conv2d, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = _conv(torch.channels_last)
    x = torch.randn(1, 12, 6, 6).contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(convolution, "_operators", lambda: pytest.fail("fused"))
    run(conv, x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        run(conv, x)
    with torch.no_grad():
        run(_conv(torch.channels_last).double(), x.double())
        run(_conv(torch.channels_last).to("meta"), x.to("meta"))
    with torch.no_grad(), pytest.raises(pytest.fail.Exception, match="fused"):
        run(_conv(torch.channels_last), x)


def test_hooks_see_what_comes_and_goes() -> None:
    conv, seen = _conv(torch.channels_last), list[Tensor]()
    conv.register_forward_hook(lambda _, inputs, y: seen.extend((*inputs, y.clone())))
    x = torch.randn(1, 12, 4, 4)
    with torch.no_grad():
        convolve(conv, x, 0.1)
    assert torch.equal(seen[0], x)
    torch.testing.assert_close(seen[1], _step_by_step(conv, x, None))


def test_padding_that_onednn_does_not_know() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate")
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(convolve(conv, x), conv(x))
        torch.testing.assert_close(convolve_parts(conv, x.split(1, 1)), conv(x))
