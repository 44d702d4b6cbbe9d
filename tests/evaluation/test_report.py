"""Reports: measured and published scores in four formats that agree, and a self-contained page."""

import base64
import csv
import io
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.evaluation_clips import write_frames, write_set
from tubelet.errors import InputError
from tubelet.evaluation.evaluate import evaluate
from tubelet.evaluation.published import PublishedScore
from tubelet.evaluation.report import write_report
from tubelet.evaluation.report_rows import comparison_rows, metric_text, report_notes
from tubelet.evaluation.results import (
    ClipScore,
    Identity,
    ModelScore,
    Results,
    protocol_facts,
    read_results,
    write_clip_score,
    write_results,
)
from tubelet.evaluation.settings import EvaluateSettings
from tubelet.metrics.protocols import find_protocol

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def image(attributes: dict[str, str | None]) -> np.ndarray:
    head, data = (attributes["src"] or "").split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def made_up(
    out: Path, protocol: str, scores: dict[str, Sequence[float]], *, max_frames: int | None = None
) -> Path:
    """Store an evaluation whose models have these PSNRs in every frame of clip `calendar`."""
    found = find_protocol(protocol)
    models: list[ModelScore] = []
    for model, values in scores.items():
        identity = Identity(
            model=model,
            weights_sha256=None,
            clip="calendar",
            source="",
            protocol={},
            max_frames=max_frames,
            device="cpu",
            precision="fp32",
            tubelet="0",
        )
        finite = [value for value in values if not math.isnan(value)]
        score = ClipScore(
            identity=identity,
            per_frame={"psnr-y": values, "ssim-y": [0.5] * len(values)},
            mean={"psnr-y": sum(finite) / len(finite), "ssim-y": 0.5},
            frames=len(values),
            first_frame=0,
            width=64,
            height=48,
            seconds_per_frame=0.01,
        )
        write_clip_score(out, score)
        models.append(
            ModelScore(
                model=model, summary="<&>", weights_sha256=None, parameters=12345, clips=(score,)
            )
        )
    metrics = ("psnr-y", "ssim-y")
    results = Results(
        protocol=protocol_facts(found), metrics=metrics, max_frames=max_frames, models=tuple(models)
    )
    write_results(out, results)
    return out


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    write_set(tmp_path / "clips")
    settings = EvaluateSettings(device="cpu")
    evaluate(
        ["bicubic", "lanczos"],
        "folder-bi-x4",
        tmp_path / "clips",
        tmp_path / "out",
        settings=settings,
    )
    write_report(tmp_path / "out")
    return tmp_path / "out"


def test_measured_and_published_rows_are_sorted_together(tmp_path: Path) -> None:
    results = read_results(made_up(tmp_path, "vid4-bi-x4", {"mine_1": [27.5, 27.5]}))
    rows = comparison_rows(results)
    values = [row.values["psnr-y"] for row in rows]
    assert values == sorted(values, reverse=True)
    (ours,) = [row for row in rows if row.measured_here]
    assert ours.method == "mine_1"
    assert ours.parameters == 12345
    basic = next(row for row in rows if row.method == "BasicVSR++")
    assert basic.values == {"psnr-y": 27.79, "ssim-y": 0.84}
    assert basic.parameters == pytest.approx(7.3e6)
    assert "PFVSR, Table 1" in basic.source
    assert rows.index(basic) < rows.index(ours)


def test_costs_are_plotted_if_one_paper_has_them(tmp_path: Path) -> None:
    out = made_up(tmp_path, "vid4-bi-x4", {"mine": [27.5, 27.5]})
    write_report(out)
    page = (out / "report.html").read_text("utf-8")
    assert (
        "VRT: PSNR-Y (dB) ↑ 27.93, ms per megapixel" in page
    )  # a second paper has VRT without a time
    assert (
        "RVRT: PSNR-Y (dB) ↑ 27.99, ms per megapixel of output 198.5" in page
    )  # the first of two papers
    assert "frozen image model is not counted" in page


def test_tables_that_agree_on_a_method_share_a_row(tmp_path: Path) -> None:
    rows = comparison_rows(read_results(made_up(tmp_path, "vid4-bi-x4", {"mine": [20.0]})))
    bicubic = [row for row in rows if row.method == "Bicubic"]
    assert len(bicubic) == 1
    assert len(bicubic[0].sources) >= 3
    for row in rows:  # no row claims a value that one of its tables contradicts
        assert len(row.sources) == len(set(row.sources))


def test_tables_that_disagree_or_have_nothing_in_common_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(metric: str, value: float, source: str) -> PublishedScore:
        return PublishedScore("Net", metric, value, source, "vid4-bi-x4")

    scores = [
        printed("psnr-y", 25.1, "A"),
        printed("ssim-y", 0.7, "A"),
        printed("psnr-y", 25.2, "B"),
    ]
    scores += [
        printed("ssim-y", 0.8, "C"),
        printed("psnr-y", 25.3, "D"),
        printed("ssim-y", 0.7, "E"),
    ]
    monkeypatch.setattr("tubelet.evaluation.report_rows.published_scores", lambda _: scores)
    rows = comparison_rows(read_results(made_up(tmp_path, "vid4-bi-x4", {"mine": [20.0]})))
    found = {row.source: row.values for row in rows if not row.measured_here}
    assert found == {
        "D": {"psnr-y": 25.3},
        "B": {"psnr-y": 25.2},
        "A; E": {"psnr-y": 25.1, "ssim-y": 0.7},
        "C": {"ssim-y": 0.8},
    }


def test_markdown_marks_measured_rows_and_the_best(tmp_path: Path) -> None:
    write_report(made_up(tmp_path, "vid4-bi-x4", {"mine_1": [40.0, 41.0], "low": [20.0, 21.0]}))
    lines = (tmp_path / "report.md").read_text("utf-8").splitlines()
    assert "| **mine_1** | 0.0123 | 10 | **40.50** | 0.5000 | measured here |" in lines
    assert any(line.startswith("| BasicVSR++ | 7.3 | – | 27.79 |") for line in lines)
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_csv_has_a_number_per_line(tmp_path: Path) -> None:
    write_report(made_up(tmp_path, "vid4-bi-x4", {"mine_1": [40.0, 41.0]}))
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mine = {(row["clip"], row["metric"]): row for row in rows if row["method"] == "mine_1"}
    assert (
        float(mine["mean", "psnr-y"]["value"]) == float(mine["calendar", "psnr-y"]["value"]) == 40.5
    )
    assert mine["mean", "psnr-y"]["source"] == "measured here"
    published = {
        (row["method"], row["metric"], row["value"])
        for row in rows
        if row["source"] != "measured here"
    }
    assert ("BasicVSR++", "psnr-y", "27.79") in published


def test_latex_is_a_booktabs_table(tmp_path: Path) -> None:
    write_report(made_up(tmp_path, "vid4-bi-x4", {"mine_1": [40.0, 41.0]}))
    text = (tmp_path / "report.tex").read_text("utf-8")
    assert "mine\\_1" in text
    assert "\\textbf{40.50}" in text
    for word in (
        "\\toprule",
        "\\midrule",
        "\\bottomrule",
        "\\begin{tabular}{lrrrrl}",
        "\\end{tabular}",
    ):
        assert text.count(word) == 1
    body = text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert all(line.count(" & ") == 5 and line.endswith("\\\\") for line in body)


def test_notes_warn_of_a_part_and_of_mixed_conventions(tmp_path: Path) -> None:
    whole = read_results(made_up(tmp_path / "whole", "vid4-bi-x4", {"mine": [20.0]}))
    assert not any(
        "not the protocol's scores" in note for note in report_notes(whole, comparison_rows(whole))
    )
    part = read_results(made_up(tmp_path / "part", "vid4-bd-b-x4", {"mine": [20.0]}, max_frames=3))
    notes = report_notes(part, comparison_rows(part))
    assert any("Only the first 3 frames" in note for note in notes)
    assert any("which variant of vid4-bd-x4" in note for note in notes)


def test_the_page_needs_nothing_else(measured: Path) -> None:
    text = (measured / "report.html").read_text("utf-8")
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "$" not in text
    assert page.of("link") == page.of("script") == []
    assert all((img["src"] or "").startswith("data:") and img["alt"] for img in page.of("img"))
    assert page.of("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in text
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))


def test_the_page_draws_a_curve_of_every_model_for_every_clip(measured: Path) -> None:
    page = Page((measured / "report.html").read_text("utf-8"))
    plots = [svg["aria-label"] for svg in page.of("svg") if svg.get("role") == "img"]
    assert [label for label in plots if label and "each frame" in label] == [
        "PSNR-Y (dB) of each frame of a",
        "PSNR-Y (dB) of each frame of b",
    ]
    assert any("against time" in (label or "") for label in plots)
    curves = [
        p
        for p in page.of("path")
        if (p.get("class") or "").startswith("line") and p["d"] != "M0 5H36"
    ]
    assert [(curve["d"] or "").count("L") for curve in curves] == [
        5,
        5,
        3,
        3,
    ]  # six frames and four, two models


def test_crops_show_the_same_place_of_the_original_and_of_every_result(measured: Path) -> None:
    page = Page((measured / "report.html").read_text("utf-8"))
    images = {img["alt"]: img for img in page.of("img")}
    showcase = read_results(measured).models[0].clips[0].showcase
    assert showcase is not None
    x, y, width, height = showcase.crops[-1]
    source = np.asarray(Image.open(measured.parent / "clips" / "a" / f"{showcase.frame:03d}.png"))
    np.testing.assert_array_equal(
        image(images["original, a"]), source[y : y + height, x : x + width]
    )
    result = image(images["bicubic-x4, a"]).astype(float)
    assert result.shape == (height, width, 3)
    apart = np.abs(result - image(images["original, a"])).mean()
    assert 0 < apart < 12  # the same place, though not as sharp
    assert not np.array_equal(result, image(images["lanczos-x4, a"]))


def test_profiles_are_a_column_of_every_frame(measured: Path) -> None:
    page = Page((measured / "report.html").read_text("utf-8"))
    images = {img["alt"]: img for img in page.of("img")}
    clip = read_results(measured).models[0].clips[0]
    assert clip.showcase is not None
    x, y, height = clip.showcase.column
    frames = [
        np.asarray(Image.open(path))
        for path in sorted((measured.parent / "clips" / "a").glob("*.png"))
    ]
    expected = np.stack([frame[y : y + height, x] for frame in frames], 1)
    np.testing.assert_array_equal(image(images["Temporal profile of original, a"]), expected)
    assert image(images["Temporal profile of lanczos-x4, a"]).shape == expected.shape


def test_images_of_the_former_folder_are_shown(measured: Path) -> None:
    expected = (measured / "report.html").read_text("utf-8")
    assert "Temporal profile of original, a" in expected
    (measured / "images").rename(measured / "pictures")
    write_report(measured)
    assert (measured / "report.html").read_text("utf-8") == expected


def test_a_large_set_has_readable_tables_and_few_curves(tmp_path: Path) -> None:
    settings = EvaluateSettings(device="cpu", metrics=("psnr-y",), showcases=1, max_frames=2)
    for number in range(70):
        write_frames(tmp_path / "clips" / f"{number:03d}", 2, size=(16, 16))
    evaluate(["bicubic"], "folder-bi-x4", tmp_path / "clips", tmp_path / "out", settings=settings)
    write_report(tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert (
        len([svg for svg in page.of("svg") if "each frame" in (svg.get("aria-label") or "")]) == 8
    )
    assert "10 more clips are in report.csv." in page.words
    markdown = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "| 059 |" in markdown
    assert "| 060 |" not in markdown
    assert ",069,psnr-y," in (tmp_path / "out" / "report.csv").read_text("utf-8")


def test_names_are_escaped(tmp_path: Path) -> None:
    write_report(made_up(tmp_path, "vid4-bi-x4", {"<b>": [math.nan, 40.0, math.inf]}))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "&lt;b&gt;" in text
    assert "&lt;&amp;&gt;" in text
    Page(text)


def test_equal_frames_are_infinite_and_the_files_stay_json(tmp_path: Path) -> None:
    out = made_up(tmp_path, "vid4-bi-x4", {"same": [math.inf, math.inf]})
    assert "Infinity" not in (out / "results.json").read_text("utf-8")
    results = read_results(out)
    assert results.models[0].mean["psnr-y"] == math.inf
    assert metric_text("psnr-y", math.inf) == "∞"
    write_report(out)


def test_a_folder_without_results_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"results\.json is missing"):
        write_report(tmp_path)
    out = made_up(tmp_path / "out", "vid4-bi-x4", {"mine": [20.0]})
    (out / "scores" / "mine" / "calendar.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match="lacks scores of mine"):
        write_report(out)
