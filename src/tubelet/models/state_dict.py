"""Queries on state dicts: rename tensors, find modules, count blocks, and read shapes.

Model files use them to recognize the files of published code, to rename their tensors to ours, and
to infer the configuration from names and shapes.
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
    "input_channels",
    "is_bias_table",
    "rename",
    "shape_of",
    "shuffle_scale",
    "without",
    "zero_based",
]

State = Mapping[str, Tensor]
"""State dict: tensors by name."""

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A regular expression and its replacement, as for `re.sub`."""


def rename(state: State, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename tensors by regular expressions.

    Args:
        state: Tensors by name.
        rules: Replacements, each applied to the result of those before it.

    Returns:
        The same tensors in the same order, by their new names.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def zero_based(template: str) -> Callable[[re.Match[str]], str]:
    """Make a replacement for a rule whose first group is an index that counts from 1.

    Args:
        template: Replacement with `{}` for the index that counts from 0, such as "blocks.{}.".
    """
    return lambda match: template.format(int(match[1]) - 1)


def below(state: State, prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, and remove it from their names."""
    selected: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            selected[name.removeprefix(prefix)] = tensor
    return selected


def without(state: State, pattern: str) -> dict[str, Tensor]:
    """Drop the tensors whose full names match a regular expression."""
    return {name: tensor for name, tensor in state.items() if not re.fullmatch(pattern, name)}


def first_words(state: State) -> set[str]:
    """Return the top-level modules: the part of each name before its first dot."""
    return {name.partition(".")[0] for name in state}


def shape_of(state: State, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor, or () if it is absent or a scalar."""
    if name not in state:
        return ()
    return tuple(state[name].shape)


def has_convolutions(state: State, *paths: str) -> bool:
    """Return whether each path is a 2-D convolution, which has a weight of four dimensions."""
    return all(len(shape_of(state, f"{path}.weight")) == 4 for path in paths)


def input_channels(state: State, path: str) -> int:
    """Return the number of input channels of a 2-D convolution, or 0 if there is none at a path."""
    shape = shape_of(state, f"{path}.weight")
    if len(shape) != 4:
        return 0
    return shape[1]


def indexes(state: State, pattern: str) -> list[int]:
    """List the indexes in names, such as those of the modules in a list.

    Args:
        state: Tensors by name.
        pattern: Regular expression for full names, whose first group is a number.

    Returns:
        Different numbers, sorted.
    """
    numbers: set[int] = set()
    for name in state:
        match = re.fullmatch(pattern, name)
        if match is not None:
            numbers.add(int(match[1]))
    return sorted(numbers)


def is_bias_table(state: State, name: str) -> bool:
    """Return whether a tensor is a table of relative position biases for square windows.

    Such a table has the shape (n², heads).
    """
    shape = shape_of(state, name)
    if len(shape) != 2:
        return False
    return math.isqrt(shape[0]) ** 2 == shape[0]


def count_names(state: State, pattern: str) -> int:
    """Count the names that fully match a regular expression."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)


def count_blocks(state: State, prefix: str) -> int:
    """Count the modules below a prefix, such as the blocks in a list of modules."""
    return len(first_words(below(state, prefix)))


def shuffle_scale(state: State, path: str) -> int:
    """Infer the upscaling factor from the convolutions before pixel shuffles.

    A convolution that multiplies its channels by 9 belongs to a shuffle ×3, of which there is only
    one. Each of those that multiply them by 4 belongs to a shuffle ×2.

    Args:
        state: Tensors by name.
        path: List of modules that contains the convolutions, as `path.<index>`.

    Returns:
        The upscaling factor, or 0 if the shapes do not fit pixel shuffles.
    """
    channels = input_channels(state, f"{path}.0")
    if channels == 0:
        return 0
    out_channels = shape_of(state, f"{path}.0.weight")[0]
    expansion = out_channels // channels
    num_shuffles = count_names(state, rf"{re.escape(path)}\.\d+\.weight")
    match expansion, num_shuffles:
        case 9, 1:
            return 3
        case 4, _:
            return 2**num_shuffles
        case _:
            return 0
