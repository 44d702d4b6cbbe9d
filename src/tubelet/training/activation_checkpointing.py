"""Activation checkpointing: recompute the activations of trunks in the backward pass.

It saves memory and costs time: only the input of each trunk is stored, and the backward pass runs
the trunk again. The results are identical.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from tubelet.layers.forward import replaced_forward

__all__ = ["activation_checkpointing", "find_trunks"]


def activation_checkpointing(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which the trunks of a network store only their inputs.

    Args:
        model: Network; its forward passes outside of the context are not changed.
    """
    checkpointed: dict[nn.Module, Callable[..., Any]] = {}
    # A trunk that is used in two places of the network is found twice.
    for trunk in find_trunks(model):
        run = cast(Callable[..., Any], checkpoint)
        checkpointed[trunk] = partial(run, trunk.forward, use_reentrant=False)
    return replaced_forward(checkpointed)


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
