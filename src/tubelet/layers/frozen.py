"""Frozen networks that another network builds on, held outside of its module tree.

A plain attribute that PyTorch does not register is by construction no part of `state_dict()`,
`parameters()` and `train()` of the network that holds it. Code that must reach it nevertheless
(moves to a device, parameter counts) uses the functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

__all__ = ["FrozenModel", "all_modules", "all_parameters", "all_tensors", "apply_to_frozen"]


class FrozenModel:
    """A holder of a network that never trains.

    A network with such an attribute moves it along in its `_apply`, which `to`, `cuda`, `half` and
    the like call, by `apply_to_frozen`.

    Args:
        network: Network to freeze: it is set to evaluation mode, without gradients.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(requires_grad=False).eval()


def apply_to_frozen(
    network: nn.Module,
    fn: Callable[[Tensor], Tensor],
    recurse: bool,
) -> None:
    """Apply a function, as `nn.Module._apply` does, to the frozen networks that a network holds."""
    for value in vars(network).values():
        if isinstance(value, FrozenModel):
            value.network._apply(fn, recurse)  # pyright: ignore[reportPrivateUsage]


def all_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a network and of the frozen networks that it builds on, each once."""
    seen: set[int] = set()
    for module in _walk(network):
        if id(module) not in seen:
            seen.add(id(module))
            yield module


def _walk(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        yield module
        # Unregistered, so `modules()` does not find them.
        for value in vars(module).values():
            if isinstance(value, FrozenModel):
                yield from _walk(value.network)


def all_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a network and of the frozen networks it builds on, each once."""
    seen: set[int] = set()
    for module in all_modules(network):
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def all_tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters, as `all_parameters` does, then all buffers."""
    yield from all_parameters(network)
    for module in all_modules(network):
        yield from module.buffers(recurse=False)
