"""Other names of configuration fields: those of published code, and those of version 0.1.

A configuration class lists them in two class variables, each from the other name to the field:

    class EDSRConfig:
        PUBLISHED_NAMES: ClassVar = {"num_feat": "channels"}    # always accepted
        FORMER_NAMES: ClassVar = {"num_block": "num_blocks"}    # accepted for one version, with a note
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

__all__ = ["current_fields", "current_path"]

T = TypeVar("T")


def current_fields(
    kind: type[Any], values: Mapping[str, T], *, quiet: bool = False
) -> dict[str, T]:
    """Rename the keys that are other names of fields; leave all others as they are.

    A mapping that has a name of version 0.1 is read by that version's names throughout, because a
    few of them have another meaning now (`channels` of FSRCNN were those of its images).

    Args:
        kind: configuration dataclass.
        values: field name → value.
        quiet: without a `FutureWarning` for names of version 0.1, for saved files.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    published: dict[str, str] = dict(getattr(kind, "PUBLISHED_NAMES", {}))
    former: dict[str, str] = dict(getattr(kind, "FORMER_NAMES", {}))
    outdated = [name for name in values if name in former and name not in fields]
    if not quiet:
        for name in outdated:
            if name not in published:
                _warn(name, former[name])
    names = published | former if outdated else published
    renamed: dict[str, T] = {}
    for name, value in values.items():
        is_current = name in fields and not outdated
        renamed[name if is_current else names.get(name, name)] = value
    return renamed


def current_path(kind: type[Any], path: str, *, quiet: bool = False) -> str:
    """Rename the parts of a dotted path into nested configurations, such as `loop.optimiser.slow`.

    Args:
        kind: configuration dataclass that the first part is a field of.
        path: field names with dots between them.
        quiet: as for `current_fields`.
    """
    owner: type[Any] | None = kind
    parts: list[str] = []
    for part in path.split("."):
        name = part
        if owner is not None:
            (name,) = current_fields(owner, {part: None}, quiet=quiet)
            owner = _nested(owner, name)
        parts.append(name)
    return ".".join(parts)


def _nested(owner: type[Any], name: str) -> type[Any] | None:
    """Return the dataclass that a field holds, None if it holds another value."""
    hint = get_type_hints(owner).get(name)
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _warn(former: str, current: str) -> None:
    message = f"{former!r} is now {current!r}; the old name is accepted until version 0.2"
    warnings.warn(message, FutureWarning, stacklevel=2)
