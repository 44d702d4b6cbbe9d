"""`tubelet bench MODEL [MODEL ...]`: what models cost, beside each other and beside the published figures."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tubelet.cli.flags import flags_from, parse, pick
from tubelet.cli.progress import show_progress, write_json
from tubelet.cli.startup import loading
from tubelet.errors import RequestError, ResourceError

if TYPE_CHECKING:
    from tubelet.evaluation.cost import Cost, CostReport
    from tubelet.evaluation.published import PublishedCost

__all__ = ["main"]

_METAVARS = {
    "models": "MODEL [MODEL ...]",
    "size": "WIDTHxHEIGHT",
    "frames": "N",
    "device": "NAME",
    "runs": "N",
    "warmup": "N",
    "max_seconds": "SECONDS",
}

_UNSTEADY = 1.5  # slowest to fastest tenth; on a quiet machine it stays below 1.2


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """Measure what models cost: parameters, FLOPs, memory and the time of a frame."""

    models: tuple[str, ...]
    """Ids of `tubelet models`, or paths of checkpoints; their runs take turns."""
    json: bool = False
    """Write JSON with every single time instead of a table."""


def main(args: Sequence[str]) -> int:
    """Run the verb; 4 where memory ran out for one of the models."""
    with loading():
        from tubelet.evaluation.cost import CostSettings, measure_costs
        from tubelet.zoo.opening import open_model
    command = parse(flags_from(BenchFlags, CostSettings, metavars=_METAVARS), args, verb="bench")
    settings = pick(command, CostSettings)
    if not command.models:
        raise RequestError("name a model to measure; `tubelet models` lists them")
    models = [open_model(name) for name in dict.fromkeys(command.models)]
    style = "none" if command.json or not sys.stderr.isatty() else "bar"
    with show_progress(style, label="loading", json_to=sys.stdout) as on_progress:
        report = measure_costs(models, settings, on_progress=on_progress)
    if command.json:
        write_json(_as_json(report), sys.stdout)
    elif report.costs:
        _print(report)
    for failure in report.failures:
        sys.stderr.write(f"{failure.model}: {failure.reason}\n")
    return ResourceError.exit_code if report.failures else 0


def _as_json(report: CostReport) -> dict[str, Any]:
    return {
        "machine": asdict(report.machine),
        "settings": asdict(report.settings),
        "models": [
            asdict(cost)
            | {
                "median_s": cost.median_s,
                "p10_s": cost.spread_s[0],
                "p90_s": cost.spread_s[1],
                "fps": 1 / cost.median_s,
                "published": [asdict(entry) for entry in _published(cost)],
            }
            for cost in report.costs
        ],
        "failures": [asdict(failure) for failure in report.failures],
    }


def _print(report: CostReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    with_process = report.settings.process_memory
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", style="bold", overflow="fold", min_width=12)
    place = ["process\nMB"] if with_process else ["output"]  # both would be too wide for 80 columns
    for heading in (
        "params\nM",
        "FLOPs\nG",
        "memory\nMB",
        *place,
        "ms a frame\n(10–90 %)",
        "fps",
        "type",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in report.costs:
        low_s, high_s = cost.spread_s
        output = f"{report.settings.width * cost.scale}×{report.settings.height * cost.scale}"
        table.add_row(
            cost.model,
            _number(cost.parameters / 1e6),
            _number(cost.flops / 1e9),
            _number(cost.peak_bytes / 1e6),
            _number((cost.process_bytes or 0) / 1e6) if with_process else output,
            f"{_ms(cost.median_s)} ({_ms(low_s)}–{_ms(high_s)})",
            _number(1 / cost.median_s),
            cost.precision,
        )
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for line in _notes(report):
        console.print(line, style="dim", markup=False)
    _print_published(console, report.costs)
    console.print()
    console.print(_machine_line(report), markup=False, soft_wrap=True)


def _notes(report: CostReport) -> list[str]:
    asked = report.settings
    notes = [
        f"input {asked.width}×{asked.height}; the network alone, as upscaling calls it; {asked.runs} calls in turns",
        "FLOPs: a multiplication and an addition are two; papers often print",
        "       multiply-adds (MACs), half as many, as FLOPs",
        "memory: weights, input, state, and the most that lives at once in a call",
    ]
    for cost in report.costs:
        if cost.frames_out > 1:
            notes.append(
                f"{cost.model}: calls of {cost.frames_in} frames; figures are a frame's share"
            )
        if (cost.width, cost.height) != (asked.width, asked.height):
            notes.append(f"{cost.model} needs, and was measured at, {cost.width}×{cost.height}")
        if len(cost.times_s) < asked.runs:
            notes.append(
                f"{cost.model}: {len(cost.times_s)} calls, then {asked.max_seconds:g} s were over"
            )
    if any(cost.spread_s[1] > _UNSTEADY * cost.spread_s[0] for cost in report.costs):
        notes.append(
            "times vary much: something else keeps this machine busy; measure again when it is quiet"
        )
    return notes


def _machine_line(report: CostReport) -> str:
    machine = report.machine
    cores = f"{machine.cores or '?'} cores, {machine.threads or '?'} threads, torch uses {machine.torch_threads}"
    where = (
        f"on {machine.device}" if machine.device != "cpu" else f"on the CPU ({machine.capability})"
    )
    return f"{machine.date} · {machine.processor}, {cores} · torch {machine.torch} · {where}"


def _print_published(console: Any, costs: Sequence[Cost]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", style="bold", overflow="fold", min_width=12)
    for heading in ("params\nM", "FLOPs\nG", "memory\nMB", "ms a\nframe", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("source")
    for cost in costs:
        for entry in _published(cost):
            figures = (entry.params_m, entry.flops_g, entry.memory_mb, entry.runtime_ms)
            texts = ("–" if figure is None else _number(figure) for figure in figures)
            table.add_row(cost.model, *texts, entry.size or "–", f"{entry.method}: {entry.source}")
    if table.rows:
        console.print("\nAs published, on the papers' machines:")
        console.print(table)


def _published(cost: Cost) -> list[PublishedCost]:
    """Find what papers say of a model: methods are known by the first part of an id, or by a checkpoint's class."""
    from tubelet.evaluation.published import published_costs

    if cost.scale != 4:  # all of them enlarge four times
        return []
    name = _plain(re.split(r"-x\d", cost.model)[0])
    names = {name, _plain(cost.architecture)} if "." in cost.model else {name}
    return [entry for entry in published_costs() if _plain(entry.method) in names]


def _plain(name: str) -> str:
    """Reduce a name to what spellings share: BasicVSR++ and basicvsr-plus-plus are basicvsrpp."""
    word = re.sub(r"\(.*?\)", "", name).lower().replace("++", "pp")
    return re.sub(r"[^a-z0-9]", "", word).replace("plusplus", "pp")


def _number(value: float) -> str:
    """Write three digits, or all before the point; – for zero."""
    if value == 0:
        return "–"
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _ms(seconds: float) -> str:
    return _number(1e3 * seconds)
