"""Published figures: every number of every results table of five papers, with its source.

The figures are in `published_tables`, one TOML file per paper, a row of a table per line:

    [[tables]]
    number = "2"                                  # as printed
    kind = "cost"                                 # see `Kind`
    title = "..."                                 # subject of the comparison, in our words
    columns = ["params-m", "runtime-ms", "reds4-bi-x4 psnr-rgb"]
    size = "320x180"                              # low-quality frame of the costs; only with costs
    note = "..."                                  # conditions, and damage in the text of the paper
    rows = '''
    BasicVSR++ | 7.3 | 77 | 32.39
    TDAN | - | - | -
    '''

A row is the method, then a cell per column. A cell is a number with the printed digits, "-" or
nothing where the paper has no value, or a word (a tick is "✓"). A column is "PROTOCOL METRIC", with
the names of `metrics.protocols` and `metrics.measure`, or a quantity with its unit: "params-m"
(millions), "flops-t" (10¹²), "runtime-ms", "memory-mb", "gpu-days", "training-frames".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tubelet.errors import RequestError, suggest

__all__ = [
    "TABLES",
    "PublishedCost",
    "PublishedRow",
    "PublishedScore",
    "PublishedTable",
    "find_tables",
    "published_costs",
    "published_scores",
]

Paper = Literal["pfvsr", "sateco", "two-step", "lrti-vsr", "survey"]
Kind = Literal["comparison", "cost", "ablation", "user-study", "taxonomy"]
Cell = str | float | None

_TITLES: dict[Paper, str] = {
    "pfvsr": "PFVSR",
    "sateco": "SATeCo",
    "two-step": "two-step",
    "lrti-vsr": "LRTI-VSR",
    "survey": "VSR survey",
}
_NUMBER = re.compile(r"\d+(\.\d+)?")
_COMMON_NAMES = {"VSR-T": "VSRT", "PSRT-recurrent": "PSRT"}
"""Names of methods in single papers → names in the other papers."""
_COST_COLUMNS = ("params-m", "flops-t", "runtime-ms", "memory-mb")


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row of a table.

    Attributes:
        method: Subject of the row, unique in the table.
        cells: One value per column of the table; None where the paper has none.
    """

    method: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One complete table of a paper.

    Attributes:
        paper: Short name of the paper.
        number: Number of the table as printed, "1" or "III".
        title: Subject of the comparison, in our words.
        columns: "PROTOCOL METRIC", or a quantity with its unit.
        rows: Rows, in the order of the paper.
        note: Conditions that a reader must know.
        kind: A comparison of methods, their cost, an ablation of one method, a user study, or a
            taxonomy in words.
        size: "WIDTHxHEIGHT" of the low-quality frame of the costs; empty without costs.
    """

    paper: Paper
    number: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    note: str
    kind: Kind
    size: str = ""

    @property
    def source(self) -> str:
        """Citation of the table, for example "PFVSR, Table 1"."""
        return f"{_TITLES[self.paper]}, Table {self.number}"

    def cell(self, method: str, column: str) -> Cell:
        """Return the value of a cell.

        Raises:
            RequestError: The table has no such row or column.
        """
        if column not in self.columns:
            columns = ", ".join(self.columns)
            raise RequestError(f"{self.source} has no column {column!r}; it has {columns}")
        position = self.columns.index(column)
        cells = {row.method: row.cells[position] for row in self.rows}
        if method not in cells:
            methods = ", ".join(cells)
            raise RequestError(f"{self.source} has no row {method!r}; it has {methods}")
        return cells[method]


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """Score of a method on a benchmark.

    Attributes:
        method: Name of the method, the same for all papers.
        metric: "psnr-y", "ssim-rgb", "lpips", …
        value: Score as printed.
        source: Tables that print this score, "PFVSR, Table 1; SATeCo, Table 1".
        protocol: Protocol of the column in these tables.
    """

    method: str
    metric: str
    value: float
    source: str
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCost:
    """Cost of a method according to one paper; None where the paper has no value.

    Attributes:
        method: Name of the method, the same for all papers.
        params_m: Parameters, millions.
        flops_g: Operations per frame, 10⁹.
        runtime_ms: Time per frame on the paper's device, milliseconds.
        memory_mb: Memory at inference, MB.
        size: "WIDTHxHEIGHT" of the low-quality frame.
        source: Tables that print the values.
        note: Notes of these tables.
    """

    method: str
    params_m: float | None
    flops_g: float | None
    runtime_ms: float | None
    memory_mb: float | None
    size: str
    source: str
    note: str


def _parse_cell(text: str) -> Cell:
    if text in ("", "-"):
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    return text


def _parse_rows(text: str) -> Iterator[PublishedRow]:
    for line in text.strip().splitlines():
        method, *cells = map(str.strip, line.split("|"))
        yield PublishedRow(method, tuple(map(_parse_cell, cells)))


def _parse_table(paper: Paper, entry: dict[str, Any]) -> PublishedTable:
    """Build a table from its TOML entry.

    Raises:
        ValueError: A row does not have a cell per column.
    """
    # Other keys of the entry are fields of the table by the same name.
    columns = tuple(entry.pop("columns"))
    rows = tuple(_parse_rows(entry.pop("rows")))
    for row in rows:
        if len(row.cells) != len(columns):
            raise ValueError(
                f"{paper}, table {entry['number']}, {row.method}: "
                f"{len(row.cells)} cells, {len(columns)} columns"
            )
    return PublishedTable(paper=paper, columns=columns, rows=rows, **entry)


def _read_tables() -> Iterator[PublishedTable]:
    folder = Path(__file__).parent / "published_tables"
    for paper in _TITLES:
        path = folder / f"{paper.replace('-', '_')}.toml"
        content = tomllib.loads(path.read_text("utf-8"))
        for entry in content["tables"]:
            yield _parse_table(paper, entry)


TABLES: tuple[PublishedTable, ...] = tuple(_read_tables())
"""Tables 1–7 of PFVSR, 1–3 of SATeCo, I–III of two-step, 1–7 of LRTI-VSR, 1–2 of the survey."""


def find_tables(paper: str | None = None) -> list[PublishedTable]:
    """List the tables of one paper, or of all.

    Args:
        paper: "pfvsr", "sateco", "two-step", "lrti-vsr" or "survey"; None is all.

    Raises:
        RequestError: There is no such paper.
    """
    if paper is None:
        return list(TABLES)
    papers: tuple[str, ...] = get_args(Paper)
    if paper not in papers:
        suggestion = suggest(paper, papers)
        raise RequestError(f"no tables of a paper {paper!r}; {suggestion}")
    return [table for table in TABLES if table.paper == paper]


def published_scores(
    protocol: str,
    *,
    ablations: bool = False,
) -> list[PublishedScore]:
    """Collect the published scores under a protocol.

    The papers do not specify which BD convention, border or frames each of their figures follows,
    and one column mixes them. So the variants of a protocol ("vid4-bd-b-x4", "vid4-bd-x4-crop8")
    share the scores of the base protocol, which `PublishedScore.protocol` names.

    Args:
        protocol: Name of a protocol; one that no paper uses has no scores.
        ablations: Whether to include ablations, whose methods are variants of one model.

    Returns:
        One entry per method, metric and value, in the order of `TABLES`. A method on which papers
        disagree has several.
    """
    base_protocol = _base_protocol(protocol)
    # (method, metric, value) → tables that print it.
    sources: dict[tuple[str, str, float], list[str]] = {}
    for table, row in _rows_with_figures(ablations=ablations):
        method = _method_name(row)
        for column, value in _numbers(table, row).items():
            # Columns without a space are costs.
            column_protocol, _, metric = column.partition(" ")
            if metric and column_protocol == base_protocol:
                key = (method, metric, value)
                sources.setdefault(key, []).append(table.source)
    scores: list[PublishedScore] = []
    for (method, metric, value), tables in sources.items():
        scores.append(
            PublishedScore(
                method=method,
                metric=metric,
                value=value,
                source="; ".join(tables),
                protocol=base_protocol,
            )
        )
    return scores


def published_costs(*, ablations: bool = False) -> list[PublishedCost]:
    """Collect the published parameters, operations, times and memory.

    Args:
        ablations: Whether to include ablations, whose methods are variants of one model.

    Returns:
        One entry per method and paper, in the order of `TABLES`. Papers differ in their device and
        in the operations that they count.
    """
    # Costs of a method may be spread over several tables of a paper.
    entries: dict[tuple[str, Paper], list[tuple[PublishedTable, PublishedRow]]] = {}
    for table, row in _rows_with_figures(ablations=ablations):
        if _row_costs(table, row):
            key = (_method_name(row), table.paper)
            entries.setdefault(key, []).append((table, row))
    costs: list[PublishedCost] = []
    for (method, _), rows in entries.items():
        costs.append(_merge_costs(method, rows))
    return costs


def _base_protocol(protocol: str) -> str:
    """Remove the rounding or BD convention, the border and the excluded frames from a name."""
    name = protocol.replace("-bi-u8-", "-bi-")
    name = re.sub("-bd-[bc]-", "-bd-", name)
    return re.sub(r"(-crop8)?(-drop2)?$", "", name)


def _method_name(row: PublishedRow) -> str:
    return _COMMON_NAMES.get(row.method, row.method)


def _rows_with_figures(
    *,
    ablations: bool,
) -> Iterator[tuple[PublishedTable, PublishedRow]]:
    """Yield the rows of the tables that have scores or costs, each with its table."""
    kinds: set[Kind] = {"comparison", "cost"}
    if ablations:
        kinds.add("ablation")
    for table in TABLES:
        if table.kind not in kinds:
            continue
        for row in table.rows:
            yield table, row


def _numbers(table: PublishedTable, row: PublishedRow) -> dict[str, float]:
    """Select the cells of a row that are numbers, not marks such as a tick, by column."""
    numbers: dict[str, float] = {}
    for column, cell in zip(table.columns, row.cells, strict=True):
        if isinstance(cell, float):
            numbers[column] = cell
    return numbers


def _row_costs(table: PublishedTable, row: PublishedRow) -> dict[str, float]:
    """Select the costs of a row, by column."""
    costs: dict[str, float] = {}
    for column, value in _numbers(table, row).items():
        if column in _COST_COLUMNS:
            costs[column] = value
    return costs


def _merge_costs(
    method: str,
    rows: Sequence[tuple[PublishedTable, PublishedRow]],
) -> PublishedCost:
    """Merge the rows of one paper on a method.

    Raises:
        ValueError: Two tables contradict each other.
    """
    first_table, _ = rows[0]
    figures: dict[str, float] = {}
    sources: list[str] = []
    notes: list[str] = []
    for table, row in rows:
        sources.append(table.source)
        notes.append(table.note)
        for column, value in _row_costs(table, row).items():
            if figures.setdefault(column, value) != value:
                raise ValueError(
                    f"{table.source}: {method} has another {column} than in {first_table.source}"
                )
    # Tables are in 10¹² operations. The product is rounded, as 2.01 · 1000 is not exactly 2010.
    flops_g: float | None = None
    if "flops-t" in figures:
        flops_g = round(figures["flops-t"] * 1000, 3)
    return PublishedCost(
        method=method,
        params_m=figures.get("params-m"),
        flops_g=flops_g,
        runtime_ms=figures.get("runtime-ms"),
        memory_mb=figures.get("memory-mb"),
        size=first_table.size,
        source="; ".join(sources),
        note=" ".join(notes),
    )
