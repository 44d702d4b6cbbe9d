"""Configurations in YAML: nested dataclasses out and in, where an unknown key or a wrong type is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from tubelet.errors import ConfigError
from tubelet.plain_data import build, to_plain

__all__ = ["read_config", "read_entry", "write_config"]

T = TypeVar("T")


def write_config(path: Path, config: Any) -> None:
    """Write a configuration dataclass as YAML that `read_config` reads back to an equal one."""
    path.write_text(
        yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


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
    return build(kind, _read(path), str(path), default)


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
