"""The tables of the papers: complete, and with the printed figures."""

import re
import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from tubelet.errors import RequestError
from tubelet.evaluation.published import (
    TABLES,
    PublishedTable,
    find_tables,
    published_costs,
    published_scores,
)
from tubelet.metrics.measure import METRICS
from tubelet.metrics.protocols import find_protocol


class Shape(NamedTuple):
    """Size of a table, counted in the paper."""

    paper: str
    number: str
    rows: int
    columns: int
    numbers: int


SHAPES = [
    Shape("pfvsr", "1", 24, 12, 220),
    Shape("pfvsr", "2", 6, 4, 24),
    Shape("pfvsr", "3", 5, 5, 25),
    Shape("pfvsr", "4", 2, 2, 4),
    Shape("pfvsr", "5", 2, 2, 4),
    Shape("pfvsr", "6", 4, 2, 8),
    Shape("pfvsr", "7", 8, 12, 96),
    Shape("sateco", "1", 8, 12, 96),
    Shape("sateco", "2", 4, 9, 20),
    Shape("sateco", "3", 5, 6, 28),
    Shape("two-step", "I", 3, 1, 3),
    Shape("two-step", "II", 11, 2, 22),
    Shape("two-step", "III", 11, 2, 22),
    Shape("lrti-vsr", "1", 3, 1, 3),
    Shape("lrti-vsr", "2", 6, 4, 23),  # and "+21.2", which adds to another figure
    Shape("lrti-vsr", "3", 4, 6, 20),
    Shape("lrti-vsr", "4", 5, 5, 23),
    Shape("lrti-vsr", "5", 6, 6, 18),
    Shape("lrti-vsr", "6", 15, 7, 97),
    Shape("lrti-vsr", "7", 5, 4, 20),
    Shape("survey", "1", 13, 14, 134),
    Shape("survey", "2", 9, 5, 0),
]


def table_of(paper: str, number: str) -> PublishedTable:
    (table,) = (table for table in find_tables(paper) if table.number == number)
    return table


def test_no_table_is_missing() -> None:
    assert [(table.paper, table.number) for table in TABLES] == [
        (shape.paper, shape.number) for shape in SHAPES
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.paper}-{shape.number}")
def test_no_row_column_or_figure_is_missing(shape: Shape) -> None:
    table = table_of(shape.paper, shape.number)
    cells = [cell for row in table.rows for cell in row.cells]
    assert (len(table.rows), len(table.columns)) == (shape.rows, shape.columns)
    assert len(cells) == shape.rows * shape.columns
    assert sum(isinstance(cell, float) for cell in cells) == shape.numbers
    assert len({row.method for row in table.rows}) == shape.rows
    assert len(set(table.columns)) == shape.columns
    assert table.title
    assert table.note
    assert "\n" not in table.note


SPOTS = [
    ("pfvsr", "1", "Bicubic", "vid4-bd-x4 ssim-y", 0.5246),
    ("pfvsr", "1", "DUF", "vid4-bi-x4 psnr-y", 27.33),
    ("pfvsr", "1", "MuCAN", "vid4-bi-x4 psnr-y", None),
    ("pfvsr", "1", "PSRT", "vid4-bi-x4 ssim-y", 0.8485),
    ("pfvsr", "1", "PSRT", "udm10-bd-x4 psnr-y", None),
    ("pfvsr", "1", "PFVSR", "udm10-bd-x4 psnr-y", 40.96),
    ("pfvsr", "1", "PFVSR2", "reds4-bi-x4 psnr-rgb", 33.08),
    ("pfvsr", "1", "PFVSR3", "vid4-bd-x4 ssim-y", 0.8829),
    ("pfvsr", "2", "VSRT", "memory-mb", 27487.0),
    ("pfvsr", "2", "PFVSR", "params-m", 9.1),
    ("pfvsr", "3", "B1: SwinIR", "trained-params-m", 0.0),
    ("pfvsr", "3", "B5: B4 on HAT", "runtime-ms", 152.0),
    ("pfvsr", "4", "adapter after attention", "reds4-bi-x4 psnr-rgb", 31.98),
    ("pfvsr", "5", "S-MSA before T-MSA", "reds4-bi-x4 ssim-rgb", 0.8891),
    ("pfvsr", "6", "BI images, BD video", "vimeo90k-t psnr-y", 37.89),
    ("pfvsr", "7", "PFVSR", "vid4-bi-x4 coherence-percent", 20.1),
    ("pfvsr", "7", "Real Video", "reds4-bi-x4 realism-percent", 34.1),
    ("sateco", "1", "SATeCo", "vid4-bi-x4 dists", 0.1015),
    ("sateco", "1", "StableSR", "vid4-bi-x4 clip-iqa", 0.7644),
    ("sateco", "1", "VRT (6 frames)", "reds4-bi-x4 psnr-rgb", 31.60),
    ("sateco", "2", "A", "unet-sfa", None),
    ("sateco", "2", "B", "unet-sfa", "✓"),
    ("sateco", "2", "B", "unet-tfa", None),
    ("sateco", "2", "C", "unet-tfa", "✓"),
    ("sateco", "2", "C", "vae-sfa", None),
    ("sateco", "2", "D", "vae-tfa", "✓"),
    ("sateco", "3", "upscaler PixelShuffle", "reds4-bi-x4 lpips", 0.1979),
    ("sateco", "3", "refiner, w = 0", "reds4-bi-x4 niqe", 3.457),
    ("two-step", "I", "two-step (MAE)", "openvid-1m-x2 psnr-rgb", 30.73),
    ("two-step", "II", "MAE + SSIM, α = 0.8", "openvid-1m-x2 psnr-rgb", 30.86),
    ("two-step", "III", "encoder loss, α = 0.10", "openvid-1m-x2 psnr-rgb", 30.745),
    ("lrti-vsr", "1", "ReLU²", "reds4-bi-x4 psnr-rgb", 31.02),
    ("lrti-vsr", "2", "PSRT + TB", "gpu-days", "+21.2"),
    ("lrti-vsr", "2", "BasicVSR + TB", "reds4-bi-x4 ssim-rgb", 0.9060),
    ("lrti-vsr", "3", "LRTI-VSR-small, 8 frames + TB", "tb", "✓"),
    ("lrti-vsr", "3", "LRTI-VSR-small, 24 frames", "memory-gb", 10.9),
    ("lrti-vsr", "4", "LRTI-VSR-small, 4 of 40 frames", "memory-gb", 2.9),
    ("lrti-vsr", "4", "LRTI-VSR-small, 40 frames", "truncated-frames", None),
    ("lrti-vsr", "5", "RITB, RGU alone", "reds4-bi-x4 psnr-rgb", 30.97),
    ("lrti-vsr", "5", "RITB, RGU alone", "relu2", None),
    ("lrti-vsr", "5", "MFSAB", "params-m", 6.41),
    ("lrti-vsr", "6", "LRTI-VSR-small", "tos3-bi-x4 psnr-rgb", 34.37),
    ("lrti-vsr", "6", "VRT (6 frames)", "tos3-bi-x4 ssim-rgb", 0.9217),
    ("lrti-vsr", "6", "TOFlow", "flops-t", None),
    ("lrti-vsr", "7", "RVRT", "runtime-ms", 473.0),
    ("survey", "1", "RBPN", "vid4-bd-x4 psnr-y", None),
    ("survey", "1", "TDAN", "vid4-bd-x4 ssim-y", 0.814),
    ("survey", "1", "RRN", "vimeo90k-t-bd-x4 psnr-y", None),
    ("survey", "2", "IconVSR", "aggregation", "concatenate + refill"),
    ("survey", "2", "EDVR", "aggregation", "concatenate + TSA"),
]


@pytest.mark.parametrize(("paper", "number", "method", "column", "value"), SPOTS)
def test_spots(
    paper: str, number: str, method: str, column: str, value: float | str | None
) -> None:
    assert table_of(paper, number).cell(method, column) == value


class Place(NamedTuple):
    """Location of a table's figures in the text of its paper.

    The reading is their order in the text: row after row ("pairs" where a cell is PSNR/SSIM, and
    one dash means both), or column after column where the paper has methods as columns or its text
    joins lines.
    """

    paper: str
    number: str
    first_line: int
    last_line: int
    reading: Literal["rows", "pairs", "columns"] = "rows"
    rows: slice = slice(None)


PLACES = [
    Place("pfvsr", "1", 104, 127, "pairs"),
    Place("pfvsr", "2", 142, 147),
    Place("pfvsr", "3", 166, 170),
    Place("pfvsr", "4", 270, 271),
    Place("pfvsr", "5", 286, 287),
    Place("pfvsr", "6", 309, 312),
    Place("pfvsr", "7", 341, 348),
    Place("sateco", "1", 109, 120, "columns"),
    Place("sateco", "2", 183, 186),
    Place("sateco", "3", 199, 203),
    Place("two-step", "I", 140, 140),
    Place("two-step", "II", 183, 184, "columns"),
    Place("two-step", "III", 188, 189, "columns"),
    Place("lrti-vsr", "1", 305, 306),
    Place("lrti-vsr", "2", 436, 441),
    Place("lrti-vsr", "3", 448, 448, "columns"),
    Place("lrti-vsr", "4", 451, 451, "columns"),
    Place("lrti-vsr", "5", 460, 460, "columns", slice(0, 2)),
    Place("lrti-vsr", "5", 461, 461, "columns", slice(2, 6)),
    Place("lrti-vsr", "6", 469, 483),
    Place("lrti-vsr", "7", 587, 591),
    Place("survey", "1", 33, 45, "pairs"),
    Place("survey", "2", 52, 60),
]
FILES = {"pfvsr": "000", "sateco": "001", "two-step": "002", "lrti-vsr": "003", "survey": "004"}
TOKEN = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?=(?:M|GB|dB)?(?![\w.]))|(?<![^\t])-(?![^\t])")
"""A number, with or without its unit, or a cell that is only a dash."""


def printed_figures(paper: Path, place: Place) -> list[str]:
    """Read the figures and dashes of a table from the text of its paper."""
    lines = paper.read_text(encoding="utf-8").splitlines()[place.first_line - 1 : place.last_line]
    text = re.sub(
        r"<sup>.*?</sup>|</?b>|\[[^\]]*\]|\([^()]*et al\.[^()]*\)", "", "\n".join(lines)
    ).replace("-/-", "-")
    return [
        token
        for line in text.split("\n")
        for token in TOKEN.findall(re.sub(r" *\t *", "\t", line.strip()))
    ]


def our_figures(place: Place) -> list[str]:
    """Read the same from our file, as written there."""
    data = (
        files("tubelet.evaluation") / "published_tables" / f"{place.paper.replace('-', '_')}.toml"
    )
    entries = tomllib.loads(data.read_text(encoding="utf-8"))["tables"]
    (entry,) = (entry for entry in entries if entry["number"] == place.number)
    rows = [
        [cell.strip() for cell in line.split("|")][1:]
        for line in entry["rows"].strip().splitlines()
    ][place.rows]
    if place.reading == "pairs":
        second = [" ssim-" in column for column in entry["columns"]]
        rows = [
            [cell for cell, ssim in zip(row, second, strict=True) if not (ssim and cell == "-")]
            for row in rows
        ]
    if place.reading == "columns":
        rows = [list(column) for column in zip(*rows, strict=True)]
    return [token for row in rows for token in TOKEN.findall("\t".join(row))]


def test_every_table_has_its_place_in_a_paper() -> None:
    assert {place[:2] for place in PLACES} == {shape[:2] for shape in SHAPES}


@pytest.mark.parametrize(
    "place", PLACES, ids=lambda place: f"{place.paper}-{place.number}-{place.first_line}"
)
def test_figures_are_those_of_the_paper(place: Place, shared: Path) -> None:
    (paper,) = (shared / "papers").glob(f"{FILES[place.paper]}_*.txt")
    assert our_figures(place) == printed_figures(paper, place)


def test_shares_of_the_user_study_add_up() -> None:
    study = table_of("pfvsr", "7")
    for index, column in enumerate(study.columns):
        shares = [row.cells[index] for row in study.rows]
        assert sum(share for share in shares if isinstance(share, float)) == pytest.approx(
            100, abs=0.05
        ), column


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.source)
def test_columns_name_protocols_and_metrics(table: PublishedTable) -> None:
    metrics = {info.name for info in METRICS} | {"realism-percent", "coherence-percent"}
    for protocol, metric in (column.split(" ") for column in table.columns if " " in column):
        assert metric in metrics
        if protocol in {
            "vimeo90k-t",
            "openvid-1m-x2",
        }:  # no degradation is named; a set of the authors
            continue
        channel = find_protocol(protocol).metrics[0].removeprefix("psnr")
        assert metric.endswith(channel) or not metric.startswith(("psnr", "ssim"))


def test_tables_of_one_paper_or_all() -> None:
    assert Counter(table.paper for table in find_tables()) == {
        "pfvsr": 7, "sateco": 3, "two-step": 3, "lrti-vsr": 7, "survey": 2,
    }  # fmt: skip
    assert [table.source for table in find_tables("two-step")] == [
        "two-step, Table I",
        "two-step, Table II",
        "two-step, Table III",
    ]


def test_unknown_names_suggest_what_there_is() -> None:
    with pytest.raises(RequestError, match="'pfvrs'; did you mean pfvsr"):
        find_tables("pfvrs")
    with pytest.raises(RequestError, match="no column 'psnr'; it has params-m, "):
        table_of("pfvsr", "2").cell("VRT", "psnr")
    with pytest.raises(RequestError, match="no row 'FRVSR'; it has BasicVSR"):
        table_of("pfvsr", "2").cell("FRVSR", "params-m")


def test_scores_of_several_papers_become_one() -> None:
    scores = published_scores("reds4-bi-x4")
    (bicubic,) = (s for s in scores if (s.method, s.metric) == ("Bicubic", "psnr-rgb"))
    assert (bicubic.value, bicubic.source) == (
        26.14,
        "PFVSR, Table 1; SATeCo, Table 1; VSR survey, Table 1",
    )
    (psrt,) = (s for s in scores if (s.method, s.metric) == ("PSRT", "ssim-rgb"))
    assert psrt.source == "PFVSR, Table 1; LRTI-VSR, Table 6"  # which calls it PSRT-recurrent
    assert {s.value for s in scores if s.method == "VRT" and s.metric == "psnr-rgb"} == {32.19}
    assert {"lpips", "dists", "niqe", "clip-iqa"} < {s.metric for s in scores}
    assert len({(s.method, s.metric) for s in scores}) == len(scores)


def test_variants_of_a_protocol_share_the_figures_of_the_plain_one() -> None:
    plain = published_scores("vid4-bd-x4")
    assert len(plain) == 46
    for variant in (
        "vid4-bd-b-x4",
        "vid4-bd-c-x4",
        "vid4-bd-x4-crop8",
        "vid4-bd-x4-drop2",
        "vid4-bd-b-x4-crop8-drop2",
    ):
        assert published_scores(variant) == plain
    assert published_scores("vid4-bi-x4-crop8") == published_scores("vid4-bi-x4") != plain
    assert published_scores("vid4-bd-b-x4")[0].protocol == "vid4-bd-x4"
    assert published_scores("folder-bi-x4") == []


def test_ablations_are_left_out_by_default() -> None:
    methods = {score.method for score in published_scores("reds4-bi-x4")}
    everything = {score.method for score in published_scores("reds4-bi-x4", ablations=True)}
    assert "B1: SwinIR" not in methods
    assert methods | {"B1: SwinIR", "BasicVSR + TB", "IIAB", "refiner, w = 0"} <= everything
    assert "Real Video" not in everything
    assert {score.method for score in published_scores("openvid-1m-x2")} == {
        "HAT",
        "two-step (MSE)",
        "two-step (MAE)",
    }


def test_costs() -> None:
    costs = {(cost.method, cost.source): cost for cost in published_costs()}
    lrti = costs["LRTI-VSR", "LRTI-VSR, Table 6; LRTI-VSR, Table 7"]
    assert (lrti.params_m, lrti.flops_g, lrti.runtime_ms, lrti.memory_mb) == (
        12.9,
        1540.0,
        848.0,
        None,
    )
    pfvsr = costs["PFVSR", "PFVSR, Table 2"]
    assert (pfvsr.params_m, pfvsr.flops_g, pfvsr.runtime_ms, pfvsr.memory_mb) == (
        9.1,
        None,
        152.0,
        843.0,
    )
    assert "only the trained parameters" in pfvsr.note
    assert costs["RRN", "VSR survey, Table 1"].runtime_ms == 45.0
    assert not any(cost.method in {"Bicubic", "TDAN", "TOFlow"} for cost in costs.values())
    assert {cost.size for cost in costs.values()} == {"320x180"}
    assert len(costs) == 29
    assert {cost.method for cost in published_costs(ablations=True)} > {
        "MFSAB",
        "B3: B2 + temporal adapters on T-MSA",
    }
