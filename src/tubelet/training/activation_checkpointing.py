"""Activation checkpointing: recompute the activations of trunks in the backward pass.

It saves memory and costs time: only the input of each trunk is stored, and the backward pass runs
the trunk again. The results are identical.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, Sec. 3.
"""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

__all__ = ["ActivationCheckpointing", "find_trunks"]


class ActivationCheckpointing:
    """A context in which the trunks of a network store only their inputs.

    Args:
        model: Network; its forward passes outside of the context are not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        # A trunk that is used in two places of the network is found twice.
        trunks = dict.fromkeys(find_trunks(model))
        self._trunks = cast(list[Any], list(trunks))

    def __enter__(self) -> None:
        for trunk in self._trunks:
            # An attribute of the instance takes precedence over the method of its class.
            trunk.forward = partial(cast(Any, checkpoint), trunk.forward, use_reentrant=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for trunk in self._trunks:
            # The method of its class is in effect again.
            del trunk.forward


def find_trunks(model: nn.Module) -> list[nn.Module]:
    """Find the modules to checkpoint: sequences of blocks, and the blocks of other lists.

    Blocks with batch statistics are left out, because a second pass would update the statistics
    twice.
    """
    trunks: list[nn.Module] = []
    for child in model.children():
        is_list = isinstance(child, nn.Sequential | nn.ModuleList)
        if not is_list or not _has_blocks(child):
            trunks += find_trunks(child)
            continue
        candidates = [child]
        if isinstance(child, nn.ModuleList):
            # A ModuleList has no forward pass of its own, its blocks have.
            candidates = list(child)
        for candidate in candidates:
            trunks += _trunks_of(candidate)
    return trunks


def _trunks_of(module: nn.Module) -> list[nn.Module]:
    """Return a module if it can be checkpointed, otherwise the trunks inside it."""
    is_callable = not isinstance(module, nn.ModuleList | nn.ModuleDict)
    if is_callable and not _has_batch_norm(module):
        return [module]
    return find_trunks(module)


def _has_blocks(modules: nn.Module) -> bool:
    """Return whether a list contains blocks, not only single layers."""
    # A block has children, a layer has none.
    return any(next(child.children(), None) is not None for child in modules.children())


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(child, _BatchNorm) for child in module.modules())
