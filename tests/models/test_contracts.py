"""Every network has the methods of its kind, and one that lacks a method is refused by its name."""

import inspect
from typing import Any

import pytest
from torch import nn

from helpers.zoo_configs import TINY, architecture_of, tiny_network
from tubelet.errors import ConfigError
from tubelet.models.architecture import Contract
from tubelet.models.contracts import (
    ClipModel,
    EncodingWindowModel,
    FrameModel,
    OnlineModel,
    RecurrentModel,
    StreamingModel,
    WindowModel,
    as_cleaning,
    as_encoding,
    as_online,
    as_recurrent,
    as_streaming,
    check_contract,
)
from tubelet.types import Temporal


def protocol_of(contract: Contract) -> type[Any]:
    kind = contract.temporal.kind
    if contract.encodes:
        return EncodingWindowModel
    if contract.edge_states.sweeps:
        return RecurrentModel
    if contract.streams:
        return StreamingModel
    return {"frame": FrameModel, "window": WindowModel, "online": OnlineModel, "clip": ClipModel}[
        kind
    ]


@pytest.mark.parametrize("name", TINY)
def test_every_network_has_the_methods_of_its_kind(name: str) -> None:
    contract = architecture_of(name).contract(TINY[name])
    assert contract is not None
    network = tiny_network(name)
    check_contract(network, contract)
    protocol = protocol_of(contract)
    methods = [
        method
        for method in dir(protocol)
        if callable(getattr(protocol, method)) and method[0] != "_"
    ]
    assert "forward" in methods
    for method in methods:
        asked = list(inspect.signature(getattr(protocol, method)).parameters)[1:]
        given = inspect.signature(getattr(network, method)).parameters
        assert list(given)[: len(asked)] == asked
        assert all(
            given[extra].default is not inspect.Parameter.empty
            for extra in list(given)[len(asked) :]
        )


def test_no_network_has_a_method_that_its_contract_keeps_quiet_about() -> None:
    """A frame of EDVR is encoded once only if the contract says that it can be."""
    for name, config in TINY.items():
        architecture = architecture_of(name)
        network, contract = architecture.build(config), architecture.contract(config)
        assert contract is not None
        assert architecture.cleans == hasattr(network, "clean"), name
        assert contract.encodes == (hasattr(network, "encode") and hasattr(network, "fuse")), name
        assert (contract.temporal.kind == "online") == hasattr(network, "step"), name
        assert contract.streams == (
            contract.temporal.kind == "clip" and hasattr(network, "restore")
        ), name
        # With masks, an edge of MIA-VSR would also have to hold the maps of every block.
        if name != "MIAVSR":
            assert bool(contract.edge_states.sweeps) == hasattr(network, "propagate"), name


class Bare(nn.Module):
    """Has no method but `forward`."""


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        (Contract(scale=2, temporal=Temporal("online")), r"Bare has no method step\(lq, hidden\)"),
        (
            Contract(scale=2, temporal=Temporal("window", radius=1), encodes=True),
            r"Bare has no method encode\(frame\)",
        ),
        (
            Contract(scale=2, temporal=Temporal("clip"), streams=True),
            r"no method restore\(lq\), .*streams=True",
        ),
    ],
)
def test_a_network_that_lacks_a_method_is_refused(contract: Contract, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_contract(Bare(), contract)


def test_narrowing_gives_the_network_itself() -> None:
    assert as_online(online := tiny_network("RRN")) is online
    assert as_streaming(streaming := tiny_network("BasicVSR")) is streaming
    assert as_recurrent(streaming) is streaming
    assert as_cleaning(cleaning := tiny_network("RealBasicVSR")) is cleaning
    assert as_encoding(encoding := tiny_network("EDVR")) is encoding


def test_a_recurrent_network_that_cannot_propagate_is_refused() -> None:
    class Streams(nn.Module):
        def restore(self, lq: object) -> object:
            return lq

    with pytest.raises(ConfigError, match=r"no method propagate\(lq\), .*edge_states"):
        as_recurrent(Streams())
