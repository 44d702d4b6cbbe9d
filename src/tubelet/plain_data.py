"""Dataclasses as plain data (dicts, lists, numbers, text) and back, for JSON and YAML.

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


def to_plain(value: Any) -> Any:
    """Turn a dataclass, with those inside it, into dicts, lists, numbers and text."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def build(kind: type[T], data: Any, where: str, default: T | None = None) -> T:
    """Make a dataclass of plain data.

    Args:
        kind: the dataclass.
        data: what `to_plain` gives, or what a user wrote.
        where: the place of the data, for messages.
        default: an instance whose values stand for the fields that are absent from the data.

    Raises:
        ConfigError: an unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold `name: value` lines, not {data!r}")
    given = current_fields(kind, cast("dict[str, Any]", data))
    hints = get_type_hints(kind)
    hints = {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, kind))}
    unknown = [key for key in given if key not in hints]
    if unknown:
        raise ConfigError(f"{where} has unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    values: dict[str, Any] = {}
    for key, value in given.items():
        values[key] = _convert(hints[key], value, f"{where}: {key}", getattr(default, key, None))
    try:
        if default is None:
            return kind(**values)
        return dataclasses.replace(cast(Any, default), **values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str, default: Any = None) -> Any:
    """Check a value against a type annotation, and make it that type.

    Args:
        kind: the annotation.
        value: plain data.
        where: its place, for messages.
        default: of a nested dataclass.
    """
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(cast("type[Any]", kind), value, where, default)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        present = next(arg for arg in args if arg is not type(None))
        return _convert(present, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(map(str, args))}")
    if origin is tuple and isinstance(value, list):
        items = cast("list[Any]", value)
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise ConfigError(f"{where} has {len(items)} values; it must have {len(args)}")
        return tuple(_convert(args[0], item, where) for item in items)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    # A bool is an int in Python, and is not one for a user.
    elif _is_a(kind, value) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be {getattr(kind, '__name__', kind)}")


def _is_a(kind: Any, value: Any) -> bool:
    return isinstance(kind, type) and isinstance(value, kind)
