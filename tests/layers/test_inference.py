import copy
import io

import pytest
import torch
from torch import Tensor, nn

from tubelet.layers import convolution
from tubelet.layers.convolution import ConvAct, ConvAdd, ConvCat, LeakyReLU, UpsampleConv
from tubelet.layers.inference import (
    Backend,
    InferenceBackend,
    SwitchableLayer,
    prepare_for_inference,
    reference_form,
    use_backend,
)


class _Network(nn.Module):
    """Every kind of fused convolution, between plain ones: (B, 3, H, W) → (B, 3, 2H, 2W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.act = ConvAct(8, 8, act=LeakyReLU(0.1))
        self.add = ConvAdd(8, 8)
        self.cat = ConvCat(16, 8, act="relu")
        self.up = UpsampleConv(8, 8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.add(self.act(x), x)
        return self.last(self.up(self.cat(x, y)))


@pytest.fixture
def network() -> _Network:
    torch.manual_seed(0)
    return _Network()


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def _backends(network: nn.Module) -> set[Backend]:
    layers = [module for module in network.modules() if isinstance(module, SwitchableLayer)]
    assert len(layers) == 4
    return {layer.backend for layer in layers}


def test_layers_are_switched_once_and_back(network: _Network) -> None:
    assert _backends(network) == {"reference"}
    assert prepare_for_inference(network) is network
    assert _backends(network) == {"auto"}
    assert prepare_for_inference(network, "winograd") is network
    assert _backends(network) == {"winograd"}
    assert reference_form(network) is network
    assert _backends(network) == {"reference"}


def test_another_backend_lasts_as_long_as_its_context(network: _Network) -> None:
    prepare_for_inference(network.act)
    with pytest.raises(RuntimeError, match="channels"), use_backend(network, "winograd"):
        network(torch.rand(1, 5, 4, 4))
    with use_backend(network, "winograd"):
        assert _backends(network) == {"winograd"}
    assert network.act.backend == "auto"
    assert network.add.backend == "reference"


def test_names_are_those_of_plain_convolutions(network: _Network) -> None:
    names = [
        f"{layer}.{name}" for layer in dict(network.named_children()) for name in ("weight", "bias")
    ]
    assert list(network.state_dict()) == names
    assert list(prepare_for_inference(network).state_dict()) == names


@pytest.mark.skipif(not convolution._HAS_ONEDNN, reason="no oneDNN for this processor")
@pytest.mark.parametrize("backend", ["auto", "winograd"])
@pytest.mark.parametrize("name", ["act", "add", "cat", "up"])
def test_no_gradient_passes_a_prepared_layer(
    name: str, backend: InferenceBackend, network: _Network, lq: Tensor
) -> None:
    lq = lq.contiguous(memory_format=torch.channels_last)
    expected = network(lq)
    prepare_for_inference(network.get_submodule(name), backend)
    sr = network(lq)
    torch.testing.assert_close(sr, expected, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"prepared for inference.*reference_form"):
        sr.sum().backward()


def test_gradients_after_the_way_back_are_those_of_the_start(network: _Network, lq: Tensor) -> None:
    network(lq).sum().backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    with torch.no_grad():
        prepare_for_inference(network)(lq)
    reference_form(network)(lq).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad
        assert expected[name] is not None
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("prepared", [False, True])
def test_copies_files_and_state_dicts_keep_the_form(
    network: _Network, lq: Tensor, *, prepared: bool
) -> None:
    if prepared:
        prepare_for_inference(network)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    filled = _Network()
    filled.load_state_dict(network.state_dict())
    with torch.no_grad():
        expected = network(lq)
        for other in (copy.deepcopy(network), loaded):
            assert _backends(other) == ({"auto"} if prepared else {"reference"})
            assert torch.equal(other(lq), expected)
        torch.testing.assert_close(filled(lq), expected, rtol=0, atol=1e-5)


def test_a_prepared_network_follows_its_weights(network: _Network, lq: Tensor) -> None:
    """Nothing is computed of the weights ahead of time."""
    other = _Network()
    with torch.no_grad():
        expected = other(lq)
        assert not torch.allclose(prepare_for_inference(network)(lq), expected)
        network.load_state_dict(other.state_dict())
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-5)
        assert network.to(torch.float64)(lq.double()).dtype == torch.float64
        assert network.to("meta")(lq.double().to("meta")).shape == expected.shape


def test_hooks_see_the_inputs_and_the_result(network: _Network, lq: Tensor) -> None:
    seen: list[Tensor] = []
    network.act.register_forward_hook(lambda _, inputs, y: seen.extend((*inputs, y)))
    with torch.no_grad():
        prepare_for_inference(network)(lq)
        torch.testing.assert_close(network.first(lq), seen[0])
        torch.testing.assert_close(network.act(seen[0]), seen[1])


def test_the_form_shows_in_the_text_of_a_layer() -> None:
    layer = prepare_for_inference(ConvAct(3, 4, act="relu"))
    assert "act=relu" in repr(layer)
    assert "backend=auto" in repr(layer)
