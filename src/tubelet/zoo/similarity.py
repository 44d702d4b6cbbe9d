"""How near a state dict of no known architecture comes to each of them: for people who wonder why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.models.architecture import Architecture
from tubelet.zoo.architectures import ARCHITECTURES

__all__ = ["Similarity", "compare", "nearest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """A state dict beside a network of an architecture in its usual size.

    Attributes:
        architecture: its name.
        share: how many of the names are alike, numbers in them aside: from 0, none, to 1, all on both sides.
        unexpected: names that only the state dict has.
        missing: names that only the network has.
        shapes: names of both whose shapes differ, with the two shapes.
    """

    architecture: str
    share: float
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]
    shapes: tuple[str, ...]


def nearest(state: Mapping[str, Tensor], *, count: int = 2) -> list[Similarity]:
    """Compare a state dict with every architecture.

    Args:
        state: its tensors by their plain names.
        count: how many are wanted.

    Returns:
        The nearest, the best first; none that shares no name.
    """
    found = [compare(state, architecture) for architecture in ARCHITECTURES]
    return sorted((one for one in found if one.share > 0), key=lambda one: -one.share)[:count]


def compare(state: Mapping[str, Tensor], architecture: Architecture) -> Similarity:
    """Compare a state dict with an architecture in its usual size, by names in our layout and by shapes."""
    own = architecture.translate(state) or state
    with torch.device("meta"):
        expected = architecture.build(architecture.config()).state_dict()
    theirs, ours = {_form(name) for name in own}, {_form(name) for name in expected}
    common = theirs & ours
    return Similarity(
        architecture=architecture.name,
        share=2 * len(common) / max(1, len(theirs) + len(ours)),
        unexpected=_first(name for name in own if _form(name) not in ours),
        missing=_first(name for name in expected if _form(name) not in theirs),
        shapes=_first(
            f"{name} {_shape(own[name])} for {_shape(expected[name])}"
            for name in own
            if name in expected and own[name].shape != expected[name].shape
        ),
    )


def _form(name: str) -> str:
    """Leave out the numbers: networks differ in length."""
    return re.sub(r"\d+", "#", name)


def _first(names: Iterable[str], count: int = 3) -> tuple[str, ...]:
    return tuple(name for name, _ in zip(names, range(count), strict=False))


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
