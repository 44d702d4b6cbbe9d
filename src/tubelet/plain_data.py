"""Convert dataclasses to plain data (dicts, lists, numbers, strings) and back, for JSON and YAML.

An unknown key or a value of the wrong type is an error; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tubelet.errors import ConfigError
from tubelet.field_names import current_fields

__all__ = ["build", "to_plain"]

T = TypeVar("T")

_CONVERTIBLE_TYPES: dict[Any, tuple[type, ...]] = {
    # YAML 1.1 reads 1e-3 as a string.
    float: (float, int, str),
    Path: (Path, str),
}
"""Types of plain data that are converted to a type; other types accept only their own values."""


def to_plain(value: Any) -> Any:
    """Convert a dataclass and the values in it into dicts, lists, numbers and strings."""
    if dataclasses.is_dataclass(value):
        values: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            field_value = getattr(value, field.name)
            values[field.name] = to_plain(field_value)
        return values
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Path):
        return str(value)
    return value


def build(
    kind: type[T],
    data: Any,
    where: str,
    default: T | None = None,
) -> T:
    """Build a dataclass from plain data.

    Args:
        kind: Dataclass to build.
        data: Result of `to_plain`, or the content of a file that a user wrote.
        where: Location of the data, for messages.
        default: Instance with the values of the fields that the data does not contain.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold `name: value` lines, not {data!r}")
    current = current_fields(kind, cast("dict[str, Any]", data))
    hints = _field_types(kind)
    for key in current:
        if key not in hints:
            raise ConfigError(f"{where} has unknown key {key!r}; known are {', '.join(hints)}")

    values: dict[str, Any] = {}
    for key, value in current.items():
        default_value = getattr(default, key, None)
        values[key] = _convert(hints[key], value, f"{where}: {key}", default_value)
    try:
        if default is None:
            return kind(**values)
        return dataclasses.replace(cast(Any, default), **values)
    except TypeError as error:
        # A field without a default is missing.
        raise ConfigError(f"{where}: {error}") from error


def _field_types(kind: type[Any]) -> dict[str, Any]:
    """Return the type annotations of the fields of a dataclass, without its class variables."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _convert(
    kind: Any,
    value: Any,
    where: str,
    default: Any = None,
) -> Any:
    """Check a value against a type annotation, and convert it to that type.

    Args:
        kind: Type annotation.
        value: Plain data.
        where: Location of the value, for messages.
        default: Default values of a nested dataclass.

    Raises:
        ConfigError: The value does not fit the annotation.
    """
    if dataclasses.is_dataclass(kind):
        return build(
            cast("type[Any]", kind),
            value,
            where,
            default,
        )
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_optional(kind, value, where)
    if origin is Literal:
        return _check_choice(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return _convert_tuple(kind, cast("list[Any]", value), where)
    return _convert_scalar(kind, value, where)


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    """Convert a value to a type without parameters, such as float or Path."""
    fault = ConfigError(f"{where} is {value!r}; it must be {getattr(kind, '__name__', kind)}")
    # In Python a bool is an int, but for a user it is not.
    is_misplaced_bool = isinstance(value, bool) and kind is not bool
    if is_misplaced_bool:
        raise fault
    # A value of a parametrized type, such as dict[str, int], has no plain form.
    if not isinstance(kind, type):
        raise fault
    accepted_types = _CONVERTIBLE_TYPES.get(kind, (kind,))
    if not isinstance(value, accepted_types):
        raise fault
    if kind not in _CONVERTIBLE_TYPES:
        return value
    try:
        return kind(value)
    except ValueError:
        # A string that is no number.
        raise fault from None


def _convert_optional(kind: Any, value: Any, where: str) -> Any:
    """Convert a value to the first type of a union, or keep None."""
    if value is None:
        return None
    for option in get_args(kind):
        if option is not type(None):
            return _convert(option, value, where)
    raise ConfigError(f"{where} is {value!r}; it must be None")


def _check_choice(kind: Any, value: Any, where: str) -> Any:
    choices = get_args(kind)
    if value not in choices:
        listing = ", ".join(map(str, choices))
        raise ConfigError(f"{where} is {value!r}; it must be one of {listing}")
    return value


def _convert_tuple(
    kind: Any,
    items: list[Any],
    where: str,
) -> tuple[Any, ...]:
    """Convert a list to tuple[T, ...], or to a tuple of fixed length with items of one type."""
    item_types = get_args(kind)
    has_fixed_length = item_types[-1] is not Ellipsis
    if has_fixed_length and len(items) != len(item_types):
        raise ConfigError(f"{where} has {len(items)} values; it must have {len(item_types)}")
    item_type = item_types[0]
    converted: list[Any] = []
    for item in items:
        converted.append(_convert(item_type, item, where))
    return tuple(converted)
