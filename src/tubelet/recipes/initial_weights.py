"""Initialize a network before training, from a checkpoint or from SpyNet weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tubelet.errors import InputError
from tubelet.layers.spynet import SpyNet, load_spynet
from tubelet.zoo.checkpoint import load_model

__all__ = [
    "copy_matching_weights",
    "find_spynets",
    "init_spynets",
    "load_spynet_checkpoint",
    "spynet_names",
]


def copy_matching_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors of a checkpoint that match in name and shape; others keep their values.

    Raises:
        CheckpointError: See `load_model`.
        InputError: No convolution matches.
    """
    source = load_model(path).state_dict()
    state = model.state_dict()
    matching: dict[str, Tensor] = {}
    for name, value in source.items():
        if name in state and state[name].shape == value.shape:
            matching[name] = value
    # Biases and slopes often match by chance; without a convolution the checkpoint is unrelated.
    has_convolution = any(value.ndim == 4 for value in matching.values())
    if not has_convolution:
        raise InputError(
            f"{path} shares no convolution with this network; give a checkpoint with the same "
            "number of channels"
        )
    model.load_state_dict({**state, **matching})


def find_spynets(model: nn.Module) -> list[SpyNet]:
    """List the SpyNets within a network."""
    return [module for module in model.modules() if isinstance(module, SpyNet)]


def spynet_names(model: nn.Module) -> tuple[str, ...]:
    """List the names of the SpyNets within a network, such as "spynet"."""
    modules: dict[str, nn.Module] = dict(cast(Any, model).named_modules())
    return tuple(name for name, module in modules.items() if isinstance(module, SpyNet))


def init_spynets(model: nn.Module, source: str) -> None:
    """Load weights into every SpyNet of a network.

    Args:
        model: Network; without a SpyNet it does not change.
        source: "own" for the weights in the package, "random" to keep the current weights, or the
            path of a checkpoint.

    Raises:
        CheckpointError: See `load_model`.
        InputError: The file is not a SpyNet, or a file is given for a network without a SpyNet.
    """
    if source == "random":
        return
    if source == "own":
        load_spynet(model)
        return
    spynets = find_spynets(model)
    if not spynets:
        raise InputError(
            f"{type(model).__name__} has no SpyNet that could be loaded; remove spynet={source}"
        )
    weights = load_spynet_checkpoint(Path(source)).state_dict()
    for spynet in spynets:
        spynet.load_state_dict(weights)


def load_spynet_checkpoint(path: Path) -> SpyNet:
    """Load a SpyNet from a checkpoint.

    Raises:
        CheckpointError: See `load_model`.
        InputError: The checkpoint is another network.
    """
    model = load_model(path)
    if not isinstance(model, SpyNet):
        raise InputError(
            f"{path} is {type(model).__name__}, not SpyNet; give the path of a SpyNet checkpoint"
        )
    return model
