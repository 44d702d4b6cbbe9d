"""Alternative names of configuration fields: those of published code, and those of version 0.1.

A configuration class lists them in two class variables that map the other name to the field:

    class EDSRConfig:
        # Always accepted.
        PUBLISHED_NAMES: ClassVar = {"num_feat": "channels"}
        # Accepted for one version, with a warning.
        FORMER_NAMES: ClassVar = {"num_block": "num_blocks"}
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

__all__ = ["RenamedFieldWarning", "current_fields", "current_path"]

T = TypeVar("T")


class RenamedFieldWarning(FutureWarning):
    """A configuration field is called by its name of version 0.1."""


def current_fields(
    kind: type[Any], values: Mapping[str, T], *, quiet: bool = False
) -> dict[str, T]:
    """Rename the keys that are alternative names of fields; other keys do not change.

    If a mapping has a name of version 0.1, all its keys are read as names of that version, because
    a few of them have another meaning now (`channels` of FSRCNN were those of its images).

    Args:
        kind: Configuration dataclass.
        values: Maps field names to values.
        quiet: Do not warn about names of version 0.1, for saved files.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    published: dict[str, str] = dict(getattr(kind, "PUBLISHED_NAMES", {}))
    former: dict[str, str] = dict(getattr(kind, "FORMER_NAMES", {}))

    # A former name that is also a field now does not show which version wrote it.
    only_former = former.keys() - fields
    former_in_use = [name for name in values if name in only_former]
    new_names = dict(published)
    if former_in_use:
        new_names |= former
    else:
        # Without names of version 0.1, the name of a field always means that field.
        new_names |= {name: name for name in fields}

    if not quiet:
        for name in former_in_use:
            if name not in published:
                _warn(name, former[name])
    return {new_names.get(name, name): value for name, value in values.items()}


def current_path(
    kind: type[Any],
    path: str,
    *,
    quiet: bool = False,
) -> str:
    """Rename the names in a dotted path into nested configurations, such as `loop.optimiser.slow`.

    Args:
        kind: Configuration dataclass that has the first name as a field.
        path: Field names joined by dots.
        quiet: As in `current_fields`.
    """
    owner: type[Any] | None = kind
    names: list[str] = []
    for name in path.split("."):
        new_name = name
        # Below a field that holds no dataclass, names are not known.
        if owner is not None:
            (new_name,) = current_fields(owner, {name: None}, quiet=quiet)
            owner = _nested_dataclass(owner, new_name)
        names.append(new_name)
    return ".".join(names)


def _nested_dataclass(owner: type[Any], name: str) -> type[Any] | None:
    """Return the dataclass that a field holds; None if it holds another value."""
    hint = get_type_hints(owner).get(name)
    # The annotation may be a union such as `Config | None`.
    for option in (hint, *get_args(hint)):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def _warn(former: str, current: str) -> None:
    message = f"{former!r} is now {current!r}; the old name is accepted until version 0.2"
    warnings.warn(message, RenamedFieldWarning, stacklevel=2)
