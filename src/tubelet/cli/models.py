"""`tubelet models`: the zoo as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tubelet.cli.flags import flags_from, parse

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class ModelsFlags:
    """List the models: what they are called, what they enlarge, how they see time, and whose they are."""

    json: bool = False
    """Write JSON instead of a table."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags: ModelsFlags = parse(flags_from(ModelsFlags), args, verb="models")
    rows = _rows()
    if flags.json:
        json.dump(rows, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _print_table(rows)
    return 0


def _rows() -> list[dict[str, Any]]:
    from tubelet.models.zoo import list_models

    return [
        {
            "id": spec.id,
            "scale": spec.scale,
            "kind": spec.temporal.kind,
            "architecture": spec.architecture,
            "parameters": sum(parameter.numel() for parameter in spec.build().parameters()),
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
