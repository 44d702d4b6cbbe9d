"""Flags of nested settings, such as those of the training recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, cast, get_type_hints

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from tubelet.cli.flags import field_help
from tubelet.field_names import current_path

__all__ = ["current_flags", "parse_nested"]


def parse_nested(
    config_class: type[Any], args: Sequence[str], *, verb: str, default: Any = None
) -> Any:
    """Parse flags of nested settings, such as `--loop.optimizer.kind adamw`.

    Former and published names of the settings are accepted; see `tubelet.field_names`.

    Args:
        config_class: Dataclass, whose fields may be dataclasses.
        args: Arguments after the verb.
        verb: Name of the verb, for the usage line.
        default: Settings that the flags change; None for those of `config_class`.

    Raises:
        SystemExit: With code 0 after `--help`, and with code 2 after a usage error.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_describe_fields)
    prog = f"tubelet {verb}"
    args = current_flags(config_class, args)
    if default is None:
        return tyro.cli(config_class, args=args, prog=prog, registry=registry)
    return tyro.cli(config_class, args=args, prog=prog, registry=registry, default=default)


def current_flags(config_class: type[Any], args: Sequence[str]) -> list[str]:
    """Replace former and published names of flags, such as `--loop.optimiser.kind`."""
    current: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag.startswith("--") and flag != "--":
            field_path = flag.removeprefix("--").replace("-", "_")
            field_path = current_path(config_class, field_path)
            flag = "--" + field_path.replace("_", "-")
        current.append(flag + equals + value)
    return current


def _describe_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Give tyro the fields of a dataclass, with each docstring joined to one line.

    tyro itself keeps the line breaks of indented docstrings, so that lines end at random columns.
    """
    source = cast("type[Any]", info.type)
    if not dataclasses.is_dataclass(source):
        return None
    help_texts = _inherited_field_help(source)
    hints = get_type_hints(source, include_extras=True)
    fields: list[StructFieldSpec] = []
    for field in dataclasses.fields(source):
        default = _field_default(field, info.default)
        help_text = help_texts.get(field.name, "")
        # None keeps the hint of tyro, "(default: ...)" or "(required)".
        hides_default = default is None or default in ("", ()) or "Default:" in help_text
        argument = tyro.conf.arg(
            help=help_text,
            help_behavior_hint="" if hides_default else None,
        )
        described: Any = Annotated[hints[field.name], argument]
        fields.append(StructFieldSpec(name=field.name, type=described, default=default))
    return StructConstructorSpec(instantiate=source, fields=tuple(fields))


def _inherited_field_help(source: type[Any]) -> dict[str, str]:
    """Read the docstrings below the fields of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(source.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            texts |= field_help(base)
        except OSError:
            # A class made by `make_dataclass` has no source; its fields are described by a base.
            continue
    return texts


def _field_default(field: dataclasses.Field[Any], instance: Any) -> Any:
    """Return the default of a field, which an instance of the class overrides."""
    if instance is not tyro.MISSING and instance is not MISSING_NONPROP:
        return getattr(instance, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING_NONPROP
