import re
from collections.abc import Iterator
from itertools import product
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.image_parity import recorded_state
from helpers.recordings import recorded, recorded_input
from tubelet.layers import guided_attention
from tubelet.layers.guided_attention import Aligned, GuidedDeformAttention
from tubelet.layers.inference import prepare_for_inference
from tubelet.ops import deform_attention

SHAPES: list[dict[str, Any]] = [
    {"size": (5, 7), "channels": 4, "heads": 2, "groups": 4, "batch": 2},
    {"size": (9, 4), "channels": 6, "heads": 4, "groups": 4, "batch": 1},
    {"size": (1, 1), "channels": 3, "heads": 3, "groups": 2, "batch": 1},
    {"size": (2, 6), "channels": 6, "heads": 3, "groups": 6, "batch": 2},
]


def _layer(shape: dict[str, Any], dtype: torch.dtype = torch.float32) -> GuidedDeformAttention:
    """A layer whose offsets move: they start at zero."""
    torch.manual_seed(0)
    layer = GuidedDeformAttention(shape["channels"], heads=shape["heads"], groups=shape["groups"])
    for parameter in layer.conv_offset[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return layer.to(dtype)


def _inputs(shape: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Any]:
    """Features and flows, some of which point out of the image."""
    torch.manual_seed(1)
    features = [
        torch.randn(2 * shape["batch"], shape["channels"], *shape["size"], dtype=dtype)
        for _ in range(5)
    ]
    flows = [3 * torch.randn(2 * shape["batch"], 2, *shape["size"], dtype=dtype) for _ in range(2)]
    return [*features[:3], features[3:], flows]


def _tensors(aligned: Aligned) -> Iterator[Tensor]:
    yield aligned.features
    yield from aligned.flows


@pytest.mark.parametrize("form", ["reference", "strips", "plain, prepared"])
def test_gives_the_recorded_output(
    recordings: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    description, outputs = recorded(recordings, "rvrt_gda_A")
    state: dict[str, Tensor] = {}
    for name, tensor in recorded_state(recordings, description).items():
        name = re.sub(r"conv_offset\.(\d+)", lambda m: f"conv_offset.{int(m[1]) // 2}", name)
        name = re.sub(r"(proj(_\w)?|mlp)\.1\.", r"\1.", name)
        state[name] = tensor.squeeze(2) if tensor.ndim == 5 else tensor
    layer = GuidedDeformAttention(16, heads=4, groups=4)
    layer.load_state_dict(state)
    if form != "reference":
        prepare_for_inference(layer, "unfused" if "plain" in form else "auto")
        # Two lines or so at a time.
        monkeypatch.setattr(deform_attention, "_STRIP_SAMPLES", 18 * 25)
        monkeypatch.setattr(guided_attention, "_STRIP_BYTES", 60_000)

    inputs: dict[str, Tensor] = {}
    for name, shape in description["inputs"].items():
        image = recorded_input(recordings, f"rvrt_gda_A:{name}", tuple(shape))
        inputs[name] = ((image - 0.5) * (6 if "flow" in name else 2)).flatten(0, 1)
    with torch.no_grad():
        aligned = layer(
            inputs["q"],
            inputs["k"],
            inputs["v"],
            [inputs["w1"], inputs["w2"]],
            [inputs["flow1"], inputs["flow2"]],
        )
    tolerance = max(1e-4, 20 * description["float64_max_abs_over_std"])
    for actual, expected, stats in zip(
        _tensors(aligned), outputs, description["output_stats"], strict=True
    ):
        atol = tolerance * stats["std"]
        torch.testing.assert_close(actual, expected.flatten(0, 1), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strips_give_the_same_as_plain_operations(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = _layer(shape), _inputs(shape)
    monkeypatch.setattr(deform_attention, "_STRIP_SAMPLES", 18 * 11)
    monkeypatch.setattr(guided_attention, "_MLP_TOKENS", 5)
    with torch.no_grad():
        expected = layer(*inputs)
        prepare_for_inference(layer)
        assert layer._runs_in_strips(inputs[0])
        for actual, reference in zip(_tensors(layer(*inputs)), _tensors(expected), strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-5)


def _pixel(image: Tensor, y: float, x: float) -> Tensor:
    """Interpolate (C, H, W) at a position, pixel by pixel."""
    height, width = image.shape[1:]
    total = torch.zeros(len(image), dtype=image.dtype)
    for line, column in product((floor(y), floor(y) + 1), (floor(x), floor(x) + 1)):
        if 0 <= line < height and 0 <= column < width:
            total += (1 - abs(y - line)) * (1 - abs(x - column)) * image[:, line, column]
    return total


def test_is_the_definition_written_with_loops() -> None:
    """Keys of head h are sampled in group h of the offsets, its values in group h + 2."""
    shape = {"size": (3, 4), "channels": 2, "heads": 2, "groups": 4, "batch": 1}
    layer, inputs = _layer(shape, torch.float64), _inputs(shape, torch.float64)
    q, k, v, warped, flows = inputs
    with torch.no_grad():
        hidden = torch.cat([q, *warped, *flows], 1)
        for conv in layer.conv_offset:
            hidden = conv(hidden)
        residue = 10 * hidden.tanh().view(2, 2, 4, 9, 2, 3, 4)
        queries, keys, values = (
            linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).unflatten(1, (2, 2))
            for linear, x in ((layer.proj_q, q), (layer.proj_k, k), (layer.proj_v, v))
        )
        attended = torch.zeros(2, 3, 4, 2, 2, dtype=torch.float64)
        for b, y, x, head in product(range(2), range(3), range(4), range(2)):
            scores, sampled = [], []
            for i, tap in product(range(2), range(9)):
                positions: list[tuple[float, float]] = []
                for group in (head, head + 2):
                    dy, dx = residue[b, i, group, tap, :, y, x]
                    flow_x, flow_y = flows[i][b, :, y, x]
                    positions.append(
                        (
                            float(y + tap // 3 - 1 + dy + flow_y),
                            float(x + tap % 3 - 1 + dx + flow_x),
                        )
                    )
                source = (b + i) % 2
                key = _pixel(keys[source, head], *positions[0])
                scores.append(key @ queries[b, head, :, y, x] / 2**0.5)
                sampled.append(_pixel(values[source, head], *positions[1]))
            attended[b, y, x, head] = torch.stack(scores).softmax(0) @ torch.stack(sampled)
        tokens = layer.proj(attended.flatten(3))
        expected = (tokens + layer.mlp(tokens)).permute(0, 3, 1, 2)
        actual = layer(*inputs)
    torch.testing.assert_close(actual.features, expected, rtol=0, atol=1e-12)
    for i in range(2):
        moved = flows[i] + residue[:, i].mean((1, 2)).flip(1)
        torch.testing.assert_close(actual.flows[i], moved, rtol=0, atol=1e-12)


def test_a_new_layer_samples_around_the_flows() -> None:
    shape = SHAPES[0]
    layer = GuidedDeformAttention(4, heads=2, groups=4)
    inputs = _inputs(shape)
    with torch.no_grad():
        for form in (layer, prepare_for_inference(layer)):
            for moved, flow in zip(form(*inputs).flows, inputs[-1], strict=True):
                torch.testing.assert_close(moved, flow, rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_function() -> None:
    shape = {"size": (2, 3), "channels": 2, "heads": 2, "groups": 2, "batch": 1}
    layer, (q, k, v, warped, flows) = _layer(shape, torch.float64), _inputs(shape, torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v, *warped, *flows)]

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(layer(*x[:3], x[3:5], x[5:])))

    assert torch.autograd.gradcheck(run, leaves)
    sum(out.square().sum() for out in run(*leaves)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_a_prepared_layer_with_gradients_takes_plain_operations() -> None:
    shape = SHAPES[0]
    layer, inputs = _layer(shape), _inputs(shape)
    attention = prepare_for_inference(layer)
    assert not attention._runs_in_strips(inputs[0].requires_grad_())
    assert not attention._runs_in_strips(inputs[0].detach().double())
    with torch.no_grad():
        assert attention._runs_in_strips(inputs[0])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert not attention._runs_in_strips(inputs[0])
