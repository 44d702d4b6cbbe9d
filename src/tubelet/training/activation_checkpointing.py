"""Activation checkpointing: compute the activations of trunks again in the backward pass.

Memory for time: of each trunk only its input is kept; the backward pass runs it once more. Numbers
do not change.

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
    """Within this context, the trunks of a network keep nothing but their inputs.

    Args:
        model: the network; forward passes outside the context are as they were.
    """

    def __init__(self, model: nn.Module) -> None:
        # A trunk that has two places in the network is found twice.
        self._trunks = cast(list[Any], list(dict.fromkeys(find_trunks(model))))

    def __enter__(self) -> None:
        for trunk in self._trunks:
            trunk.forward = partial(cast(Any, checkpoint), trunk.forward, use_reentrant=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for trunk in self._trunks:
            del trunk.forward  # its class's forward is in effect again


def find_trunks(model: nn.Module) -> list[nn.Module]:
    """Find what is worth computing twice: sequences of blocks, and each block of other lists.

    Blocks with statistics of the batch are left out: they would count the batch twice.
    """
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.Sequential) and _has_blocks(child):
            found += [child] if _is_pure(child) else find_trunks(child)
        elif isinstance(child, nn.ModuleList) and _has_blocks(child):
            for block in child:
                callable_ = not isinstance(block, nn.ModuleList | nn.ModuleDict)
                found += [block] if callable_ and _is_pure(block) else find_trunks(block)
        else:
            found += find_trunks(child)
    return found


def _has_blocks(modules: nn.Module) -> bool:
    """Tell a list of blocks from one of single layers."""
    return any(next(child.children(), None) is not None for child in modules.children())


def _is_pure(module: nn.Module) -> bool:
    return not any(isinstance(part, _BatchNorm) for part in module.modules())
