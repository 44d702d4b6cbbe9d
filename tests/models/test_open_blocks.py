"""Parts of the blocks of SwinIR, HAT and DAT can be wrapped from outside, as adapters over a frozen network do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo_configs import tiny_network
from tubelet.layers.inference import prepare_for_inference

PARTS = [
    ("SwinIR", "attn"),
    ("SwinIR", "mlp"),
    ("SwinIR", "block"),
    ("HAT", "attn"),
    ("HAT", "mlp"),
    ("HAT", "cab"),
    ("HAT", "block"),
    ("HAT", "overlap"),
    ("DAT", "attn"),
    ("DAT", "ffn"),
    ("DAT", "block"),
]


class _Adapter(nn.Module):
    """Add a linear layer, zero at first, beside a module whose result has the shape of its input (..., C)."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module = module
        self.linear = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        y = self.module(x, *others)
        return y + self.linear(x)  # after the module, which must have left its input alone


def _wrap(network: nn.Module, part: str) -> list[_Adapter]:
    """Wrap a part of every block, or of every group."""
    channels = network.config.channels
    adapters: list[_Adapter] = []
    for group in network.layers:
        if part == "overlap":
            group.overlap = _Adapter(group.overlap, channels)
            adapters.append(group.overlap)
            continue
        for i, block in enumerate(group.blocks):
            adapter = _Adapter(block if part == "block" else getattr(block, part), channels)
            if part == "block":
                group.blocks[i] = adapter
            else:
                setattr(block, part, adapter)
            adapters.append(adapter)
    return adapters


def _network(name: str) -> Any:
    torch.manual_seed(0)
    return tiny_network(name).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_adapters_of_zero_change_nothing_and_others_do(
    name: str, part: str, *, prepared: bool
) -> None:
    network, lq = _network(name), torch.rand(1, 1, 3, 19, 24)
    expected = network(lq)
    adapters = _wrap(network, part)
    assert adapters
    if prepared:
        prepare_for_inference(network)
    with torch.no_grad():
        torch.testing.assert_close(network(lq), expected, rtol=0, atol=1e-6)
        for adapter in adapters:
            nn.init.normal_(adapter.linear.weight, std=0.5)
        assert (network(lq) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_adapters_give_the_same_in_both_forms(name: str, part: str) -> None:
    network, lq = _network(name), torch.rand(1, 1, 3, 19, 24)
    for adapter in _wrap(network, part):
        nn.init.normal_(adapter.linear.weight, std=0.1)
    with torch.no_grad():
        expected = network(lq)
        torch.testing.assert_close(prepare_for_inference(network)(lq), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_adapters_learn_over_a_frozen_network(name: str, part: str) -> None:
    network = _network(name)
    adapters = _wrap(network, part)
    network(torch.rand(1, 1, 3, 16, 16)).square().mean().backward()
    for adapter in adapters:
        assert adapter.linear.weight.grad is not None
        assert adapter.linear.weight.grad.any()
