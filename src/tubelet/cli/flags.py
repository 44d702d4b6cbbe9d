"""Command-line flags from dataclasses: a field gives the name, type, choices and help of a flag."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

__all__ = ["field_help", "flags_from", "parse", "pick"]

# Defaults that go without saying in the help of a flag.
# The type counts, too: 0 equals False, but is worth showing.
_TRIVIAL_DEFAULTS = ((type(None), None), (bool, False), (str, ""), (tuple, ()))
_CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)


def flags_from(
    *sources: type[Any],
    aliases: Mapping[str, str] | None = None,
    metavars: Mapping[str, str] | None = None,
) -> type[Any]:
    """Join the fields of several dataclasses into one dataclass for the command line.

    Args:
        sources: Dataclasses. The docstring below a field is the help text of its flag, and the
            docstring of the first class describes the verb.
        aliases: Short flags by field, for example {"scale": "-s"}.
        metavars: Placeholders of values in the help by field, for example {"height": "PIXELS"}.

    Returns:
        A keyword-only dataclass for `parse`. Fields without a default come first, as positional
        arguments.
    """
    aliases = aliases or {}
    metavars = metavars or {}
    fields: list[tuple[str, Any, Any]] = []
    for source in sources:
        hints = get_type_hints(source, include_extras=True)
        help_texts = field_help(source)
        for field in dataclasses.fields(source):
            help_text = help_texts.get(field.name, "")
            short_flags = aliases.get(field.name, "").split()
            argument = tyro.conf.arg(
                help=help_text,
                help_behavior_hint=_default_hint(field.default, help_text),
                aliases=short_flags or None,
                metavar=metavars.get(field.name),
            )
            hint = hints[field.name]
            # Without a default, the value is required: a positional argument.
            if field.default is dataclasses.MISSING:
                hint = tyro.conf.Positional[hint]
                specification = dataclasses.field()
            else:
                specification = dataclasses.field(default=field.default)
            fields.append((field.name, Annotated[hint, argument], specification))
    # tyro shows the docstring of the class as the description of the verb.
    flags = dataclasses.make_dataclass("Flags", fields, kw_only=True, frozen=True)
    flags.__doc__ = sources[0].__doc__
    return flags


def _default_hint(default: Any, help_text: str) -> str:
    """Show a default, unless it is trivial or the help text already mentions it."""
    if default is dataclasses.MISSING or "Default:" in help_text:
        return ""
    if (type(default), default) in _TRIVIAL_DEFAULTS:
        return ""
    return f"(default: {default})"


def field_help(source: type[Any]) -> dict[str, str]:
    """Read the docstrings below the fields of a class, each joined to one line."""
    # Python discards the string after a field, so it is read from the source.
    module = ast.parse(textwrap.dedent(inspect.getsource(source)))
    class_definition = module.body[0]
    assert isinstance(class_definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, following in pairwise(class_definition.body):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split())
            case _:
                pass
    return texts


def parse(flags: type[Any], args: Sequence[str], *, verb: str, examples: str = "") -> Any:
    """Parse arguments.

    Args:
        flags: Dataclass made by `flags_from`.
        args: Arguments after the verb.
        verb: Name of the verb, for the usage line.
        examples: Text printed below the options on `--help`.

    Raises:
        SystemExit: With code 0 after `--help`, and with code 2 after a usage error.
    """
    merged = _merge_repeated_flags(flags, args)
    try:
        return tyro.cli(flags, args=merged, prog=f"tubelet {verb}", config=_CONFIG)
    except SystemExit as stop:
        if stop.code == 0 and examples:
            sys.stdout.write(f"\n{examples}")
        raise


def _merge_repeated_flags(flags: type[Any], args: Sequence[str]) -> list[str]:
    """Join the values of a repeated flag: `-m a -m b` becomes `--model a b`.

    Without this, only the last occurrence of a flag would count.
    """
    long_names = _multi_value_flags(flags)
    merged: list[str] = []
    values: dict[str, list[str]] = {}
    target = merged
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag in long_names:
            target = values.setdefault(long_names[flag], [])
            if equals:
                target.append(value)
            continue
        if arg.startswith("-"):
            # Another flag ends the list of values.
            target = merged
        target.append(arg)
    for name, flag_values in values.items():
        merged += [name, *flag_values]
    return merged


def _multi_value_flags(flags: type[Any]) -> dict[str, str]:
    """Map each spelling of a flag that takes several values to its long name."""
    long_names: dict[str, str] = {}
    for field in dataclasses.fields(flags):
        if field.default is dataclasses.MISSING:
            continue
        # Fields of `flags_from` are Annotated[type, argument]; the type may be a union with None.
        hint, argument, *_ = get_args(field.type)
        origins = [get_origin(member) for member in (hint, *get_args(hint))]
        if tuple not in origins:
            continue
        long_name = "--" + field.name.replace("_", "-")
        long_names[long_name] = long_name
        for alias in argument.aliases or ():
            long_names[alias] = long_name
    return long_names


def pick(command: object, settings: type[Any]) -> Any:
    """Build `settings` from the fields of a parsed command that have the same names."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        values[field.name] = getattr(command, field.name)
    return settings(**values)
