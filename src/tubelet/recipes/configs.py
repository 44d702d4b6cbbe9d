"""Configurations in YAML: nested dataclasses out and in, where an unknown key or a wrong type is an error."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from tubelet.errors import ConfigError

__all__ = ["read_config", "read_entry", "write_config"]

T = TypeVar("T")


def write_config(path: Path, config: Any) -> None:
    """Write a configuration dataclass as YAML that `read_config` reads back to an equal one."""
    path.write_text(yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_config(path: Path, kind: type[T], *, default: T | None = None) -> T:
    """Read a configuration.

    Args:
        path: of a YAML file; fields it leaves out keep their defaults.
        kind: the dataclass.
        default: what they keep instead.

    Returns:
        an instance of `kind`.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a missing one, or a value of the wrong type.
    """
    return _build(kind, _read(path), str(path), default)


def read_entry(path: Path, name: str) -> Any:
    """Read one entry of a configuration, None where there is none, for what must be known before the others.

    Raises:
        ConfigError: no such file, or not YAML.
    """
    data = _read(path)
    return cast("dict[str, Any]", data).get(name) if isinstance(data, dict) else None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _build(kind: type[T], data: Any, where: str, default: T | None = None) -> T:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold `name: value` lines, not {data!r}")
    given = cast("dict[str, Any]", data)
    hints = get_type_hints(kind)
    unknown = [key for key in given if key not in hints]
    if unknown:
        raise ConfigError(f"{where} has unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    values = {
        key: _convert(hints[key], value, f"{where}: {key}", getattr(default, key, None)) for key, value in given.items()
    }
    try:
        return kind(**values) if default is None else dataclasses.replace(cast(Any, default), **values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str, default: Any = None) -> Any:
    """Check a YAML value against a type annotation, and make it that type; `default` is of a nested dataclass."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(cast("type[Any]", kind), value, where, default)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(map(str, args))}")
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], item, where) for item in cast("list[Any]", value))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be {getattr(kind, '__name__', kind)}")
