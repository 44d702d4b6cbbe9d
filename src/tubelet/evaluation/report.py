"""The report of an evaluation: one set of tables, as Markdown, CSV, LaTeX (booktabs) and a page.

All of it is made from the folder of the results, so a report can be written again without measuring again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tubelet.evaluation.report_page import report_page
from tubelet.evaluation.report_rows import (
    MAX_CLIPS,
    MEASURED,
    Row,
    best_values,
    clip_scores,
    comparison_rows,
    metric_heading,
    metric_text,
    omitted_clips_note,
    parameters_text,
    report_notes,
    time_text,
)
from tubelet.evaluation.results import Results, read_results
from tubelet.files import atomic_write
from tubelet.metrics.measure import metric_info

__all__ = ["write_report"]


def write_report(out: Path) -> list[Path]:
    """Write report.md, report.csv, report.tex and report.html beside the results of an evaluation.

    Args:
        out: the folder that `evaluate` filled.

    Returns:
        The paths of the four files.

    Raises:
        InputError: the folder has no results, or a part of them is missing.
    """
    results = read_results(out)
    rows = comparison_rows(results)
    contents = {
        "report.md": _markdown(results, rows),
        "report.csv": _csv(results, rows),
        "report.tex": _latex(results, rows),
        "report.html": report_page(results, rows, out),
    }
    paths: list[Path] = []
    for name, text in contents.items():
        path = out / name
        with atomic_write(path) as part:
            part.write_text(text, "utf-8")
        paths.append(path)
    return paths


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    scores = [metric_text(name, row.values.get(name)) for name in metrics]
    return [
        row.method,
        parameters_text(row.parameters),
        time_text(row.seconds_per_frame),
        *scores,
        row.source,
    ]


def _head(metrics: Sequence[str]) -> list[str]:
    return ["Method", "Parameters (M)", "Time (ms)", *map(metric_heading, metrics), "Source"]


def _markdown(results: Results, rows: Sequence[Row]) -> str:
    best = best_values(rows, results.metrics)
    lines = [f"# {results.name}", "", *(f"{note}\n" for note in report_notes(results, rows))]
    lines += [
        "## Results",
        "",
        *_markdown_table(_head(results.metrics), _markdown_rows(rows, results.metrics, best)),
    ]
    names = [model.model for model in results.models]
    for name in results.metrics:
        body = [
            [clip, *(metric_text(name, score) for score in scores)]
            for clip, scores in clip_scores(results, name, limit=MAX_CLIPS)
        ]
        lines += [
            "",
            f"## {metric_heading(name)} of each clip",
            "",
            *_markdown_table(["Clip", *names], body),
        ]
        if note := omitted_clips_note(results):
            lines += ["", note]
    lines += ["", "## Weights", ""]
    weights = [
        [model.model, model.weights_sha256 or "none: a fixed kernel"] for model in results.models
    ]
    lines += _markdown_table(["Model", "SHA-256"], weights)
    return "\n".join(lines) + "\n"


def _markdown_rows(
    rows: Sequence[Row], metrics: Sequence[str], best: Mapping[str, float]
) -> list[list[str]]:
    """Rows with the best values bold, and what was measured here bold by name."""
    written: list[list[str]] = []
    for row in rows:
        cells = _cells(row, metrics)
        cells[0] = f"**{row.method}**" if row.ours else row.method
        for place, name in enumerate(metrics, 3):
            if row.values.get(name) == best.get(name):
                cells[place] = f"**{cells[place]}**"
        written.append(cells)
    return written


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in head[1:])]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in [head, rule, *body]]
    return [f"| {' | '.join(row)} |" for row in rows]


def _csv(results: Results, rows: Sequence[Row]) -> str:
    """One number per line: of the set (clip "mean"), of each clip, and published."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [
        "protocol",
        "method",
        "clip",
        "metric",
        "value",
        "parameters",
        "seconds_per_frame",
        "weights_sha256",
    ]
    writer.writerow([*head, "source"])
    for model in results.models:
        facts = [
            model.parameters,
            f"{model.seconds_per_frame:.6g}",
            model.weights_sha256 or "",
            MEASURED,
        ]
        for clip, means in (
            ("mean", model.mean),
            *((clip.identity.clip, clip.mean) for clip in model.clips),
        ):
            for name, value in means.items():
                writer.writerow([results.name, model.model, clip, name, f"{value:.6f}", *facts])
    for row in rows:
        if not row.ours:
            for name, value in row.values.items():
                count = "" if row.parameters is None else round(row.parameters)
                writer.writerow(
                    [results.name, row.method, "mean", name, value, count, "", "", row.source]
                )
    return text.getvalue()


def _latex(results: Results, rows: Sequence[Row]) -> str:
    best = best_values(rows, results.metrics)
    columns = f"l{'r' * (2 + len(results.metrics))}l"
    head = ["Method", "Params (M)", "Time (ms)", *map(_latex_heading, results.metrics), "Source"]
    lines = [
        *(f"% {note}" for note in report_notes(results, rows)),
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        " & ".join(head) + " \\\\",
        "\\midrule",
    ]
    for row in rows:
        cells = [_latex_text(cell) for cell in _cells(row, results.metrics)]
        for place, name in enumerate(results.metrics, 3):
            if row.values.get(name) == best.get(name):
                cells[place] = f"\\textbf{{{cells[place]}}}"
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_heading(name: str) -> str:
    info = metric_info(name)
    arrow = "$\\uparrow$" if info.direction == "higher" else "$\\downarrow$"
    return f"{_latex_text(name.upper())} {arrow}"


def _latex_text(text: str) -> str:
    special = {
        "\\": "\\textbackslash{}",
        "–": "--",
        "∞": "$\\infty$",
        "×": "$\\times$",
        "~": "\\textasciitilde{}",
    }
    special |= {"^": "\\textasciicircum{}"} | {mark: f"\\{mark}" for mark in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)
