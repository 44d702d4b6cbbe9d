"""What the papers report: every figure of every results table, with its source.

The figures are in `published_tables`, one TOML file per paper, a row of a table per line:

    [[tables]]
    number = "2"                                  # as printed
    kind = "cost"                                 # see `Kind`
    title = "..."                                 # what it compares, in our words
    columns = ["params-m", "runtime-ms", "reds4-bi-x4 psnr-rgb"]
    size = "320x180"                              # of the low-quality frame that costs hold for; only with costs
    note = "..."                                  # what the table leaves unsaid, and what was damaged in its text
    rows = '''
    BasicVSR++ | 7.3 | 77 | 32.39
    TDAN | - | - | -
    '''

A row is the method, then a cell per column. A cell is a number with the digits that were printed, "-" or nothing where
the paper gives nothing, or a word (a tick is "✓"). A column is "PROTOCOL METRIC", with the names of
`metrics.protocols` and `metrics.measure`, or a quantity with its unit: "params-m" (millions), "flops-t" (10¹²),
"runtime-ms", "memory-mb", "gpu-days", "training-frames".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
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

_NAMES: dict[Paper, str] = {
    "pfvsr": "PFVSR",
    "sateco": "SATeCo",
    "two-step": "two-step",
    "lrti-vsr": "LRTI-VSR",
    "survey": "VSR survey",
}
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SAME_METHOD = {"VSR-T": "VSRT", "PSRT-recurrent": "PSRT"}
"""Methods that papers call by different names."""
_COST_COLUMNS = ("params-m", "flops-t", "runtime-ms", "memory-mb")


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One line of a table.

    Attributes:
        method: what the line is about; no two lines of a table have the same.
        cells: one per column of the table; None where the paper gives nothing.
    """

    method: str
    cells: tuple[str | float | None, ...]


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One table of a paper, all of it.

    Attributes:
        paper: its short name.
        number: as printed, "1" or "III".
        title: what it compares, in our words.
        columns: "PROTOCOL METRIC", or a quantity with its unit.
        rows: its lines, in the order of the paper.
        note: what one must know to read it.
        kind: a comparison of methods, their cost, an ablation within one method, a user study, or words only.
        size: "WIDTHxHEIGHT" of the low-quality frame that its costs hold for; empty where it has none.
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
        """What to cite: "PFVSR, Table 1"."""
        return f"{_NAMES[self.paper]}, Table {self.number}"

    def cell(self, method: str, column: str) -> str | float | None:
        """Read one cell.

        Raises:
            RequestError: the table has no such row or column.
        """
        if column not in self.columns:
            raise RequestError(
                f"{self.source} has no column {column!r}; it has {', '.join(self.columns)}"
            )
        for row in self.rows:
            if row.method == method:
                return row.cells[self.columns.index(column)]
        raise RequestError(
            f"{self.source} has no row {method!r}; it has {', '.join(row.method for row in self.rows)}"
        )


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """What a method reaches on a benchmark.

    Attributes:
        method: its name, the same in all papers.
        metric: "psnr-y", "ssim-rgb", "lpips", …
        value: as printed.
        source: the tables that print this value, "PFVSR, Table 1; SATeCo, Table 1".
        protocol: the one that the tables' column stands for.
    """

    method: str
    metric: str
    value: float
    source: str
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCost:
    """What a method costs, in the figures of one paper; None where it gives none.

    Attributes:
        method: its name, the same in all papers.
        params_m: millions of parameters.
        flops_g: 10⁹ operations for one frame.
        runtime_ms: for one frame, on the paper's device.
        memory_mb: at inference.
        size: "WIDTHxHEIGHT" of the low-quality frame.
        source: the tables it is from.
        note: what these tables say of their figures.
    """

    method: str
    params_m: float | None
    flops_g: float | None
    runtime_ms: float | None
    memory_mb: float | None
    size: str
    source: str
    note: str


def _read_cell(text: str) -> str | float | None:
    if text in ("", "-"):
        return None
    return float(text) if _NUMBER.fullmatch(text) else text


def _read_table(paper: Paper, entry: dict[str, Any]) -> PublishedTable:
    lines = [
        [part.strip() for part in line.split("|")]
        for line in entry.pop("rows").strip().splitlines()
    ]
    columns = tuple(entry.pop("columns"))
    for method, *cells in lines:
        if len(cells) != len(columns):
            raise ValueError(
                f"{paper}, table {entry['number']}, {method}: {len(cells)} cells, {len(columns)} columns"
            )
    rows = tuple(PublishedRow(method, tuple(map(_read_cell, cells))) for method, *cells in lines)
    return PublishedTable(paper=paper, columns=columns, rows=rows, **entry)


def _read_paper(paper: Paper) -> list[PublishedTable]:
    path = Path(__file__).parent / "published_tables" / f"{paper.replace('-', '_')}.toml"
    with path.open("rb") as file:
        return [_read_table(paper, entry) for entry in tomllib.load(file)["tables"]]


TABLES: tuple[PublishedTable, ...] = tuple(
    table for paper in _NAMES for table in _read_paper(paper)
)
"""Tables 1–7 of PFVSR, 1–3 of SATeCo, I–III of two-step, 1–7 of LRTI-VSR, 1–2 of the survey."""


def find_tables(paper: str | None = None) -> list[PublishedTable]:
    """List the tables of one paper, or of all.

    Args:
        paper: "pfvsr", "sateco", "two-step", "lrti-vsr" or "survey".

    Raises:
        RequestError: there is no such paper.
    """
    known: tuple[str, ...] = get_args(Paper)
    if paper is not None and paper not in known:
        raise RequestError(f"no tables of a paper {paper!r}; {suggest(paper, known)}")
    return [table for table in TABLES if paper in (None, table.paper)]


def published_scores(protocol: str, *, ablations: bool = False) -> list[PublishedScore]:
    """Collect what the papers report under a protocol.

    The papers do not say which BD convention, border or frames each of their figures follows, and one column mixes
    them. So the variants of a protocol ("vid4-bd-b-x4", "vid4-bd-x4-crop8") share the figures of the plain one;
    `PublishedScore.protocol` says which that is.

    Args:
        protocol: name of a protocol; one that no paper uses has no scores.
        ablations: also those of ablations, whose methods are parts and variants of one model.

    Returns:
        One entry per method, metric and value, in the order of `TABLES`; methods on which papers disagree have several.
    """
    plain = re.sub(r"-(bi-u8|bd-[bc])-", lambda found: f"-{found[1][:2]}-", protocol)
    plain = re.sub(r"(-crop8)?(-drop2)?$", "", plain)
    sources: dict[tuple[str, str, float], list[str]] = {}
    for table in _tables_with_figures(ablations=ablations):
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                name, _, metric = column.partition(" ")
                if name == plain and metric and isinstance(cell, float):
                    method = _SAME_METHOD.get(row.method, row.method)
                    sources.setdefault((method, metric, cell), []).append(table.source)
    return [
        PublishedScore(*key, source="; ".join(found), protocol=plain)
        for key, found in sources.items()
    ]


def published_costs(*, ablations: bool = False) -> list[PublishedCost]:
    """Collect what the papers report of parameters, operations, time and memory.

    Args:
        ablations: also those of ablations, whose methods are parts and variants of one model.

    Returns:
        One entry per method and paper, in the order of `TABLES`; papers differ in device and in what they count.
    """
    found: dict[tuple[str, Paper], list[tuple[PublishedTable, PublishedRow]]] = {}
    for table in _tables_with_figures(ablations=ablations):
        for row in table.rows:
            figures = dict(zip(table.columns, row.cells, strict=True))
            if any(isinstance(figures.get(column), float) for column in _COST_COLUMNS):
                method = _SAME_METHOD.get(row.method, row.method)
                found.setdefault((method, table.paper), []).append((table, row))
    return [_merge_costs(method, lines) for (method, _), lines in found.items()]


def _tables_with_figures(*, ablations: bool) -> Iterable[PublishedTable]:
    kinds: tuple[Kind, ...] = (
        ("comparison", "cost", "ablation") if ablations else ("comparison", "cost")
    )
    return (table for table in TABLES if table.kind in kinds)


def _merge_costs(method: str, lines: list[tuple[PublishedTable, PublishedRow]]) -> PublishedCost:
    """Make one entry of the lines that the tables of one paper give a method; they must not contradict each other."""
    figures: dict[str, float] = {}
    for table, row in lines:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if (
                column in _COST_COLUMNS
                and isinstance(cell, float)
                and figures.setdefault(column, cell) != cell
            ):
                raise ValueError(
                    f"{table.source}: {method} has another {column} than in {lines[0][0].source}"
                )
    flops_t = figures.get("flops-t")
    return PublishedCost(
        method=method,
        params_m=figures.get("params-m"),
        flops_g=None if flops_t is None else round(flops_t * 1000, 3),
        runtime_ms=figures.get("runtime-ms"),
        memory_mb=figures.get("memory-mb"),
        size=lines[0][0].size,
        source="; ".join(table.source for table, _ in lines),
        note=" ".join(table.note for table, _ in lines),
    )
