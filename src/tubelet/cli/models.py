"""`tubelet models`: the zoo as a table; `tubelet models identify FILE`: what a checkpoint is."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tubelet.cli.flags import flags_from, parse

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class ModelsFlags:
    """List the models: what they are called, what they enlarge, how they see time, and whose they are.

    `tubelet models identify FILE` tells what a checkpoint is.
    """

    json: bool = False
    """Write JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class IdentifyFlags:
    """Tell what a checkpoint is: its architecture and configuration, read off names and shapes."""

    file: str
    """A .safetensors or .pth file."""
    json: bool = False
    """Write JSON instead of lines."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if args[:1] == ["identify"]:
        return _identify(parse(flags_from(IdentifyFlags), args[1:], verb="models identify"))
    flags: ModelsFlags = parse(flags_from(ModelsFlags), args, verb="models")
    rows = _rows()
    if flags.json:
        json.dump(rows, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _print_table(rows)
    return 0


def _identify(flags: IdentifyFlags) -> int:
    from tubelet.models.checkpoint import open_checkpoint
    from tubelet.models.spec import count_parameters

    opened = open_checkpoint(flags.file)
    contract = opened.architecture.contract(opened.config)
    temporal = {name: value for name, value in asdict(contract.temporal).items() if value} if contract else {}
    facts: dict[str, Any] = {
        "file": flags.file,
        "architecture": opened.architecture.name,
        "scale": contract.scale if contract else None,
        "temporal": temporal,
        "config": asdict(opened.config),
        "parameters": count_parameters(opened.model),
        "source": opened.architecture.source,
    }
    if flags.json:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
        return 0
    kind = f" ×{contract.scale}" if contract else ", a part of other networks"
    sys.stdout.write(f"{flags.file}: {facts['architecture']}{kind}, {_short(facts['parameters'])} parameters\n")
    for name in ("temporal", "config"):
        if facts[name]:
            sys.stdout.write(f"  {name}: {', '.join(f'{key}={value}' for key, value in facts[name].items())}\n")
    sys.stdout.write(f"  source: {facts['source']}\n")
    if contract:
        sys.stdout.write(f"  tubelet upscale IN OUT --model {flags.file}\n")
    return 0


def _rows() -> list[dict[str, Any]]:
    from tubelet.models.spec import count_parameters
    from tubelet.models.zoo import list_models

    return [
        {
            "id": spec.id,
            "scale": spec.scale,
            "kind": spec.temporal.kind,
            "architecture": spec.architecture,
            "parameters": count_parameters(spec.build()),
            "summary": spec.summary,
            "licence": spec.weights.licence if spec.weights else spec.licence,
            "source": spec.source,
        }
        for spec in list_models()
    ]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True, style="bold")
    table.add_column("scale", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("summary")
    table.add_column("licence", no_wrap=True)
    for row in rows:
        count = _short(row["parameters"])
        table.add_row(row["id"], f"×{row['scale']}", row["kind"], count, row["summary"], row["licence"])
    console = Console()
    console.print(table)
    console.print(
        "kind: a frame model sees one frame, window its neighbours, online those before, clip all.\n"
        "`--model default` is the one for real videos, in the scale that is asked for.",
        highlight=False,
        style="dim",
    )


def _short(parameters: int) -> str:
    if parameters == 0:
        return "–"
    return f"{parameters / 1e6:.2f} M" if parameters >= 1_000_000 else f"{parameters / 1e3:.1f} k"
