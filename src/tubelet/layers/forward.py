"""`replaced_forward`: let modules compute something else for a while, without changing the network.

    with replaced_forward({block: partial(adapt, block.forward)}):
        sr = network(lq)        calls adapt(block.forward, x) wherever it called block.forward(x)

The modules keep their places, parameters and names. The methods of their classes are in effect
again when the context ends, also after an error. One thread at a time is in such a context: others
wait, so that they never see its replacements.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn

__all__ = ["replaced_forward"]

_ONE_THREAD = threading.RLock()
"""Two networks may share a module, such as two sets of adapters over one image network."""


@contextmanager
def replaced_forward(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Generator[None]:
    """Replace the forward pass of modules within this context.

    Args:
        replacements: For each module, what is called in place of its `forward`, with the same
            arguments. It may call the `forward` that was read before the context began.
    """
    # torch.compile can trace no lock; what it compiled replaces nothing when it runs.
    one_thread = nullcontext() if torch.compiler.is_compiling() else _ONE_THREAD
    with one_thread:
        replaced: list[tuple[Any, Any]] = []
        try:
            for module, forward in replacements.items():
                # An attribute of the instance takes precedence over the method of its class.
                # Inside another such context, the instance has one already.
                previous = vars(module).get("forward")
                replaced.append((module, previous))
                cast(Any, module).forward = forward
            yield
        finally:
            for module, previous in replaced:
                if previous is None:
                    vars(module).pop("forward")
                else:
                    module.forward = previous
