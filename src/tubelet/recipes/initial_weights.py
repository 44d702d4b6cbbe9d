"""Weights to begin a training with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from tubelet.errors import InputError
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.zoo.checkpoint import load_model

__all__ = ["copy_matching_weights", "find_spynets", "init_spynets", "load_spynet_checkpoint"]


def copy_matching_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors of a checkpoint that agree in name and shape; others stay random.

    Raises:
        CheckpointError: see `load_model`.
        InputError: nothing agrees.
    """
    source = load_model(path).state_dict()
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    for name, value in source.items():
        if name in own and own[name].shape == value.shape:
            fitting[name] = value
    if not any(value.ndim == 4 for value in fitting.values()):
        raise InputError(
            f"{path} shares no convolution with this network; give a checkpoint of the same channels"
        )
    model.load_state_dict({**own, **fitting})


def find_spynets(model: nn.Module) -> list[SpyNet]:
    """List the flow networks within a network."""
    return [module for module in model.modules() if isinstance(module, SpyNet)]


def init_spynets(model: nn.Module, source: str) -> None:
    """Give every SpyNet within a network its weights; a network without any stays as it is.

    Args:
        model: the network.
        source: "own" for those of the package, "random" to leave them as they are, or the path of a
            checkpoint.

    Raises:
        CheckpointError: see `load_model`.
        InputError: the file is no SpyNet, or there is a file and the network has no SpyNet.
    """
    if source == "own":
        load_spynet(model)
    if source in ("own", "random"):
        return
    flows = find_spynets(model)
    if not flows:
        raise InputError(
            f"{type(model).__name__} estimates no flow by SpyNet; leave spynet={source} out"
        )
    weights = load_spynet_checkpoint(Path(source)).state_dict()
    for flow in flows:
        flow.load_state_dict(weights)


def load_spynet_checkpoint(path: Path) -> SpyNet:
    """Load a SpyNet.

    Raises:
        CheckpointError: see `load_model`.
        InputError: the file holds another network.
    """
    model = load_model(path)
    if not isinstance(model, SpyNet):
        raise InputError(
            f"{path} is {type(model).__name__}, not SpyNet; give a checkpoint of a SpyNet"
        )
    return model
