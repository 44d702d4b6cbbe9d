"""Compare an unknown state dict with all architectures, to explain why none recognizes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.models.architecture import Architecture
from tubelet.zoo.architectures import ARCHITECTURES

__all__ = ["Similarity", "compare", "nearest"]

_MAX_EXAMPLES = 3
"""Number of names that `Similarity` lists of each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Similarity of a state dict to the default network of an architecture.

    Attributes:
        architecture: Name of the architecture.
        share: Fraction of the names that both have, ignoring numbers in names: 0 to 1.
        unexpected: First names that only the state dict has.
        missing: First names that only the network has.
        shapes: First names that both have with different shapes, and the two shapes.
    """

    architecture: str
    share: float
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]
    shapes: tuple[str, ...]


def nearest(state: Mapping[str, Tensor], *, count: int = 2) -> list[Similarity]:
    """Find the architectures whose tensor names are similar to those of a state dict.

    Args:
        state: Tensors by name, without wrappers and prefixes.
        count: Maximum number of results.

    Returns:
        The best matches, best first; architectures without a common name are omitted.
    """
    similar: list[Similarity] = []
    for architecture in ARCHITECTURES:
        similarity = compare(state, architecture)
        if similarity.share > 0:
            similar.append(similarity)
    similar.sort(key=lambda similarity: -similarity.share)
    return similar[:count]


def compare(state: Mapping[str, Tensor], architecture: Architecture) -> Similarity:
    """Compare the names and shapes of a state dict with the default network of an architecture."""
    # A layout of other code is renamed, if the architecture recognizes it.
    state = architecture.translate(state) or state
    with torch.device("meta"):
        expected = architecture.build(architecture.config()).state_dict()
    state_patterns = {_without_numbers(name) for name in state}
    expected_patterns = {_without_numbers(name) for name in expected}

    unexpected: list[str] = []
    shapes: list[str] = []
    for name, value in state.items():
        if _without_numbers(name) not in expected_patterns:
            unexpected.append(name)
        elif name in expected and value.shape != expected[name].shape:
            shapes.append(f"{name} {_shape(value)} for {_shape(expected[name])}")
    missing: list[str] = []
    for name in expected:
        if _without_numbers(name) not in state_patterns:
            missing.append(name)

    # Dice coefficient of the two sets.
    num_common = len(state_patterns & expected_patterns)
    num_total = len(state_patterns) + len(expected_patterns)
    return Similarity(
        architecture=architecture.name,
        share=2 * num_common / max(1, num_total),
        unexpected=tuple(unexpected[:_MAX_EXAMPLES]),
        missing=tuple(missing[:_MAX_EXAMPLES]),
        shapes=tuple(shapes[:_MAX_EXAMPLES]),
    )


def _without_numbers(name: str) -> str:
    """Replace the indexes in a name: networks of one architecture differ in their depth."""
    return re.sub(r"\d+", "#", name)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
