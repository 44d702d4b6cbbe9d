"""Every network can be exported and compiled as a whole; where one cannot, its architecture says why."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo_configs import TINY, architecture_of, tiny_frames, tiny_network

_SLOW = {
    "BasicVSR",
    "BasicVSRPlusPlus",
    "EDVR",
    "IART",
    "IconVSR",
    "LRTIVSR",
    "MIAVSR",
    "PSRT",
    "RBPN",
    "RVRT",
    "TMNet",
    "TTVSR",
    "VRT",
    "ZoomingSlowMo",
}
"""Of these the graphs have thousands of nodes."""

_EXPORTED_IS_ENOUGH = {"DAT", "DUF", "HAT", "SwinIR", "TDAN", "TOFlow"}
"""Of these they have a thousand or so: they are compiled with the slow tests."""

_EXPORTABLE = [name for name in TINY if not architecture_of(name).not_exportable]
_OTHERS = [name for name in TINY if name not in _EXPORTABLE]


def _case(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network and an input as small as it goes."""
    torch.manual_seed(0)
    temporal = architecture_of(name).contract(TINY[name]).temporal
    frames = {"frame": 1, "window": tiny_frames(name), "online": 2, "clip": 2}[temporal.kind]
    return tiny_network(name).eval(), torch.rand(1, frames, 3, 16, 16)


def _export(network: nn.Module, lq: Tensor) -> Tensor:
    return torch.export.export(network, (lq,), strict=False).module()(lq)


def _compile(network: nn.Module, lq: Tensor) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(network, backend="eager", fullgraph=True)(lq)


def _by_speed(slow: set[str]) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in _EXPORTABLE
    ]


@pytest.mark.parametrize("name", _by_speed(_SLOW))
@torch.no_grad()
def test_exported_networks_give_the_same(name: str) -> None:
    network, lq = _case(name)
    torch.testing.assert_close(_export(network, lq), network(lq), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", _by_speed(_SLOW | _EXPORTED_IS_ENOUGH))
@torch.no_grad()
def test_compiled_networks_give_the_same(name: str) -> None:
    network, lq = _case(name)
    torch.testing.assert_close(_compile(network, lq), network(lq), rtol=0, atol=1e-5)


@pytest.mark.parametrize("run", [_export, _compile])
@pytest.mark.parametrize("name", _OTHERS)
@torch.no_grad()
def test_the_others_cannot_be_taken_as_their_architecture_says(name: str, run) -> None:
    network, lq = _case(name)
    with pytest.raises(Exception, match=r"(?i)data-dependent"):
        run(network, lq)


def test_an_exported_network_can_be_saved_and_run_alone(tmp_path) -> None:
    network, lq = _case("EDSR")
    with torch.no_grad():
        torch.export.save(
            torch.export.export(network, (lq,), strict=False), tmp_path / "network.pt2"
        )
        loaded = torch.export.load(tmp_path / "network.pt2").module()
        torch.testing.assert_close(loaded(lq), network(lq), rtol=0, atol=1e-5)
