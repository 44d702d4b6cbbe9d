"""The page of a report: one HTML file with its plots and images inside, which needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image

from tubelet.evaluation.images import data_url
from tubelet.evaluation.plots import COLORS, Axis, Line, Point, line_plot, line_sample, point_plot
from tubelet.evaluation.published import PublishedCost, published_costs
from tubelet.evaluation.report_rows import (
    MAX_CLIPS,
    MEASURED,
    Row,
    best_values,
    clip_scores,
    metric_heading,
    metric_text,
    omitted_clips_note,
    parameters_text,
    report_notes,
    time_text,
)
from tubelet.evaluation.results import ClipScore, ModelScore, Results
from tubelet.evaluation.showcase import BICUBIC, ORIGINAL, image_path
from tubelet.metrics.measure import metric_info

__all__ = ["report_page"]

_MEGAPIXEL = 1e6
_MAX_CURVES = 8
_PROFILE_PX = 240  # width of a temporal profile on the page


def report_page(results: Results, rows: Sequence[Row], out: Path) -> str:
    """Write the page.

    Args:
        results: of the evaluation.
        rows: of the table of results.
        out: folder with the images.

    Returns:
        The HTML.
    """
    page = Template(
        resources.files("tubelet.evaluation").joinpath("report_page.html").read_text("utf-8")
    )
    first = results.metrics[0]
    return page.substitute(
        title=html.escape(
            f"{results.name}: {len(results.models)} models on {len(results.clips)} clips"
        ),
        notes="\n".join(f"<p>{_code(note)}</p>" for note in report_notes(results, rows)),
        results=_results_table(results, rows),
        clips="\n".join(_clips_table(results, name) for name in results.metrics),
        legend=_legend(results),
        metric=html.escape(first.upper()),
        curves=_curves(results),
        costs=_cost_plots(results, rows),
        crops=_crops(results, out),
        profiles=_profiles(results, out),
        about="\n".join(
            f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in _about(results)
        ),
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _code(note: str) -> str:
    """Escape a note, `...` becoming code."""
    parts = html.escape(note).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _nothing(why: str) -> str:
    return f"<p>Nothing to show: {html.escape(why)}.</p>"


def _results_table(results: Results, rows: Sequence[Row]) -> str:
    best = best_values(rows, results.metrics)
    colors = {model.model: place % COLORS for place, model in enumerate(results.models)}
    head = ["Method", *map(metric_heading, results.metrics), "Parameters, M", "Time, ms", "Source"]
    numbers = len(results.metrics) + 2
    cells = "".join(
        f'<th scope="col"{_align(0 < place <= numbers)}>{_text(name)}</th>'
        for place, name in enumerate(head)
    )
    lines = [f"<thead><tr>{cells}</tr></thead><tbody>"]
    for row in rows:
        swatch = f'<i class="swatch c{colors[row.method]}"></i>' if row.ours else ""
        lines.append(
            f'<tr{" class=ours" if row.ours else ""}><th scope="row">{swatch}{_text(row.method)}</th>'
        )
        for name in results.metrics:
            value = row.values.get(name)
            text = metric_text(name, value)
            lines.append(
                f"<td{_align(True)}>{f'<b>{text}</b>' if value == best.get(name) else text}</td>"
            )
        lines.append(f"<td{_align(True)}>{parameters_text(row.parameters)}</td>")
        lines.append(f"<td{_align(True)}>{time_text(row.seconds_per_frame)}</td>")
        lines.append(f'<td class="source">{_text(row.source)}</td></tr>')
    return f'<div class="wide" tabindex="0"><table class="numbers">{"".join(lines)}</tbody></table></div>'


def _align(number: bool) -> str:
    return ' class="n"' if number else ""


def _clips_table(results: Results, name: str) -> str:
    """Write the scores of one metric, a clip per line."""
    head = "".join(
        f'<th scope="col" class="n"><i class="swatch c{place % COLORS}"></i>{_text(model.model)}</th>'
        for place, model in enumerate(results.models)
    )
    lines: list[str] = []
    for clip, scores in clip_scores(results, name, limit=MAX_CLIPS):
        best = best_values([Row("", {name: score}) for score in scores], [name]).get(name)
        lines.append(f'<tr><th scope="row">{_text(clip)}</th>')
        for score in scores:
            text = metric_text(name, score)
            bold = score == best and len(scores) > 1
            lines.append(f'<td class="n">{f"<b>{text}</b>" if bold else text}</td>')
        lines.append("</tr>")
    more = f"<p>{html.escape(note)}</p>" if (note := omitted_clips_note(results)) else ""
    return (
        f'<div class="wide" tabindex="0"><table class="numbers"><caption>{_text(metric_heading(name))}</caption>'
        f'<thead><tr><th scope="col">Clip</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{more}'
    )


def _legend(results: Results) -> str:
    items = "".join(
        f"<span>{line_sample(place)}{_text(model.model)}</span>"
        for place, model in enumerate(results.models)
    )
    return f'<p class="legend">{items}</p>'


def _clip(model: ModelScore, name: str) -> ClipScore:
    return next(clip for clip in model.clips if clip.identity.clip == name)


def _curves(results: Results) -> str:
    """Draw the clips, or as many of them, evenly spread, as a user looks at."""
    count = len(results.clips)
    shown = min(count, _MAX_CURVES)
    clips = [results.clips[(2 * i + 1) * count // (2 * shown)] for i in range(shown)]
    drawn = [plot for plot in (_curve(results, clip) for clip in clips) if plot]
    return "\n".join(drawn) or _nothing("no clip has more than one frame that was scored")


def _curve(results: Results, name: str) -> str:
    """Draw the first metric of every model over the frames of one clip."""
    metric = results.metrics[0]
    lines: list[Line] = []
    for place, model in enumerate(results.models):
        clip = _clip(model, name)
        values = clip.per_frame[metric]
        if len(values) < 2:
            return ""
        lines.append(
            Line(
                model.model, range(clip.first_frame, clip.first_frame + len(values)), values, place
            )
        )
    label = metric_heading(metric).rsplit(" ", 1)[0]
    plot = line_plot(
        lines, x=Axis("frame", whole=True), y=Axis(label), title=f"{label} of each frame of {name}"
    )
    return f"<figure><figcaption>{_text(name)}</figcaption>{plot}</figure>" if plot else ""


def _cost_plots(results: Results, rows: Sequence[Row]) -> str:
    """Draw quality against parameters and against time, with the methods whose costs are published."""
    metric = results.metrics[0]
    label = metric_heading(metric)
    costs: dict[str, PublishedCost] = {}
    for cost in published_costs():
        if cost.runtime_ms is not None:
            costs.setdefault(cost.method, cost)  # of papers that disagree, the first
    colors = {model.model: place for place, model in enumerate(results.models)}
    by_parameters: list[Point] = []
    by_time: list[Point] = []
    seen: set[str] = set()
    for row in rows:
        if row.method in seen or metric not in row.values:
            continue  # tables that disagree on a method: the better figure is drawn
        seen.add(row.method)
        value, color = row.values[metric], colors.get(row.method) if row.ours else None
        if row.parameters:
            by_parameters.append(Point(row.method, row.parameters / 1e6, value, color))
        seconds = (
            _per_megapixel(results, row) if row.ours else _published_time(costs.get(row.method))
        )
        if seconds is not None:
            by_time.append(Point(row.method, 1e3 * seconds, value, color))
    across = (
        (
            "Quality against parameters",
            by_parameters,
            Axis("parameters, millions", logarithmic=True),
        ),
        ("Quality against time", by_time, Axis("ms per megapixel of output", logarithmic=True)),
    )
    figures = ""
    for caption, points, x in across:
        plot = point_plot(points, x=x, y=Axis(label), title=f"{label}: {caption.lower()}")
        figures += f"<figure><figcaption>{caption}</figcaption>{plot or _nothing('no figure is known')}</figure>"
    none = [model.model for model in results.models if not model.parameters]
    words = f" Without parameters, and so not in the first plot: {', '.join(none)}." if none else ""
    if any(point.color is None for point in by_time):
        words += " Gray times are those that the papers measured, each on a GPU of its own: compare them with care."
    return f'<div class="plots">{figures}</div><p>{_better(metric)} and to the left is better.{_text(words)}</p>'


def _better(metric: str) -> str:
    return "Up" if metric_info(metric).direction == "higher" else "Down"


def _per_megapixel(results: Results, row: Row) -> float:
    model = next(model for model in results.models if model.model == row.method)
    seconds = sum(clip.seconds_per_frame * clip.frames for clip in model.clips)
    return (
        seconds * _MEGAPIXEL / sum(clip.width * clip.height * clip.frames for clip in model.clips)
    )


def _published_time(cost: PublishedCost | None) -> float | None:
    """Seconds per megapixel of output; the papers' sizes are those of the ×4 input."""
    if cost is None or cost.runtime_ms is None or "x" not in cost.size:
        return None
    width, height = (int(n) for n in cost.size.split("x"))
    return cost.runtime_ms / 1e3 * _MEGAPIXEL / (16 * width * height)


def _sides(results: Results) -> list[tuple[str, str]]:
    """List what stands side by side: the name of the images, and what a user reads."""
    bicubic = any(model.model.startswith("bicubic") for model in results.models)
    inputs = [] if bicubic else [(BICUBIC, "bicubic")]
    return [
        (ORIGINAL, "original"),
        *inputs,
        *((model.model, model.model) for model in results.models),
    ]


def _crops(results: Results, out: Path) -> str:
    """Set the same places of the original and of each result side by side."""
    blocks: list[str] = []
    for clip in results.models[0].clips:
        if clip.showcase is None:
            continue
        name = clip.identity.clip
        for number, (x, y, width, height) in enumerate(clip.showcase.crops):
            sides: list[str] = []
            for who, label in _sides(results):
                image = _image(image_path(out, name, who, number), f"{label}, {name}")
                score = _frame_score(results, who, name, clip.showcase.frame)
                if image:
                    sides.append(
                        f"<figure>{image}<figcaption>{_text(label)}{score}</figcaption></figure>"
                    )
            place = f"frame {clip.showcase.frame}, {width}×{height} pixels at {x}, {y}"
            blocks.append(
                f'<h3>{_text(name)} <small>{place}</small></h3><div class="strip crops" tabindex="0">'
                f"{''.join(sides)}</div>"
            )
    return "\n".join(blocks) or _nothing("no images were kept (--showcases)")


def _frame_score(results: Results, who: str, clip: str, frame: int) -> str:
    """Tell the score of the frame that a crop is from, where it was scored."""
    metric = results.metrics[0]
    for model in results.models:
        if model.model == who:
            score = _clip(model, clip)
            values, place = score.per_frame[metric], frame - score.first_frame
            if 0 <= place < len(values) and not math.isnan(values[place]):
                return f"<small>{metric_text(metric, values[place])}</small>"
    return ""


def _profiles(results: Results, out: Path) -> str:
    """Set the temporal profiles of the original and of each result side by side."""
    blocks: list[str] = []
    for clip in results.models[0].clips:
        if clip.showcase is None:
            continue
        name, (x, y, height) = clip.identity.clip, clip.showcase.column
        sides: list[str] = []
        for who, label in _sides(results):
            path = image_path(out, name, who, "profile")
            image = _image(path, f"Temporal profile of {label}, {name}", profile=True)
            if image:
                sides.append(f"<figure>{image}<figcaption>{_text(label)}</figcaption></figure>")
        place = f"column x = {x}, y = {y} to {y + height - 1}"
        blocks.append(
            f'<h3>{_text(name)} <small>{place}</small></h3><div class="strip profiles" tabindex="0">'
            f"{''.join(sides)}</div>"
        )
    return "\n".join(blocks) or _nothing("no images were kept (--showcases)")


def _image(path: Path, told: str, *, profile: bool = False) -> str:
    """Put a stored image into the page, every pixel twice as large; the frames of a short profile are wider."""
    if not path.is_file():
        return ""
    with Image.open(path) as image:
        width, height = image.size
        url = data_url(image.convert("RGB"), lossless=True)
    across = min(8, max(1, _PROFILE_PX // width)) if profile else 2
    return f'<img src="{url}" width="{width * across}" height="{height * 2}" alt="{_text(told)}">'


def _about(results: Results) -> list[tuple[str, str]]:
    machine: Mapping[str, Mapping[str, object]] = results.models[0].clips[0].machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.get("versions", {}).items())
    hardware = ", ".join(f"{name} {value}" for name, value in machine.get("hardware", {}).items())
    facts = results.protocol
    told = [
        ("Protocol", results.name),
        ("Used by", ", ".join(facts["used_by"]) or "–"),
        (
            "Clips",
            ", ".join(f"{clip.identity.clip} ({clip.frames})" for clip in results.models[0].clips),
        ),
        ("Versions", versions),
        ("Hardware", hardware),
    ]
    for model in results.models:
        precision = model.clips[0].identity.precision
        weights = f"SHA-256 {model.weights_sha256}" if model.weights_sha256 else "no weights"
        told.append((model.model, f"{model.summary}; {precision}, {weights}; {MEASURED}"))
    return told
