import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops import deform_planes, row_sampler
from tubelet.ops.deform import deform_conv2d, deform_conv2d_reference, guided_deform_conv2d

Inputs = dict[str, Any]
CASES: list[dict[str, Any]] = [
    {"shape": (2, 8, 13, 17), "out": 6, "groups": 4, "kernel": (3, 3), "padding": 1},
    {
        "shape": (1, 8, 9, 12),
        "out": 4,
        "groups": 2,
        "kernel": (3, 3),
        "stride": 2,
        "padding": 1,
        "dilation": 2,
    },
    {"shape": (1, 4, 5, 6), "out": 4, "groups": 1, "kernel": (1, 1)},
    {
        "shape": (2, 8, 8, 9),
        "out": 8,
        "groups": 8,
        "kernel": (3, 5),
        "stride": (1, 2),
        "padding": (2, 1),
    },
    {"shape": (1, 8, 7, 8), "out": 4, "groups": 4, "kernel": (3, 3), "padding": 1, "parts": 2},
    {"shape": (1, 4, 1, 2), "out": 3, "groups": 2, "kernel": (3, 3), "padding": 1},
]


def _inputs(
    case: dict[str, Any], *, reach_px: float = 3.0, dtype: torch.dtype = torch.float64
) -> Inputs:
    """Draw the inputs of a case; many offsets point out of the image."""
    torch.manual_seed(0)
    batch, channels, _, _ = case["shape"]
    weight = torch.randn(
        case["out"], channels // case.get("parts", 1), *case["kernel"], dtype=dtype
    )
    x = torch.randn(case["shape"], dtype=dtype)
    size = functional.conv2d(
        x, torch.zeros(1, channels, *case["kernel"], dtype=dtype), **_steps(case)
    ).shape[2:]
    samples = case["groups"] * weight[0, 0].numel()
    return {
        "x": x,
        "offset": reach_px * torch.randn(batch, 2 * samples, *size, dtype=dtype),
        "weight": weight,
        "bias": torch.randn(case["out"], dtype=dtype),
        "mask": torch.rand(batch, samples, *size, dtype=dtype),
    }


def _steps(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("stride", "padding", "dilation") if name in case}


def _run(op: Callable[..., Tensor], inputs: Inputs, **options: Any) -> dict[str, Tensor]:
    """Return the result and the gradient of each input."""
    leaves = {
        name: None if t is None else t.detach().clone().requires_grad_()
        for name, t in inputs.items()
    }
    out = op(**leaves, **options)
    out.backward(
        torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    )
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}
    assert all(grad is not None for grad in grads.values())
    return {"out": out.detach(), **grads}  # pyright: ignore[reportReturnType]


def _torchvision(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    **steps: Any,
) -> Tensor:
    return pytest.importorskip("torchvision").ops.deform_conv2d(
        x,
        offset,
        weight,
        bias,
        mask=mask,
        **steps,
    )


@pytest.mark.parametrize("reach_px", [3.0, 0.0])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case: dict[str, Any], reach_px: float) -> None:
    """Compare values and gradients, also for integer offsets, where gradients are one-sided."""
    inputs = _inputs(case, reach_px=reach_px)
    for op in (deform_conv2d, deform_conv2d_reference):
        torch.testing.assert_close(
            _run(op, inputs, **_steps(case)),
            _run(_torchvision, inputs, **_steps(case)),
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.parametrize("border", ["zeros", "original"])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle(case: dict[str, Any], with_mask: bool, border: str) -> None:
    inputs = _inputs(case)
    if not with_mask:
        inputs["mask"] = None
    expected = _run(deform_conv2d_reference, inputs, border=border, **_steps(case))
    torch.testing.assert_close(
        _run(deform_conv2d, inputs, border=border, **_steps(case)), expected, rtol=1e-9, atol=1e-9
    )


def test_the_original_border() -> None:
    """Outside is zero, but up to one pixel beyond the last one, that is repeated."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    weight = torch.ones(1, 1, 1, 1)
    for dy, dx, expected in (
        (0.0, -0.1, 0.0),
        (1.9, 1.9, 4.0),
        (2.0, 0.0, 0.0),
        (0.0, 1.5, 2.0),
        (0.5, 0.5, 2.5),
    ):
        offset = torch.zeros(1, 2, 2, 2)
        offset[0, :, 0, 0] = torch.tensor([dy, dx])
        for op in (deform_conv2d, deform_conv2d_reference):
            assert op(x, offset, weight, border="original")[0, 0, 0, 0].item() == pytest.approx(
                expected
            )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strips_layouts_and_float32(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    """Strips that end within a line; the result has the layout of the input."""
    monkeypatch.setattr(row_sampler, "STRIP_SAMPLES", 11 * 4 * 9)
    monkeypatch.setattr(deform_planes, "STRIP_SAMPLES", 3 * 17 * 4 * 9)
    exact = _inputs(CASES[0])
    inputs: Inputs = {
        name: t.float().to(memory_format=layout) if t.ndim == 4 else t.float()
        for name, t in exact.items()
    }
    result = _run(deform_conv2d, inputs, padding=1)
    assert deform_conv2d(**inputs, padding=1).is_contiguous(memory_format=layout)
    for name, expected in _run(deform_conv2d_reference, exact, padding=1).items():
        torch.testing.assert_close(result[name], expected.float(), rtol=1e-4, atol=1e-4)


def test_wild_offsets() -> None:
    """Samples far outside are zero; NaN spoils only its own output pixel."""
    inputs = _inputs(CASES[0], reach_px=0.0, dtype=torch.float32)
    x = inputs["x"]
    offset = inputs["offset"]
    weight = inputs["weight"]
    far = torch.full_like(offset, 1e30)
    assert not deform_conv2d(x, far, weight, padding=1).any()
    assert not deform_conv2d(x, -far, weight, padding=1).any()
    offset[0, :, 5, 5] = torch.nan
    broken = deform_conv2d(x, offset, weight, padding=1).isnan().any(1)
    assert broken[0, 5, 5]
    assert broken.sum() == 1


def test_half_precision_keeps_its_type() -> None:
    inputs = _inputs(CASES[0], dtype=torch.float32)
    expected = deform_conv2d(**inputs, padding=1)
    half = deform_conv2d(
        **{name: t.bfloat16() if name in {"x", "weight"} else t for name, t in inputs.items()},
        padding=1,
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05 * expected.std().item())


@pytest.mark.parametrize("num_flows", [0, 1, 2])
@pytest.mark.parametrize("reach_px", [None, 10.0])
def test_guided_equals_its_parts(num_flows: int, reach_px: float | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 11)
    predicted = torch.randn(2, 108, 9, 11)
    weight = torch.randn(6, 8, 3, 3)
    bias = torch.randn(6)
    flows = [4 * torch.randn(2, 2, 9, 11) for _ in range(num_flows)]
    offset = predicted[:, :72] if reach_px is None else reach_px * torch.tanh(predicted[:, :72])
    if flows:
        offset = offset + torch.cat(
            [flow.flip(1).repeat(1, 36 // num_flows, 1, 1) for flow in flows], 1
        )
    expected = deform_conv2d_reference(
        x,
        offset,
        weight,
        bias,
        mask=torch.sigmoid(predicted[:, 72:]),
        padding=1,
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        moved = predicted.to(memory_format=layout)
        for learns in (False, True):
            guide = moved.clone().requires_grad_(learns)
            result = guided_deform_conv2d(
                x,
                guide,
                weight,
                bias,
                flows=flows,
                max_residue_px=reach_px,
                padding=1,
            )
            assert result.requires_grad == learns
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


KERNEL_AGAINST_THE_REFERENCE = """
import torch
from tubelet.ops.deform import deform_conv2d_reference
from tubelet.ops.row_sampler import Taps
from tubelet.ops.deform_triton import sample_columns
torch.manual_seed(0)
x, weight = torch.randn(2, 4, 5, 7), torch.randn(3, 4, 3, 3)
offset, mask = 3 * torch.randn(2, 36, 3, 7), torch.rand(2, 18, 3, 7)
steps = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
for border, factors, dtype, atol in (
    ("zeros", mask, torch.float32, 1e-4),
    ("original", None, torch.float32, 1e-4),
    ("zeros", None, torch.bfloat16, 0.1),
):
    columns = sample_columns(x.to(dtype), offset, factors, Taps((3, 3), *steps.values(), 2, border))
    assert columns.dtype == dtype
    expected = deform_conv2d_reference(x, offset, weight, mask=factors, border=border, **steps)
    out = (weight.flatten(1) @ columns.float()).view_as(expected)
    torch.testing.assert_close(out, expected, rtol=0, atol=atol)
    print(border, columns.dtype)
"""


@pytest.mark.slow
def test_the_kernel_of_gpus_as_triton_interprets_it() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", KERNEL_AGAINST_THE_REFERENCE]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "zeros torch.float32",
        "original torch.float32",
        "zeros torch.bfloat16",
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_on_a_gpu(dtype: torch.dtype) -> None:
    inputs = {name: t.to(dtype) for name, t in _inputs(CASES[0], dtype=torch.float32).items()}
    expected = _run(deform_conv2d, {name: t.float() for name, t in inputs.items()}, padding=1)
    result = _run(deform_conv2d, {name: t.cuda() for name, t in inputs.items()}, padding=1)
    for name, value in expected.items():
        tolerance = (1e-4 if dtype == torch.float32 else 0.05) * value.std().item()
        torch.testing.assert_close(result[name].float().cpu(), value, rtol=0, atol=tolerance)


def test_refuses_shapes_that_do_not_fit() -> None:
    inputs = _inputs(CASES[0])
    offset = inputs["offset"]
    mask = inputs["mask"]
    with pytest.raises(ValueError, match="offset"):
        deform_conv2d(**inputs)
    with pytest.raises(ValueError, match="offset"):
        deform_conv2d(**{**inputs, "offset": offset[:, :18]}, padding=1)
    with pytest.raises(ValueError, match="mask"):
        deform_conv2d(**{**inputs, "mask": mask[:, :9]}, padding=1)
    with pytest.raises(ValueError, match="do not fit"):
        deform_conv2d(**{**inputs, "x": torch.zeros(2, 7, 13, 17)}, padding=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bounded", [False, True])
def test_bfloat16_features_are_sampled_at_exact_positions(
    bounded: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16, 300).bfloat16().contiguous(memory_format=layout)
    predicted = torch.randn(1, 27 * 2, 16, 300).bfloat16().contiguous(memory_format=layout)
    weight = torch.randn(4, 8, 3, 3) / 9
    bias = torch.randn(4)
    motion: dict[str, Any] = {}
    if bounded:
        motion = {"flows": [torch.full((1, 2, 16, 300), 0.3)], "max_residue_px": 2.0}

    def run(x: Tensor, predicted: Tensor) -> Tensor:
        return guided_deform_conv2d(x, predicted, weight, bias, padding=1, **motion)

    with torch.no_grad():
        expected = run(x.float(), predicted.float())
        with torch.autocast("cpu", torch.bfloat16):
            result = run(x, predicted)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=layout)
    # Only columns, weights and result are rounded. Positions in bfloat16 would miss columns from
    # 256 on by a pixel.
    torch.testing.assert_close(result.float(), expected, rtol=2**-7, atol=2**-6)
