"""The rows of a report's tables, and how their numbers and notes are worded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tubelet.evaluation.published import published_costs, published_scores
from tubelet.evaluation.results import Results
from tubelet.metrics.measure import metric_info

__all__ = [
    "MAX_CLIPS",
    "MEASURED",
    "Row",
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
MAX_CLIPS = 60
"""Lines of a table of clips; all of them are in the CSV."""
_ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(slots=True)
class Row:
    """A method in the table of results.

    Attributes:
        method: name of a model, or of a method of the literature.
        values: metric → score; what is not known is absent.
        sources: where a published row was printed; empty for one that was measured.
        parameters: how many numbers were trained, None where that is not known.
        seconds_per_frame: measured; None for a published row.
    """

    method: str
    values: dict[str, float]
    sources: list[str] = field(default_factory=list[str])
    parameters: float | None = None
    seconds_per_frame: float | None = None

    @property
    def ours(self) -> bool:
        """Say whether it was measured here."""
        return not self.sources

    @property
    def source(self) -> str:
        """Say where its figures are from."""
        return "; ".join(self.sources) or MEASURED


def comparison_rows(results: Results) -> list[Row]:
    """Set what was measured beside what is published, the best first by the first metric."""
    rows = [
        Row(
            model.model,
            model.mean,
            parameters=model.parameters,
            seconds_per_frame=model.seconds_per_frame,
        )
        for model in results.models
    ]
    rows += _published_rows(results)
    first = results.metrics[0]
    sign = -1 if metric_info(first).direction == "higher" else 1
    return sorted(rows, key=lambda row: _rank(row.values.get(first, math.nan), sign))


def _rank(value: float, sign: int) -> float:
    return math.inf if math.isnan(value) else sign * value


def _published_rows(results: Results) -> list[Row]:
    """Bring the published scores of each table into rows; tables that agree on a method share one."""
    printed: dict[tuple[str, str], dict[str, float]] = {}
    for score in published_scores(results.name):
        if score.metric in results.metrics:
            for source in score.source.split("; "):
                printed.setdefault((score.method, source), {})[score.metric] = score.value
    parameters = {
        cost.method: 1e6 * cost.params_m for cost in published_costs() if cost.params_m is not None
    }
    rows: list[Row] = []
    for (method, source), values in printed.items():
        same = (row for row in rows if row.method == method and _agree(row.values, values))
        row = next(same, None)
        if row is None:
            rows.append(Row(method, values, [source], parameters.get(method)))
        else:
            row.values.update(values)
            row.sources.append(source)
    return rows


def _agree(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    shared = a.keys() & b.keys()
    return bool(shared) and all(a[name] == b[name] for name in shared)


def best_values(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, float]:
    """Find the best value of each metric, as it will be printed."""
    best: dict[str, float] = {}
    for name in metrics:
        values = [
            row.values[name] for row in rows if not math.isnan(row.values.get(name, math.nan))
        ]
        if values:
            best[name] = max(values) if metric_info(name).direction == "higher" else min(values)
    return best


def clip_scores(results: Results, name: str, *, limit: int) -> list[tuple[str, list[float]]]:
    """List the first `limit` clips with the score of every model in one metric."""
    clips = results.clips[:limit]
    return [
        (clip, [model.clips[place].mean[name] for model in results.models])
        for place, clip in enumerate(clips)
    ]


def omitted_clips_note(results: Results) -> str:
    """Say how many clips the tables leave out; empty where they have all."""
    more = len(results.clips) - MAX_CLIPS
    return f"{more} more clips are in report.csv." if more > 0 else ""


def metric_heading(name: str) -> str:
    """Write a metric's name, its unit, and which way is better."""
    info = metric_info(name)
    unit = f" ({info.unit})" if info.unit else ""
    return f"{name.upper()}{unit} {_ARROWS[info.direction]}"


def metric_text(name: str, value: float | None) -> str:
    """Write a score with the decimals that papers print; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if metric_info(name).unit == "dB" else f"{value:.4f}"


def parameters_text(count: float | None) -> str:
    """Write a number of parameters in millions; a dash where it is not known."""
    if count is None:
        return "–"
    return "0" if count == 0 else f"{count / 1e6:.3g}"


def time_text(seconds: float | None) -> str:
    """Write the time of a frame in milliseconds; a dash where it is not known."""
    if seconds is None:
        return "–"
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def report_notes(results: Results, rows: Sequence[Row]) -> list[str]:
    """Say what a reader of the numbers must know, a line each."""
    facts = results.protocol
    ends = f", without {facts['drop_ends']} frames at each end" if facts["drop_ends"] else ""
    which = "all frames" if facts["frames"] == "all" else "the middle frame of each clip"
    notes = [
        f"{facts['summary']}.",
        f"Degradation `{facts['degradation']}`, scale {facts['scale']}, border {facts['border']} px, {which}{ends}; "
        "the mean over the frames of a clip, then over clips.",
    ]
    if results.max_frames is not None:
        notes.append(
            f"Only the first {results.max_frames} frames of each clip were looked at: these are not the protocol's "
            "numbers, and the published ones beside them are of whole clips."
        )
    hardware = _hardware(results)
    notes.append(
        f"Time is that of the engine for one frame, without reading and measuring, on {hardware}."
    )
    if any(not row.ours for row in rows):
        notes.append(
            "Published figures are as printed in the papers named beside them; their times are in the plot."
        )
        if any(row.method == "PFVSR" and not row.ours for row in rows):
            notes.append(
                "PFVSR's parameters are those that it trains; its frozen image model is not counted."
            )
        plain = {score.protocol for score in published_scores(results.name)}
        if plain - {results.name}:
            notes.append(
                f"The papers do not say which variant of {', '.join(sorted(plain))} they follow; a difference can lie "
                "in that alone."
            )
    return notes


def _hardware(results: Results) -> str:
    machine = results.models[0].clips[0].machine
    hardware: dict[str, Any] = machine.get("hardware", {})
    if hardware.get("device") == "cpu":
        threads = hardware.get("torch_threads")
        return (
            f"{hardware.get('processor')} with {threads} {'thread' if threads == 1 else 'threads'}"
        )
    return str(hardware.get("device", "an unknown machine"))
