import torch
from torch import Tensor, nn

from tubelet.layers.deform import ModulatedDeformConv, SecondOrderAlign
from tubelet.ops.deform import deform_conv2d_reference


def _stir(module: nn.Module) -> None:
    """Give every parameter a value: the layers start without offsets."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)


def _split(predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return predicted.chunk(3, 1)  # pyright: ignore[reportReturnType]


def test_modulated_convolution_is_its_equation() -> None:
    layer = ModulatedDeformConv(8, 6, groups=4)
    _stir(layer)
    x = torch.randn(2, 8, 9, 11)
    guide = torch.randn(2, 8, 9, 11)
    first, second, mask = _split(layer.conv_offset(guide))
    offset = torch.cat([first, second], 1)
    expected = deform_conv2d_reference(
        x,
        offset,
        layer.weight,
        layer.bias,
        mask=mask.sigmoid(),
        padding=1,
    )
    torch.testing.assert_close(layer(x, guide), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, guide), expected)


def test_unmodulated_convolution_with_the_original_border() -> None:
    layer = ModulatedDeformConv(
        4,
        4,
        groups=2,
        modulation="none",
        bias=False,
        border="original",
    )
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (4, 4, 3, 3),
        "conv_offset.weight": (36, 4, 3, 3),
        "conv_offset.bias": (36,),
    }
    _stir(layer)
    x = torch.randn(1, 4, 7, 8)
    for border, same in (("original", True), ("zeros", False)):
        other = deform_conv2d_reference(
            x, layer.conv_offset(x), layer.weight, padding=1, border=border
        )
        assert torch.allclose(layer(x, x), other, atol=1e-5) == same


def test_modulated_convolution_with_the_original_border() -> None:
    layer = ModulatedDeformConv(4, 4, groups=2, border="original")
    _stir(layer)
    x = torch.randn(1, 4, 7, 8)
    predicted = layer.conv_offset(x)
    expected = deform_conv2d_reference(
        x,
        predicted[:, :36],
        layer.weight,
        layer.bias,
        mask=predicted[:, 36:].sigmoid(),
        padding=1,
        border="original",
    )
    torch.testing.assert_close(layer(x, x), expected)


def test_second_order_alignment_is_its_equations() -> None:
    layer = SecondOrderAlign(4, groups=4, max_residue_px=5.0)
    _stir(layer)
    x = torch.randn(2, 8, 9, 11)
    guide = torch.randn(2, 12, 9, 11)
    flow_1 = 3 * torch.randn(2, 2, 9, 11)
    flow_2 = 3 * torch.randn(2, 2, 9, 11)
    first, second, mask = _split(layer.conv_offset(torch.cat([guide, flow_1, flow_2], 1)))
    # Step, group and tap, y and x.
    residue = 5.0 * torch.tanh(torch.cat([first, second], 1)).view(2, 2, 18, 2, 9, 11)
    flows = torch.stack([flow_1.flip(1), flow_2.flip(1)], 1)[:, :, None]
    offset = (residue + flows).flatten(1, 3)
    expected = deform_conv2d_reference(
        x,
        offset,
        layer.weight,
        layer.bias,
        mask=mask.sigmoid(),
        padding=1,
    )
    torch.testing.assert_close(layer(x, guide, flow_1, flow_2), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, guide, flow_1, flow_2), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    align = SecondOrderAlign(4, groups=4)
    modulated = ModulatedDeformConv(8, 4, groups=2)
    for layer in (align, modulated):
        _stir(layer)
    x = torch.randn(1, 8, 9, 9)
    flow = torch.randn(1, 2, 9, 9)
    out = align(x, torch.randn(1, 12, 9, 9), flow, flow) + modulated(x, x)
    out.square().sum().backward()
    named = [*align.named_parameters(), *modulated.named_parameters()]
    assert [name for name, p in named if p.grad is None or not p.grad.any()] == []


def test_starts_as_half_a_convolution() -> None:
    layer = ModulatedDeformConv(4, 4, groups=2)
    x = torch.randn(1, 4, 6, 7)
    expected = 0.5 * nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x, x), expected, rtol=1e-5, atol=1e-5)
