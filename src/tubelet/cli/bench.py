"""`tubelet bench MODEL [MODEL ...]`: measure the cost of models, next to the published figures."""

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
    from rich.table import Table

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
_EXAMPLES = """\
examples:
  tubelet bench fast-x4-real basicvsr_pp-reds4
  tubelet bench runs/mine/model.safetensors --size 640x360 --device cpu --runs 10
"""

# Ratio of the 90th to the 10th percentile of the times; on a quiet machine it stays below 1.2.
_MAX_QUIET_SPREAD = 1.5
# All published figures are of models with this scale.
_PUBLISHED_SCALE = 4


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """Measure the cost of models: parameters, FLOPs, memory and time per frame."""

    models: tuple[str, ...]
    """Model ids, listed by `tubelet models`, or paths of checkpoints. The timed calls of several
    models alternate, so that a busy moment of the machine affects all of them."""
    json: bool = False
    """Print JSON with every single time instead of a table."""


def main(args: Sequence[str]) -> int:
    """Run the verb; return 4 if one of the models ran out of memory."""
    with loading():
        from tubelet.evaluation.cost import CostSettings, measure_costs
        from tubelet.zoo.opening import open_model

    flags = flags_from(BenchFlags, CostSettings, metavars=_METAVARS)
    command = parse(flags, args, verb="bench", examples=_EXAMPLES)
    settings: CostSettings = pick(command, CostSettings)
    if not command.models:
        raise RequestError("no model is given; `tubelet models` lists them")
    models = [open_model(name) for name in dict.fromkeys(command.models)]

    shows_bar = sys.stderr.isatty() and not command.json
    style = "bar" if shows_bar else "none"
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
    models: list[dict[str, Any]] = []
    for cost in report.costs:
        p10_s, p90_s = cost.spread_s
        derived = {
            "median_s": cost.median_s,
            "p10_s": p10_s,
            "p90_s": p90_s,
            "fps": 1 / cost.median_s,
            "published": [asdict(entry) for entry in _published(cost)],
        }
        models.append(asdict(cost) | derived)
    return {
        "machine": asdict(report.machine),
        "settings": asdict(report.settings),
        "models": models,
        "failures": [asdict(failure) for failure in report.failures],
    }


def _print(report: CostReport) -> None:
    """Print the table of the figures, the notes, the published figures and the machine."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_cost_table(report))
    console.print()
    for line in _notes(report):
        console.print(line, style="dim", markup=False)
    _print_published(console, report.costs)
    console.print()
    console.print(_machine_line(report), markup=False, soft_wrap=True)


def _cost_table(report: CostReport) -> Table:
    settings = report.settings
    table = _empty_table()
    # With both columns, the table would be wider than 80 columns.
    output_or_process = "process\nMB" if settings.process_memory else "output"
    headings = ("params\nM", "FLOPs\nG", "memory\nMB", output_or_process)
    for heading in (*headings, "ms a frame\n(10–90 %)", "fps", "type"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in report.costs:
        p10_s, p90_s = cost.spread_s
        if settings.process_memory:
            output = _number((cost.process_bytes or 0) / 1e6)
        else:
            output = f"{settings.width * cost.scale}×{settings.height * cost.scale}"
        table.add_row(
            cost.model,
            _number(cost.parameters / 1e6),
            _number(cost.flops / 1e9),
            _number(cost.peak_bytes / 1e6),
            output,
            f"{_ms(cost.median_s)} ({_ms(p10_s)}–{_ms(p90_s)})",
            _number(1 / cost.median_s),
            cost.precision,
        )
    return table


def _empty_table() -> Table:
    """Make a table whose first column is the name of the model."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", style="bold", overflow="fold", min_width=12)
    return table


def _notes(report: CostReport) -> list[str]:
    """Explain the figures, and list the models that were measured differently."""
    settings = report.settings
    notes = [
        f"input {settings.width}×{settings.height}; only the network, called as in upscaling; "
        f"{settings.runs} alternating calls",
        "FLOPs: a multiplication and an addition are two; papers often print",
        "       multiply-adds (MACs), half as many, as FLOPs",
        "memory: weights, input, state, and the peak of the buffers within a call",
    ]
    for cost in report.costs:
        if cost.frames_out > 1:
            notes.append(f"{cost.model}: calls of {cost.frames_in} frames; figures are per frame")
        if (cost.width, cost.height) != (settings.width, settings.height):
            notes.append(f"{cost.model} needs, and was measured at, {cost.width}×{cost.height}")
        num_calls = len(cost.times_s)
        if num_calls < settings.runs:
            limit = f"{settings.max_seconds:g} s"
            notes.append(f"{cost.model}: only {num_calls} calls within the limit of {limit}")
    if any(_is_unsteady(cost) for cost in report.costs):
        notes.append(
            "the times vary much: the machine is busy; measure again when nothing else is running"
        )
    return notes


def _is_unsteady(cost: Cost) -> bool:
    p10_s, p90_s = cost.spread_s
    return p90_s > _MAX_QUIET_SPREAD * p10_s


def _machine_line(report: CostReport) -> str:
    machine = report.machine
    cores = f"{machine.cores or '?'} cores, {machine.threads or '?'} threads"
    device = f"on {machine.device}"
    if machine.device == "cpu":
        device = f"on the CPU ({machine.capability})"
    return (
        f"{machine.date} · {machine.processor}, {cores}, torch uses {machine.torch_threads} · "
        f"torch {machine.torch} · {device}"
    )


def _print_published(console: Any, costs: Sequence[Cost]) -> None:
    """Print the figures that papers give for these models, if there are any."""
    table = _empty_table()
    for heading in ("params\nM", "FLOPs\nG", "memory\nMB", "ms a\nframe", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("source")
    for cost in costs:
        for entry in _published(cost):
            figures = (entry.params_m, entry.flops_g, entry.memory_mb, entry.runtime_ms)
            source = f"{entry.method}: {entry.source}"
            table.add_row(cost.model, *map(_number, figures), entry.size or "–", source)
    if table.rows:
        console.print("\nAs published, measured on the machines of the papers:")
        console.print(table)


def _published(cost: Cost) -> list[PublishedCost]:
    """Find the published figures of a model.

    A method is recognized by the first part of a model id, or by the architecture of a checkpoint.
    """
    from tubelet.evaluation.published import published_costs

    if cost.scale != _PUBLISHED_SCALE:
        return []
    # "basicvsr-plus-plus-x4-reds" → "basicvsrpp"
    names = {_plain_name(re.split(r"-x\d", cost.model)[0])}
    is_path = "." in cost.model
    if is_path:
        names.add(_plain_name(cost.architecture))
    return [entry for entry in published_costs() if _plain_name(entry.method) in names]


def _plain_name(name: str) -> str:
    """Reduce the spellings of a name to one: BasicVSR++ and basicvsr-plus-plus to basicvsrpp."""
    without_remark = re.sub(r"\(.*?\)", "", name)
    word = without_remark.lower().replace("++", "pp")
    letters = re.sub(r"[^a-z0-9]", "", word)
    return letters.replace("plusplus", "pp")


def _number(value: float | None) -> str:
    """Format with three significant digits, or as an integer from 100; zero and None are "–"."""
    if not value:
        return "–"
    # 99.96 would become "100." in the three digits.
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}"


def _ms(seconds: float) -> str:
    return _number(1e3 * seconds)
