"""Rows of the tables in a report, and the wording of their numbers and notes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tubelet.evaluation.published import published_costs, published_scores
from tubelet.evaluation.results import Results
from tubelet.metrics.measure import metric_info

__all__ = [
    "MAX_CLIPS",
    "MEASURED",
    "Row",
    "best_value",
    "best_values",
    "clip_scores",
    "comparison_rows",
    "metric_heading",
    "metric_text",
    "omitted_clips_note",
    "parameters_text",
    "report_notes",
    "time_text",
]

MEASURED = "measured here"
"""Source of a row that this evaluation measured."""
MAX_CLIPS = 60
"""Number of clips in a table; the CSV has all of them."""
_ARROWS = {"higher": "↑", "lower": "↓"}
_BEST = {"higher": max, "lower": min}
_NO_VALUE = "–"


@dataclass(slots=True)
class Row:
    """A method in the table of results.

    Attributes:
        method: Name of a model, or of a method of the literature.
        values: Metric → score; unknown scores are absent.
        sources: Tables that print the scores of a published row; empty for a measured row.
        parameters: Number of trained parameters; None where it is unknown.
        seconds_per_frame: Measured time; None for a published row.
    """

    method: str
    values: dict[str, float]
    sources: list[str] = field(default_factory=list[str])
    parameters: float | None = None
    seconds_per_frame: float | None = None

    @property
    def measured_here(self) -> bool:
        """Whether this evaluation measured the row, instead of a paper."""
        return not self.sources

    @property
    def source(self) -> str:
        """The papers and tables of the scores, or `MEASURED`."""
        return "; ".join(self.sources) or MEASURED


def comparison_rows(results: Results) -> list[Row]:
    """Combine the measured scores with published ones, sorted by the first metric, best first."""
    rows: list[Row] = []
    for model in results.models:
        rows.append(
            Row(
                method=model.model,
                values=model.mean,
                parameters=model.parameters,
                seconds_per_frame=model.seconds_per_frame,
            )
        )
    rows += _published_rows(results)

    first_metric = results.metrics[0]
    sign = -1 if metric_info(first_metric).direction == "higher" else 1

    def sort_key(row: Row) -> float:
        value = row.values.get(first_metric, math.nan)
        # Rows without a score are last.
        return math.inf if math.isnan(value) else sign * value

    return sorted(rows, key=sort_key)


def _published_rows(results: Results) -> list[Row]:
    """Collect the published scores, with one row for tables that agree on a method."""
    # (method, table) → metric → score.
    printed: dict[tuple[str, str], dict[str, float]] = {}
    for score in published_scores(results.name):
        if score.metric not in results.metrics:
            continue
        for source in score.source.split("; "):
            values = printed.setdefault((score.method, source), {})
            values[score.metric] = score.value

    # In the figures of the last paper that has them.
    parameters: dict[str, float] = {}
    for cost in published_costs():
        if cost.params_m is not None:
            parameters[cost.method] = 1e6 * cost.params_m

    # Tables that share a score and contradict each other in none are one row.
    rows: list[Row] = []
    for (method, source), values in printed.items():
        row = _find_agreeing_row(rows, method, values)
        if row is None:
            rows.append(Row(method, values, [source], parameters.get(method)))
        else:
            row.values.update(values)
            row.sources.append(source)
    return rows


def _find_agreeing_row(
    rows: Sequence[Row],
    method: str,
    values: Mapping[str, float],
) -> Row | None:
    """Find a row of a method that has some of the given scores and contradicts none."""
    for row in rows:
        if row.method != method:
            continue
        shared_metrics = row.values.keys() & values.keys()
        equal_scores = row.values.items() & values.items()
        if shared_metrics and len(equal_scores) == len(shared_metrics):
            return row
    return None


def best_value(metric: str, values: Iterable[float]) -> float | None:
    """Find the best score in a metric; None if all scores are NaN."""
    # Comparisons with NaN are false, so `max` and `min` would depend on the order.
    valid = [value for value in values if not math.isnan(value)]
    if not valid:
        return None
    best = _BEST[metric_info(metric).direction]
    return best(valid)


def best_values(
    rows: Sequence[Row],
    metrics: Sequence[str],
) -> dict[str, float]:
    """Find the best score of each metric; a metric without scores is absent."""
    best: dict[str, float] = {}
    for metric in metrics:
        values: list[float] = []
        for row in rows:
            values.append(row.values.get(metric, math.nan))
        best_of_metric = best_value(metric, values)
        if best_of_metric is not None:
            best[metric] = best_of_metric
    return best


def clip_scores(
    results: Results,
    metric: str,
    *,
    limit: int,
) -> list[tuple[str, list[float]]]:
    """List the first `limit` clips with the score of every model in one metric."""
    table: list[tuple[str, list[float]]] = []
    for index, clip in enumerate(results.clips[:limit]):
        scores = [model.clips[index].mean[metric] for model in results.models]
        table.append((clip, scores))
    return table


def omitted_clips_note(results: Results) -> str:
    """Write how many clips the tables omit; empty if they have all."""
    omitted = len(results.clips) - MAX_CLIPS
    return f"{omitted} more clips are in report.csv." if omitted > 0 else ""


def metric_heading(metric: str) -> str:
    """Write a metric's name, its unit, and an arrow in the direction of better scores."""
    info = metric_info(metric)
    unit = f" ({info.unit})" if info.unit else ""
    return f"{metric.upper()}{unit} {_ARROWS[info.direction]}"


def metric_text(metric: str, value: float | None) -> str:
    """Write a score with as many decimals as papers print; a dash if it is unknown."""
    if value is None or math.isnan(value):
        return _NO_VALUE
    if math.isinf(value):
        return "∞"
    decimals = 4
    if metric_info(metric).unit == "dB":
        decimals = 2
    return f"{value:.{decimals}f}"


def parameters_text(count: float | None) -> str:
    """Write a number of parameters in millions; a dash if it is unknown."""
    if count is None:
        return _NO_VALUE
    return f"{count / 1e6:.3g}"


def time_text(seconds: float | None) -> str:
    """Write the time of a frame in milliseconds; a dash if it is unknown."""
    if seconds is None:
        return _NO_VALUE
    time_ms = 1e3 * seconds
    # From a second on, three significant digits would switch to the exponent notation.
    return f"{time_ms:.3g}" if seconds < 1 else f"{time_ms:.0f}"


def report_notes(results: Results, rows: Sequence[Row]) -> list[str]:
    """Write the conditions of the numbers that a reader must know, one per paragraph."""
    protocol = results.protocol
    scored_frames = "all frames"
    if protocol["frames"] != "all":
        scored_frames = "the middle frame of each clip"
    if protocol["drop_ends"]:
        scored_frames += f", without {protocol['drop_ends']} frames at each end"
    notes = [
        f"{protocol['summary']}.",
        f"Degradation `{protocol['degradation']}`, scale {protocol['scale']}, "
        f"border {protocol['border']} px, {scored_frames}; "
        "scores are means over the frames of a clip, then over clips.",
    ]
    # A part of the frames is easier or harder than all of them.
    if results.max_frames is not None:
        notes.append(
            f"Only the first {results.max_frames} frames of each clip were evaluated: these are "
            "not the protocol's scores, and published ones are for all frames."
        )
    notes.append(
        "Time is that of the engine per frame, without reading and measuring, "
        f"on {_hardware(results)}."
    )
    published_methods = [row.method for row in rows if not row.measured_here]
    if published_methods:
        notes += _published_notes(results, published_methods)
    return notes


def _published_notes(results: Results, methods: Sequence[str]) -> list[str]:
    """Write the conditions of published scores."""
    notes = [
        "Published figures are as printed in the papers of the last column; "
        "the times of papers are in the plot."
    ]
    if "PFVSR" in methods:
        notes.append(
            "PFVSR's parameters are the trained ones; its frozen image model is not counted."
        )
    protocols = {score.protocol for score in published_scores(results.name)}
    if protocols - {results.name}:
        notes.append(
            f"The papers do not specify which variant of {', '.join(sorted(protocols))} they use; "
            "this can explain a difference."
        )
    return notes


def _hardware(results: Results) -> str:
    """Name the machine that the first model ran on."""
    machine = results.models[0].clips[0].machine
    hardware: dict[str, Any] = machine.get("hardware", {})
    device = hardware.get("device", "an unknown machine")
    if device != "cpu":
        return str(device)
    threads = hardware.get("torch_threads")
    noun = "thread" if threads == 1 else "threads"
    return f"{hardware.get('processor')} with {threads} {noun}"
