from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tubelet.layers import winograd
from tubelet.layers.winograd import Region, TransformCache, winograd_conv3x3


def _conv1x3(x: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor | None) -> Tensor:
    y = functional.conv2d(x, weight, bias, padding=(0, 1))
    return y if total is None else total.add_(y)


def _convolve(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return winograd_conv3x3(parts, weight, bias, conv1x3=_conv1x3, epilogue=lambda _, __: None)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "size", [(1, 12, 7), (3, 32, 9), (1, 1, 1), (2, 5, 3), (1, 6, 2), (2, 11, 4)]
)
@pytest.mark.parametrize("transform_bytes", [1, 4000, 2**20])
def test_is_exact(
    size: tuple[int, int, int], transform_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(winograd, "TRANSFORM_BYTES", transform_bytes)
    batch, height, width = size
    x = _draw(batch, 5, height, width)
    weight = torch.randn(4, 5, 3, 3).double()
    bias = torch.randn(4).double()
    before = x.clone()
    expected = functional.conv2d(x, weight, bias, padding=1)
    y = _convolve([x], weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    parts = [part.contiguous(memory_format=torch.channels_last) for part in x.split([2, 3], 1)]
    torch.testing.assert_close(_convolve(parts, weight, bias), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        _convolve([x], weight), expected - bias[:, None, None], rtol=0, atol=1e-12
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize("height", [8, 9])
def test_strips_are_finished_once_and_in_their_place(
    height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "TRANSFORM_BYTES", 1)
    x = _draw(2, 3, height, 4)
    weight = torch.randn(4, 3, 3, 3).double()
    other = _draw(2, 4, height, 4)
    regions = list[Region]()

    def epilogue(y: Tensor, region: Region) -> None:
        y.add_(other[region])
        regions.append(region)

    y = winograd_conv3x3([x], weight, None, conv1x3=_conv1x3, epilogue=epilogue)
    torch.testing.assert_close(
        y, functional.conv2d(x, weight, padding=1) + other, rtol=0, atol=1e-12
    )
    assert len(regions) == 2 * -(-height // 4)


@pytest.mark.parametrize("size", [(2, 9, 5), (1, 16, 6)])
@pytest.mark.parametrize("transform_bytes", [1, 2**20])
def test_transforms_are_computed_once_for_all_that_share_a_cache(
    size: tuple[int, int, int], transform_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(winograd, "TRANSFORM_BYTES", transform_bytes)
    batch, height, width = size
    parts = [_draw(batch, 4, height, width)]
    cache: TransformCache = {}
    computed = list[int]()
    transform_input = winograd._transform_input

    def counted(part: Tensor, top: int, bottom: int) -> Iterator[tuple[int, Tensor]]:
        # Reached when the first transform is requested.
        computed.append(top)
        yield from transform_input(part, top, bottom)

    monkeypatch.setattr(winograd, "_transform_input", counted)
    for _ in range(3):
        weight = torch.randn(4, 4 * len(parts), 3, 3).double()
        expected = functional.conv2d(torch.cat(parts, 1), weight, padding=1)
        y = winograd_conv3x3(
            parts,
            weight,
            None,
            conv1x3=_conv1x3,
            epilogue=lambda _, __: None,
            cache=cache,
        )
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        parts.append(y)
    strips = batch * (-(-height // 4) if transform_bytes == 1 else 1)
    assert len(computed) == 3 * strips
