"""Report of an evaluation: the same tables as Markdown, CSV, LaTeX (booktabs) and an HTML page.

It is created from the folder of the results only, so it can be written again without measuring.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
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
from tubelet.evaluation.results import ModelScore, Results, read_results
from tubelet.files import atomic_write
from tubelet.metrics.measure import metric_info

__all__ = ["write_report"]

_FIRST_METRIC_COLUMN = 3
"""Index of the first metric in a row: after the method, its parameters and its time."""

_CSV_COLUMNS = (
    "protocol",
    "method",
    "clip",
    "metric",
    "value",
    "parameters",
    "seconds_per_frame",
    "weights_sha256",
    "source",
)

_LATEX_ESCAPES = str.maketrans(
    {
        "\\": "\\textbackslash{}",
        "^": "\\textasciicircum{}",
        "~": "\\textasciitilde{}",
        "&": "\\&",
        "%": "\\%",
        "$": "\\$",
        "#": "\\#",
        "_": "\\_",
        "{": "\\{",
        "}": "\\}",
        "–": "--",
        "∞": "$\\infty$",
        "×": "$\\times$",
    }
)


def write_report(out: Path) -> list[Path]:
    """Write report.md, report.csv, report.tex and report.html into the folder of an evaluation.

    Args:
        out: Folder that `evaluate` wrote.

    Returns:
        The paths of the four files.

    Raises:
        InputError: The folder has no results, or some of them are missing.
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
        with atomic_write(path) as temporary:
            temporary.write_text(text, "utf-8")
        paths.append(path)
    return paths


def _row_cells(row: Row, metrics: Sequence[str]) -> list[str]:
    """Write the cells of a row, in the order of the columns of Markdown and LaTeX."""
    cells = [
        row.method,
        parameters_text(row.parameters),
        time_text(row.seconds_per_frame),
    ]
    for metric in metrics:
        cells.append(metric_text(metric, row.values.get(metric)))
    cells.append(row.source)
    return cells


def _best_columns(
    row: Row,
    metrics: Sequence[str],
    best: Mapping[str, float],
) -> list[int]:
    """List the columns in which a row has the best score."""
    columns: list[int] = []
    for column, metric in enumerate(metrics, _FIRST_METRIC_COLUMN):
        if row.values.get(metric) == best.get(metric):
            columns.append(column)
    return columns


def _markdown(results: Results, rows: Sequence[Row]) -> str:
    lines = [f"# {results.name}", ""]
    for note in report_notes(results, rows):
        lines += [note, ""]

    # Table of results: measured methods and the best scores are bold.
    best = best_values(rows, results.metrics)
    headings = map(metric_heading, results.metrics)
    body: list[list[str]] = []
    for row in rows:
        cells = _row_cells(row, results.metrics)
        bold_columns = _best_columns(row, results.metrics, best)
        if row.measured_here:
            bold_columns.append(0)
        for column in bold_columns:
            cells[column] = f"**{cells[column]}**"
        body.append(cells)
    header = ["Method", "Parameters (M)", "Time (ms)", *headings, "Source"]
    lines += ["## Results", "", *_markdown_table(header, body)]

    # A table of clips per metric.
    names = [model.model for model in results.models]
    for metric in results.metrics:
        body = []
        for clip, scores in clip_scores(results, metric, limit=MAX_CLIPS):
            cells = [metric_text(metric, score) for score in scores]
            body.append([clip, *cells])
        lines += ["", f"## {metric_heading(metric)} of each clip", ""]
        lines += _markdown_table(["Clip", *names], body)
        note = omitted_clips_note(results)
        if note:
            lines += ["", note]

    # Weight files.
    body = []
    for model in results.models:
        body.append([model.model, model.weights_sha256 or "none: a fixed kernel"])
    lines += ["", "## Weights", "", *_markdown_table(["Model", "SHA-256"], body)]
    return "\n".join(lines) + "\n"


def _markdown_table(
    header: Sequence[str],
    body: Sequence[Sequence[str]],
) -> list[str]:
    """Write the lines of a table whose first column is text and whose others are numbers."""
    # The second line of a Markdown table aligns its columns: text left, numbers right.
    alignment = ["---", *["---:"] * (len(header) - 1)]
    lines: list[str] = []
    for row in (header, alignment, *body):
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _csv(results: Results, rows: Sequence[Row]) -> str:
    """Write one score per line: of the benchmark (clip "mean"), of each clip, and published."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    # The mean over the clips first, then the clips.
    for model in results.models:
        writer.writerows(_measured_csv_rows(results.name, model, "mean", model.mean))
        for clip in model.clips:
            writer.writerows(_measured_csv_rows(results.name, model, clip.identity.clip, clip.mean))
    for row in rows:
        if not row.measured_here:
            writer.writerows(_published_csv_rows(results.name, row))
    return text.getvalue()


def _measured_csv_rows(
    protocol: str,
    model: ModelScore,
    clip: str,
    means: Mapping[str, float],
) -> Iterator[tuple[object, ...]]:
    """Yield the scores of a model on a clip, or on the benchmark."""
    for metric, value in means.items():
        yield (
            protocol,
            model.model,
            clip,
            metric,
            f"{value:.6f}",
            model.parameters,
            f"{model.seconds_per_frame:.6g}",
            model.weights_sha256 or "",
            MEASURED,
        )


def _published_csv_rows(
    protocol: str,
    row: Row,
) -> Iterator[tuple[object, ...]]:
    """Yield the published scores of a method, whose time and weights are unknown."""
    parameters = "" if row.parameters is None else round(row.parameters)
    for metric, value in row.values.items():
        yield (
            protocol,
            row.method,
            "mean",
            metric,
            value,
            parameters,
            "",
            "",
            row.source,
        )


def _latex(results: Results, rows: Sequence[Row]) -> str:
    headings = map(_latex_heading, results.metrics)
    header = ["Method", "Params (M)", "Time (ms)", *headings, "Source"]
    alignment = f"l{'r' * (2 + len(results.metrics))}l"
    lines: list[str] = []
    for note in report_notes(results, rows):
        lines.append(f"% {note}")
    lines += [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        " & ".join(header) + " \\\\",
        "\\midrule",
    ]
    # Cells are escaped before the commands for bold text are added.
    best = best_values(rows, results.metrics)
    for row in rows:
        cells = list(map(_escape_latex, _row_cells(row, results.metrics)))
        for column in _best_columns(row, results.metrics, best):
            cells[column] = f"\\textbf{{{cells[column]}}}"
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_heading(metric: str) -> str:
    higher_is_better = metric_info(metric).direction == "higher"
    arrow = "$\\uparrow$" if higher_is_better else "$\\downarrow$"
    return f"{_escape_latex(metric.upper())} {arrow}"


def _escape_latex(text: str) -> str:
    return text.translate(_LATEX_ESCAPES)
