"""Flags from dataclasses: names, types, choices and help texts have one home, the settings of the engine."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import tyro

__all__ = ["field_help", "flags_from", "parse", "pick"]

_CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)


def flags_from(
    *sources: type[Any],
    aliases: Mapping[str, str] | None = None,
    metavars: Mapping[str, str] | None = None,
) -> type[Any]:
    """Make one dataclass of the fields of several, dressed for the command line.

    Args:
        sources: dataclasses; the docstring below a field is its help text, of the first class the verb's.
        aliases: field → short flag, for example {"scale": "-s"}.
        metavars: field → what stands for the value in the help, for example {"height": "PIXELS"}.

    Returns:
        A keyword-only dataclass for `parse`. Fields without a default come first, as positional arguments.
    """
    fields: list[tuple[str, Any, Any]] = []
    for source in sources:
        hints, texts = get_type_hints(source, include_extras=True), field_help(source)
        for field in dataclasses.fields(source):
            positional = field.default is dataclasses.MISSING
            kind = tyro.conf.Positional[hints[field.name]] if positional else hints[field.name]
            dressed = tyro.conf.arg(
                help=texts.get(field.name, ""),
                help_behavior_hint=_hint(field.default, texts.get(field.name, "")),
                aliases=(aliases or {}).get(field.name, "").split() or None,
                metavar=(metavars or {}).get(field.name),
            )
            default = (
                dataclasses.field() if positional else dataclasses.field(default=field.default)
            )
            fields.append((field.name, Annotated[kind, dressed], default))
    made = dataclasses.make_dataclass("Flags", fields, kw_only=True, frozen=True)
    made.__doc__ = sources[0].__doc__
    return made


def _hint(default: Any, text: str) -> str:
    """Name the default, unless it says nothing or the help text already tells it."""
    if default is dataclasses.MISSING or default in (None, False) or "Default:" in text:
        return ""
    return f"(default: {default})"


def field_help(source: type[Any]) -> dict[str, str]:
    """Read the string literals that stand below the fields of a class, on one line each."""
    body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(source))).body[0]).body
    texts: dict[str, str] = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(value=ast.Constant(value=str(words))):
                    texts[field.target.id] = " ".join(words.split())
                case _:
                    pass
    return texts


def parse(flags: type[Any], args: Sequence[str], *, verb: str) -> Any:
    """Parse arguments; on `--help` and on wrong usage prints and exits (0 and 2)."""
    return tyro.cli(flags, args=_gather(flags, args), prog=f"tubelet {verb}", config=_CONFIG)


def _gather(flags: type[Any], args: Sequence[str]) -> list[str]:
    """Let a flag that takes several values be given several times: `-m a -m b` is `-m a b`, not `-m b`."""
    spellings: dict[str, str] = {}
    for field in dataclasses.fields(flags):
        kind, dressed, *_ = get_args(field.type)
        if field.default is not dataclasses.MISSING and any(
            get_origin(part) is tuple for part in (kind, *get_args(kind))
        ):
            name = "--" + field.name.replace("_", "-")
            spellings |= dict.fromkeys([name, *(dressed.aliases or ())], name)
    rest: list[str] = []
    values: dict[str, list[str]] = {}
    into = rest
    for word in args:
        flag, equals, value = word.partition("=")
        if flag in spellings:
            into = values.setdefault(spellings[flag], [])
            into += [value] if equals else []
        else:
            into = rest if word.startswith("-") else into
            into.append(word)
    return rest + [word for name, given in values.items() for word in (name, *given)]


def pick(command: object, settings: type[Any]) -> Any:
    """Build `settings` from the fields of the same names of a parsed command."""
    return settings(
        **{field.name: getattr(command, field.name) for field in dataclasses.fields(settings)}
    )
