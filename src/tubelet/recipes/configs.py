"""Read and write configuration dataclasses as YAML; unknown keys and wrong types are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from tubelet.errors import ConfigError
from tubelet.plain_data import build, to_plain

__all__ = ["read_config", "read_entry", "write_config"]

T = TypeVar("T")


def write_config(path: Path, config: Any) -> None:
    """Write a configuration dataclass as YAML, from which `read_config` restores an equal one."""
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def read_config(path: Path, kind: type[T], *, default: T | None = None) -> T:
    """Read a configuration from a YAML file.

    Args:
        path: Path of the file.
        kind: Dataclass of the configuration.
        default: Values of the fields that the file omits. Default: the defaults of `kind`.

    Returns:
        An instance of `kind`.

    Raises:
        ConfigError: The file is missing or is not YAML, or has an unknown key, lacks a required
            one, or has a value of the wrong type.
    """
    return build(kind, _read(path), str(path), default)


def read_entry(path: Path, name: str) -> Any:
    """Read one entry of a configuration file without validating the others; None if it is missing.

    `tubelet train` needs the name of the recipe first, which determines the type of the rest.

    Raises:
        ConfigError: The file is missing or is not YAML.
    """
    data = _read(path)
    if not isinstance(data, dict):
        return None
    return cast("dict[str, Any]", data).get(name)


def _read(path: Path) -> Any:
    try:
        # An empty file is an empty configuration.
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}") from error
