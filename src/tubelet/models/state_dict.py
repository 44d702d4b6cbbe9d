"""Words for reading state dicts: what names and shapes are there, and how they are called here.

Model files use them to recognize files of other code, to rename their tensors, and to read
configurations off them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

__all__ = [
    "Rule",
    "State",
    "below",
    "count_blocks",
    "count_names",
    "first_words",
    "has_convolutions",
    "indexes",
    "is_bias_table",
    "rename",
    "shape_of",
    "shuffle_scale",
    "without",
    "zero_based",
]

State = Mapping[str, Tensor]
"""Tensors by name."""

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression, and what stands in place of all that it finds in a name; as in `re.sub`."""


def rename(state: State, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename tensors by rules, in their order: each sees what those before it made of a name."""
    return {_apply(rules, name): value for name, value in state.items()}


def _apply(rules: Sequence[Rule], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def zero_based(template: str) -> Callable[[re.Match[str]], str]:
    """Make a replacement such as "blocks.{}.", for a rule whose first group counts from 1."""
    return lambda match: template.format(int(match[1]) - 1)


def below(state: State, prefix: str) -> dict[str, Tensor]:
    """Return what lies below a prefix, by the names without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def without(state: State, pattern: str) -> dict[str, Tensor]:
    """Leave out the tensors whose names match a regular expression as a whole."""
    return {name: value for name, value in state.items() if re.fullmatch(pattern, name) is None}


def first_words(state: State) -> set[str]:
    """Return the parts of a network: what stands before the first dot of every name."""
    return {name.split(".", 1)[0] for name in state}


def shape_of(state: State, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor; () where it is absent, as for a single number."""
    value = state.get(name)
    return () if value is None else tuple(value.shape)


def has_convolutions(state: State, *paths: str) -> bool:
    """Tell whether there is a 2-D convolution at every path: a weight of four dimensions."""
    return all(len(shape_of(state, f"{path}.weight")) == 4 for path in paths)


def indexes(state: State, pattern: str) -> list[int]:
    """List the numbers in the first group of names that match as a whole, each once, in order."""
    matches = [re.fullmatch(pattern, name) for name in state]
    return sorted({int(match[1]) for match in matches if match is not None})


def is_bias_table(state: State, name: str) -> bool:
    """Tell whether a tensor is a table of relative positions, (n², heads), of square windows."""
    shape = shape_of(state, name)
    return len(shape) == 2 and math.isqrt(shape[0]) ** 2 == shape[0]


def count_names(state: State, pattern: str) -> int:
    """Count the names that match a regular expression as a whole."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)


def count_blocks(state: State, prefix: str) -> int:
    """Count the different words that follow a prefix, such as the indexes of a list of modules."""
    return len(first_words(below(state, prefix)))


def shuffle_scale(state: State, path: str) -> int:
    """Read the scale off the convolutions before pixel shuffles; 0 where they fit none.

    They are `path.<index>`. One that makes 9 times its channels is for ×3; any number of those that
    make 4 times theirs is for ×2 each.
    """
    shape = shape_of(state, f"{path}.0.weight")
    if len(shape) != 4 or shape[1] < 1:
        return 0
    ratio = shape[0] // shape[1]
    steps = count_names(state, rf"{re.escape(path)}\.\d+\.weight")
    if ratio == 9 and steps == 1:
        return 3
    return 2**steps if ratio == 4 else 0
