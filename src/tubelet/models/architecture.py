"""`Architecture`: how a published network is recognised, configured, and named in the files that circulate."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tubelet.types import Precision, Temporal

__all__ = ["Architecture", "Contract", "State", "count_names"]

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What the engine must know of one configuration of an architecture; the fields are those of `ModelSpec`."""

    scale: int
    temporal: Temporal
    halo_px: int = 0
    size_multiple: int = 1
    min_size_px: int = 1
    precisions: tuple[Precision, ...] = ("fp32",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture: everything that the loader of checkpoints asks of its file.

    Attributes:
        name: of the class, as its paper calls it.
        config: frozen dataclass of what can vary.
        build: makes the network from a configuration.
        translate: maps the names of a state dict in any layout in circulation to ours; None where the names are of no
            layout of this architecture. Values may be renamed, split or joined, never invented.
        infer: reads the configuration off our names and shapes.
        contract: temporal contract, scale and sizes of a configuration; None for a network that is only a part of
            others and makes no pictures.
        derived: endings of names that the constructor derives (means, indexes, masks): they may be absent from a file.
        source: paper.
    """

    name: str
    config: type[Any]
    build: Callable[[Any], nn.Module]
    translate: Callable[[State], dict[str, Tensor] | None]
    infer: Callable[[State], Any]
    contract: Callable[[Any], Contract | None]
    derived: tuple[str, ...] = field(default=())
    source: str = ""


def count_names(state: State, pattern: str) -> int:
    """Count the names that match a regular expression as a whole."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)
