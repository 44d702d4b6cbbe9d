import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from helpers.recordings import recorded, recorded_input, rules
from tubelet.ops import backward_warp

Padding = Literal["zeros", "border", "reflection"]
PADDINGS: tuple[Padding, ...] = ("zeros", "border", "reflection")


def _pixel(feat: Tensor, x: int, y: int, padding: Padding) -> Tensor:
    height, width = feat.shape[-2:]
    if padding == "border":
        x = min(max(x, 0), width - 1)
        y = min(max(y, 0), height - 1)
    if padding == "reflection":
        x = _mirror(x, width)
        y = _mirror(y, height)
    if not (0 <= x < width and 0 <= y < height):
        return torch.zeros_like(feat[:, 0, 0])
    return feat[:, y, x]


def _mirror(position: int, size: int) -> int:
    period = 2 * (size - 1)
    position = position % period
    return period - position if position >= size else position


def slow_warp(feat: Tensor, flow: Tensor, padding: Padding) -> Tensor:
    """The oracle: pixel by pixel, as the equation is written."""
    out = torch.zeros_like(feat)
    for b in range(feat.shape[0]):
        for y in range(feat.shape[2]):
            for x in range(feat.shape[3]):
                px = x + flow[b, 0, y, x].item()
                py = y + flow[b, 1, y, x].item()
                left = math.floor(px)
                top = math.floor(py)
                for column, line in (
                    (left, top),
                    (left + 1, top),
                    (left, top + 1),
                    (left + 1, top + 1),
                ):
                    weight = (1 - abs(px - column)) * (1 - abs(py - line))
                    out[b, :, y, x] += weight * _pixel(feat[b], column, line, padding)
    return out


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    feat = torch.randn(
        2,
        16,
        7,
        9,
        generator=generator,
        dtype=torch.float64,
    )
    return feat, 3 * torch.randn(
        2,
        2,
        7,
        9,
        generator=generator,
        dtype=torch.float64,
    )


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_equals_the_oracle_in_either_layout(
    pair: tuple[Tensor, Tensor], padding: Padding, layout: torch.memory_format
) -> None:
    feat, flow = pair
    out = backward_warp(feat.contiguous(memory_format=layout), flow, padding=padding)
    torch.testing.assert_close(out, slow_warp(feat, flow, padding), rtol=0, atol=1e-12)
    out = backward_warp(
        feat.float().contiguous(memory_format=layout), flow.float(), padding=padding
    )
    torch.testing.assert_close(out, slow_warp(feat, flow, padding).float(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_gradients_are_the_same_in_both_layouts(
    pair: tuple[Tensor, Tensor], padding: Padding
) -> None:
    gradients: list[tuple[Tensor, ...]] = []
    for layout in LAYOUTS:
        feat = pair[0].contiguous(memory_format=layout).requires_grad_()
        flow = pair[1].clone().requires_grad_()
        out = backward_warp(feat, flow, padding=padding)
        gradients.append(torch.autograd.grad((out * out.detach().cos()).sum(), (feat, flow)))
    for ours, reference in zip(gradients[1], gradients[0], strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


def test_channels_last_stays() -> None:
    feat = torch.rand(1, 32, 6, 5).contiguous(memory_format=torch.channels_last)
    out = backward_warp(feat, torch.zeros(1, 2, 6, 5))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, feat)


@pytest.mark.parametrize("value", [1e9, -1e9, 3e38])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_far_outside_is_zero(value: float, layout: torch.memory_format) -> None:
    feat = torch.rand(1, 16, 6, 5).contiguous(memory_format=layout)
    assert not backward_warp(feat, torch.full((1, 2, 6, 5), value)).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flow_of_nan_reads_nothing_beyond(layout: torch.memory_format) -> None:
    feat = torch.rand(1, 16, 6, 5).contiguous(memory_format=layout)
    assert backward_warp(feat, torch.full((1, 2, 6, 5), math.nan)).shape == feat.shape


def test_half_precision_keeps_positions() -> None:
    feat = torch.rand(1, 3, 2, 1000).bfloat16()
    shifted = backward_warp(
        feat, torch.stack([torch.ones(1, 2, 1000), torch.zeros(1, 2, 1000)], 1).bfloat16()
    )
    assert shifted.dtype == torch.bfloat16
    torch.testing.assert_close(shifted[..., :-1], feat[..., 1:], rtol=0, atol=1e-2)


def test_an_image_of_one_pixel() -> None:
    assert backward_warp(torch.ones(1, 3, 1, 1), torch.zeros(1, 2, 1, 1)).eq(1).all()


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"flow \(1, 5, 4, 2\) does not fit"):
        backward_warp(torch.rand(1, 3, 5, 4), torch.zeros(1, 5, 4, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["flow_warp_feat", "flow_warp_image"])
def test_recorded_outputs(recordings: Path, case: str, layout: torch.memory_format) -> None:
    description, expected = recorded(recordings, case)
    shape, flow_shape = (tuple(description["inputs"][name]) for name in ("x", "flow"))
    fill = rules(recordings).fill
    flow = (
        torch.from_numpy(fill(f"flow:{case}", flow_shape)).permute(0, 3, 1, 2)
        * 3
        * math.prod(flow_shape[1:]) ** 0.5
    )
    if case == "flow_warp_image":
        feat = recorded_input(recordings, case, shape)
    else:
        feat = torch.from_numpy(fill(f"feat:{case}", shape)) * math.prod(shape[1:]) ** 0.5
        # Enough channels for the gathering of rows in channels_last.
        feat = torch.cat([feat, feat], 1)
    feat = feat.contiguous(memory_format=layout)
    # Variants without aligned corners sample at other positions than the flow's end points;
    # no network uses them.
    variants = [(v, e) for v, e in zip(description["variants"], expected, strict=True) if v[2]]
    assert variants
    for (mode, padding, _), output in variants:
        out = backward_warp(feat, flow, mode=mode, padding=padding)[:, : shape[1]]
        torch.testing.assert_close(out, output, rtol=0, atol=1e-4 * float(output.std()))


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_nearest_pixels_of_channels_last_are_those_of_the_default_layout(padding: Padding) -> None:
    torch.manual_seed(0)
    feat = torch.randn(2, 20, 9, 11)
    flow = 6 * torch.randn(2, 2, 9, 11)
    flow[0, :, 0, 0] = torch.tensor([1e30, -1e30])
    expected = backward_warp(feat, flow, mode="nearest", padding=padding)
    by_rows = feat.contiguous(memory_format=torch.channels_last)
    assert torch.equal(backward_warp(by_rows, flow, mode="nearest", padding=padding), expected)
    assert (expected == 0).all(1).any() == (padding == "zeros")
