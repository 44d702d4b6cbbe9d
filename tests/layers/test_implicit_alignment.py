import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from helpers.image_parity import recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.layers.implicit_alignment import ImplicitAlignment, sine_code
from tubelet.layers.inference import prepare_for_inference, use_backend


def _random(channels: int = 12, heads: int = 3) -> ImplicitAlignment:
    torch.manual_seed(0)
    layer = ImplicitAlignment(channels, heads).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def _inputs(
    batch: int = 2, channels: int = 12, size: tuple[int, int] = (5, 7)
) -> tuple[Tensor, Tensor, Tensor]:
    """State, flow of a few pixels, some of which leave the image, and current features."""
    generator = torch.Generator().manual_seed(1)
    state, current = torch.randn(
        2, batch, channels, *size, generator=generator, dtype=torch.float64
    )
    flow = 3 * torch.randn(batch, 2, *size, generator=generator, dtype=torch.float64)
    return state, flow, current


@pytest.mark.parametrize("prepared", [False, True])
def test_gives_the_recorded_output(recordings: Path, prepared: bool) -> None:
    case = "iart_implicit_align_A"
    description, (expected,) = recorded(recordings, case)
    layer = ImplicitAlignment(24, 4)
    state_dict = recorded_state(recordings, description)
    for name in description["kept"]:
        del state_dict[name]
    missing, unexpected = layer.load_state_dict(state_dict, strict=False)
    assert (missing, unexpected) == (["position_bias"], [])
    if prepared:
        prepare_for_inference(layer)

    shapes = {name: tuple(shape) for name, shape in description["inputs"].items()}
    current = (recorded_input(recordings, case, shapes["x"]) - 0.5) * 2
    state = (recorded_input(recordings, f"{case}:y", shapes["y"]) - 0.5) * 2
    flow = (recorded_input(recordings, f"{case}:flow", shapes["flow"]) - 0.5) * 12
    with torch.no_grad():
        aligned = layer(state, flow, current)
    # The published alignment projects the gathered pixels, this one gathers the projected ones.
    tolerance = 1e-5 * description["output_stats"]["std"]
    torch.testing.assert_close(aligned, expected, rtol=0, atol=tolerance)


def test_attends_as_the_equations_say_pixel_by_pixel() -> None:
    layer = _random()
    state, flow, current = _inputs()
    expected = torch.empty_like(state)
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(7)).tolist():
        expected[b, :, y, x] = _align_pixel(layer, state[b], flow[b], current[b], y, x)
    for backend in ("reference", "auto"):
        with torch.no_grad(), use_backend(layer, backend):
            torch.testing.assert_close(layer(state, flow, current), expected, rtol=0, atol=1e-12)


def _align_pixel(
    layer: ImplicitAlignment, state: Tensor, flow: Tensor, current: Tensor, y: int, x: int
) -> Tensor:
    channels, height, width = state.shape
    row, column = y + flow[1, y, x].item(), x + flow[0, y, x].item()
    top, left = math.floor(row), math.floor(column)
    offset = torch.tensor([row - top, column - left], dtype=torch.float64)
    query = layer.q(current[:, y, x] + _code(offset / (2 + 1e-6), channels))
    keys, values = [], []
    for j, (down, right) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        line = min(max(top + down, 0), height - 1)
        place = min(max(left + right, 0), width - 1)
        neighbor = state[:, line, place] + layer.position_bias[0, j]
        keys.append(layer.k(neighbor))
        values.append(layer.v(neighbor))
    heads = layer.heads
    d = channels // heads
    out = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        scores = torch.stack([query[part] @ key[part] for key in keys]) / d**0.5
        weights = scores.softmax(0)
        out.append(sum(weights[j] * values[j][part] for j in range(4)))
    return torch.cat(out)


def _code(fraction: Tensor, channels: int) -> Tensor:
    """Sine code, one value at a time."""
    half = channels // 2
    code = []
    for axis in (0, 1):
        for i in range(half):
            angle = fraction[axis].item() * 2 * math.pi / 0.01 ** (2 * (i // 2) / half)
            code.append(math.cos(angle) if i % 2 else math.sin(angle))
    return torch.tensor(code, dtype=torch.float64)


def test_code_is_sines_and_cosines() -> None:
    fraction = torch.tensor([0.31, 0.72], dtype=torch.float64)
    code = sine_code(2 * math.pi * fraction, 24)
    torch.testing.assert_close(code, _code(fraction, 24), rtol=0, atol=1e-11)


def test_codes_of_the_neighbors_are_those_of_a_square() -> None:
    codes = ImplicitAlignment(24, 4).position_bias
    assert codes.shape == (1, 4, 24)
    last = 2 * math.pi / (1 + 1e-6)
    places = torch.tensor([[0.0, 0.0], [0.0, last], [last, 0.0], [last, last]])
    # Phases of hundreds of radians amplify the rounding of the places.
    torch.testing.assert_close(codes[0], sine_code(places, 24), rtol=0, atol=1e-4)


def test_whole_pixels_move_by_whole_pixels() -> None:
    """A flow of (2, 1) everywhere reads the state as if it had been moved by hand."""
    layer, (state, _, current) = _random(), _inputs()
    flow = torch.tensor([2.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1).expand(2, 2, 5, 7)
    moved = functional.pad(state, (0, 2, 0, 1), mode="replicate")[..., 1:, 2:]
    with torch.no_grad():
        torch.testing.assert_close(
            layer(state, flow, current), layer(moved, torch.zeros_like(flow), current)
        )


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (33, 40)])
def test_both_forms_agree(size: tuple[int, int]) -> None:
    layer, inputs = _random(), _inputs(size=size)
    with torch.no_grad():
        expected = layer(*inputs)
        prepared = prepare_for_inference(layer)
        torch.testing.assert_close(prepared(*inputs), expected, rtol=0, atol=1e-12)
        singly = [prepared(*(x[i : i + 1] for x in inputs)) for i in range(2)]
    torch.testing.assert_close(torch.cat(singly), expected, rtol=0, atol=1e-12)


def test_gradients() -> None:
    layer = _random(8, 2)
    inputs = tuple(x.requires_grad_() for x in _inputs(1, 8, (3, 4)))
    assert gradcheck(layer, inputs)
    layer(*inputs).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("wild", [1e9, -1e9, 1e30, math.inf, -math.inf, math.nan])
def test_wild_flow_reads_inside_the_image(wild: float) -> None:
    layer, (state, flow, current) = _random(), _inputs()
    with torch.no_grad():
        expected = layer(state, flow, current)
        flow[0, :, 2, 3] = wild
        aligned = layer(state, flow, current)
    elsewhere = torch.ones(2, 5, 7, dtype=torch.bool)
    elsewhere[0, 2, 3] = False
    assert torch.equal(aligned.movedim(1, -1)[elsewhere], expected.movedim(1, -1)[elsewhere])


def test_positions_keep_their_precision_in_half_precision() -> None:
    layer, (state, flow, current) = _random(), _inputs(size=(4, 300))
    with torch.no_grad():
        expected = layer(state, flow, current)
        half = layer.bfloat16()(state.bfloat16(), flow.float(), current.bfloat16())
    # Positions of bfloat16 are whole numbers from 128 on.
    assert (half - expected).abs().mean() < 0.05 * expected.std()
