"""HTML page of a report: one file with its plots and images inside, which needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from PIL import Image

from tubelet.evaluation.images import data_url
from tubelet.evaluation.page import (
    empty_section,
    escape,
    escape_note,
    number_cell,
    read_resource,
    style_sheet,
    wrap_table,
)
from tubelet.evaluation.plots import COLORS, Axis, Line, Point, line_plot, line_sample, point_plot
from tubelet.evaluation.published import PublishedCost, published_costs
from tubelet.evaluation.report_rows import (
    MAX_CLIPS,
    MEASURED,
    Row,
    best_value,
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
from tubelet.evaluation.sampling import spread_indices
from tubelet.evaluation.showcase import BICUBIC, ORIGINAL, find_image
from tubelet.metrics.measure import metric_info

__all__ = ["report_page"]

_MEGAPIXEL = 1e6
_MAX_CURVES = 8
_PROFILE_PX = 240
"""Width of a temporal profile on the page."""
_MAX_PROFILE_ZOOM = 8
_CROP_ZOOM = 2


def report_page(results: Results, rows: Sequence[Row], out: Path) -> str:
    """Write the page.

    Args:
        results: Results of the evaluation.
        rows: Rows of the table of results.
        out: Folder of the evaluation, which has the images.

    Returns:
        The HTML.
    """
    template = Template(read_resource("report_page.html"))
    title = f"{results.name}: {len(results.models)} models on {len(results.clips)} clips"
    notes: list[str] = []
    for note in report_notes(results, rows):
        notes.append(f"<p>{escape_note(note)}</p>")
    clip_tables: list[str] = []
    for metric in results.metrics:
        clip_tables.append(_clips_table(results, metric))
    about: list[str] = []
    for name, value in _about(results):
        about.append(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>")
    return template.substitute(
        title=escape(title),
        style=style_sheet(),
        notes="\n".join(notes),
        results=_results_table(results, rows),
        clips="\n".join(clip_tables),
        legend=_legend(results),
        metric=escape(results.metrics[0].upper()),
        curves=_curves(results),
        costs=_cost_plots(results, rows),
        crops=_crops(results, out),
        profiles=_profiles(results, out),
        about="\n".join(about),
    )


def _results_table(results: Results, rows: Sequence[Row]) -> str:
    """Write a row per method, with the best score of each metric in bold."""
    number_headings = [
        *map(metric_heading, results.metrics),
        "Parameters, M",
        "Time, ms",
    ]
    cells = ['<th scope="col">Method</th>']
    for heading in number_headings:
        cells.append(f'<th scope="col" class="n">{escape(heading)}</th>')
    cells.append('<th scope="col">Source</th>')
    lines = [f"<thead><tr>{''.join(cells)}</tr></thead><tbody>"]

    # Measured rows have the color of their model in the plots.
    best = best_values(rows, results.metrics)
    colors = _model_colors(results)
    for row in rows:
        row_class = ""
        swatch = ""
        if row.measured_here:
            row_class = " class=ours"
            swatch = f'<i class="swatch c{colors[row.method] % COLORS}"></i>'
        lines.append(f'<tr{row_class}><th scope="row">{swatch}{escape(row.method)}</th>')
        for metric in results.metrics:
            value = row.values.get(metric)
            text = metric_text(metric, value)
            if value == best.get(metric):
                text = f"<b>{text}</b>"
            lines.append(number_cell(text))
        lines.append(number_cell(parameters_text(row.parameters)))
        lines.append(number_cell(time_text(row.seconds_per_frame)))
        lines.append(f'<td class="source">{escape(row.source)}</td></tr>')
    lines.append("</tbody>")
    return wrap_table("".join(lines))


def _model_colors(results: Results) -> dict[str, int]:
    """Number the models, in the order of their colors on the page."""
    colors: dict[str, int] = {}
    for index, model in enumerate(results.models):
        colors[model.model] = index
    return colors


def _clips_table(results: Results, metric: str) -> str:
    """Write a row per clip with the score of every model in one metric."""
    cells = ['<th scope="col">Clip</th>']
    for index, model in enumerate(results.models):
        swatch = f'<i class="swatch c{index % COLORS}"></i>'
        cells.append(f'<th scope="col" class="n">{swatch}{escape(model.model)}</th>')
    lines = [
        f"<caption>{escape(metric_heading(metric))}</caption>",
        f"<thead><tr>{''.join(cells)}</tr></thead><tbody>",
    ]
    for clip, scores in clip_scores(results, metric, limit=MAX_CLIPS):
        # With one model there is nothing to compare, and no score is bold.
        best = best_value(metric, scores)
        lines.append(f'<tr><th scope="row">{escape(clip)}</th>')
        for score in scores:
            text = metric_text(metric, score)
            if score == best and len(scores) > 1:
                text = f"<b>{text}</b>"
            lines.append(number_cell(text))
        lines.append("</tr>")
    lines.append("</tbody>")
    table = wrap_table("".join(lines))
    note = omitted_clips_note(results)
    if not note:
        return table
    return f"{table}<p>{html.escape(note)}</p>"


def _legend(results: Results) -> str:
    """Write the names of the models with a sample of their lines."""
    items: list[str] = []
    for index, model in enumerate(results.models):
        items.append(f"<span>{line_sample(index)}{escape(model.model)}</span>")
    return f'<p class="legend">{"".join(items)}</p>'


def _find_clip(model: ModelScore, name: str) -> ClipScore:
    clips = {clip.identity.clip: clip for clip in model.clips}
    return clips[name]


def _curves(results: Results) -> str:
    """Plot the scores over time of some clips, evenly spread over the benchmark."""
    plots: list[str] = []
    for index in spread_indices(len(results.clips), _MAX_CURVES):
        plot = _curve(results, results.clips[index])
        if plot:
            plots.append(plot)
    if not plots:
        return empty_section("no clip has more than one scored frame")
    return "\n".join(plots)


def _curve(results: Results, clip_name: str) -> str:
    """Plot the first metric of every model over the frames of one clip; empty if it has one."""
    metric = results.metrics[0]
    lines: list[Line] = []
    for index, model in enumerate(results.models):
        clip = _find_clip(model, clip_name)
        values = clip.per_frame[metric]
        # A protocol may score only one frame of a clip.
        if len(values) < 2:
            return ""
        frames = range(clip.first_frame, clip.first_frame + len(values))
        lines.append(Line(model.model, frames, values, index))
    # Without the arrow, which follows the last space.
    label = metric_heading(metric).rsplit(" ", 1)[0]
    plot = line_plot(
        lines,
        x=Axis("frame", integers=True),
        y=Axis(label),
        title=f"{label} of each frame of {clip_name}",
    )
    if not plot:
        return ""
    return f"<figure><figcaption>{escape(clip_name)}</figcaption>{plot}</figure>"


def _cost_plots(results: Results, rows: Sequence[Row]) -> str:
    """Plot the first metric against parameters and time, with published methods."""
    by_parameters, by_time = _cost_points(results, rows)
    figures = [
        _cost_plot(
            results,
            by_parameters,
            caption="Quality against parameters",
            x_label="parameters, millions",
        ),
        _cost_plot(
            results,
            by_time,
            caption="Quality against time",
            x_label="ms per megapixel of output",
        ),
    ]
    direction = metric_info(results.metrics[0]).direction
    better = "Up" if direction == "higher" else "Down"
    text = f"{better} and to the left is better."
    without_parameters = [model.model for model in results.models if not model.parameters]
    if without_parameters:
        names = escape(", ".join(without_parameters))
        text += f" Without parameters, and so not in the first plot: {names}."
    if any(point.color is None for point in by_time):
        text += (
            " Gray times were measured by the papers, each on another GPU: compare them with care."
        )
    return f'<div class="plots">{"".join(figures)}</div><p>{text}</p>'


def _cost_plot(
    results: Results,
    points: Sequence[Point],
    *,
    caption: str,
    x_label: str,
) -> str:
    label = metric_heading(results.metrics[0])
    plot = point_plot(
        points,
        x=Axis(x_label, logarithmic=True),
        y=Axis(label),
        title=f"{label}: {caption.lower()}",
    )
    if not plot:
        plot = empty_section("no figure is known")
    return f"<figure><figcaption>{caption}</figcaption>{plot}</figure>"


def _cost_points(
    results: Results,
    rows: Sequence[Row],
) -> tuple[list[Point], list[Point]]:
    """Collect the points of the plots against millions of parameters and against time."""
    metric = results.metrics[0]
    # Where papers disagree on the cost of a method, the first one is used.
    costs: dict[str, PublishedCost] = {}
    for cost in published_costs():
        if cost.runtime_ms is not None:
            costs.setdefault(cost.method, cost)

    colors = _model_colors(results)
    by_parameters: list[Point] = []
    by_time: list[Point] = []
    plotted: set[str] = set()
    for row in rows:
        # Where tables disagree on a score, the rows are sorted, so the better one is plotted.
        if row.method in plotted or metric not in row.values:
            continue
        plotted.add(row.method)
        score = row.values[metric]
        if row.measured_here:
            color = colors.get(row.method)
            time_s = _time_per_megapixel_s(results, row.method)
        else:
            color = None
            time_s = _published_time_per_megapixel_s(costs.get(row.method))
        if row.parameters:
            by_parameters.append(Point(row.method, row.parameters / 1e6, score, color))
        if time_s is not None:
            by_time.append(Point(row.method, 1e3 * time_s, score, color))
    return by_parameters, by_time


def _time_per_megapixel_s(results: Results, model_name: str) -> float:
    """Compute the engine time per megapixel of output over all clips of a model."""
    seconds = 0.0
    pixels = 0
    for model in results.models:
        if model.model != model_name:
            continue
        for clip in model.clips:
            seconds += clip.seconds_per_frame * clip.frames
            pixels += clip.width * clip.height * clip.frames
    return seconds * _MEGAPIXEL / pixels


def _published_time_per_megapixel_s(
    cost: PublishedCost | None,
) -> float | None:
    """Convert a published time; None if the time or its image size is unknown."""
    if cost is None or cost.runtime_ms is None or "x" not in cost.size:
        return None
    # Papers give the size of the input of ×4 models: the output has 16 times as many pixels.
    width, height = map(int, cost.size.split("x"))
    output_px = 16 * width * height
    return cost.runtime_ms / 1e3 * _MEGAPIXEL / output_px


def _sides(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the images to show side by side: their names in files, and their captions."""
    yield ORIGINAL, "original"
    names = [model.model for model in results.models]
    # A bicubic model shows the enlarged input already.
    has_bicubic = any(name.startswith("bicubic") for name in names)
    if not has_bicubic:
        yield BICUBIC, "bicubic"
    for name in names:
        yield name, name


def _crops(results: Results, out: Path) -> str:
    """Show the same crops of the original and of each result side by side."""
    blocks: list[str] = []
    for clip in results.models[0].clips:
        if clip.showcase is None:
            continue
        name = clip.identity.clip
        frame = clip.showcase.frame
        for number, (x, y, width, height) in enumerate(clip.showcase.crops):
            figures = _crop_figures(results, out, name, frame, number)
            region = f"frame {frame}, {width}×{height} pixels at {x}, {y}"
            blocks.append(_strip("crops", name, region, figures))
    return "\n".join(blocks) or empty_section("no images were stored (--showcases)")


def _crop_figures(
    results: Results,
    out: Path,
    clip_name: str,
    frame: int,
    number: int,
) -> list[str]:
    """Show one crop of the original and of each result, with the scores of its frame."""
    figures: list[str] = []
    for side, caption in _sides(results):
        path = find_image(out, clip_name, side, number)
        if path is not None:
            image = _crop_image(path, f"{caption}, {clip_name}")
            score = _frame_score(results, side, clip_name, frame)
            figures.append(_image_figure(image, escape(caption) + score))
    return figures


def _frame_score(
    results: Results,
    side: str,
    clip_name: str,
    frame: int,
) -> str:
    """Write the score of the frame that a crop was cut from; empty if it has none."""
    metric = results.metrics[0]
    models = {model.model: model for model in results.models}
    # The original and the bicubic image have no scores.
    if side not in models:
        return ""
    clip = _find_clip(models[side], clip_name)
    values = clip.per_frame[metric]
    index = frame - clip.first_frame
    # The protocol does not score this frame.
    if not 0 <= index < len(values):
        return ""
    value = values[index]
    # The metric has no value for this frame.
    if math.isnan(value):
        return ""
    return f"<small>{metric_text(metric, value)}</small>"


def _profiles(results: Results, out: Path) -> str:
    """Show the temporal profiles of the original and of each result side by side."""
    blocks: list[str] = []
    for clip in results.models[0].clips:
        if clip.showcase is None:
            continue
        name = clip.identity.clip
        x, y, height = clip.showcase.column
        figures: list[str] = []
        for side, caption in _sides(results):
            path = find_image(out, name, side, "profile")
            if path is not None:
                image = _profile_image(path, f"Temporal profile of {caption}, {name}")
                figures.append(_image_figure(image, escape(caption)))
        column = f"column x = {x}, y = {y} to {y + height - 1}"
        blocks.append(_strip("profiles", name, column, figures))
    return "\n".join(blocks) or empty_section("no images were stored (--showcases)")


def _strip(
    kind: str,
    clip_name: str,
    region: str,
    figures: Sequence[str],
) -> str:
    """Write a heading and a row of images that scrolls sideways."""
    return (
        f"<h3>{escape(clip_name)} <small>{region}</small></h3>"
        f'<div class="strip {kind}" tabindex="0">{"".join(figures)}</div>'
    )


def _image_figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _crop_image(path: Path, alt: str) -> str:
    """Embed a crop, with every pixel twice as large."""
    with Image.open(path) as image:
        return _image_tag(image, alt, zoom_x=_CROP_ZOOM)


def _profile_image(path: Path, alt: str) -> str:
    """Embed a temporal profile, whose frames are wider if there are few of them."""
    with Image.open(path) as image:
        # One column per frame: about `_PROFILE_PX` on the page for any number of frames.
        zoom = _PROFILE_PX // image.width
        return _image_tag(image, alt, zoom_x=min(_MAX_PROFILE_ZOOM, max(1, zoom)))


def _image_tag(image: Image.Image, alt: str, *, zoom_x: int) -> str:
    url = data_url(image.convert("RGB"), lossless=True)
    width = image.width * zoom_x
    height = image.height * _CROP_ZOOM
    return f'<img src="{url}" width="{width}" height="{height}" alt="{escape(alt)}">'


def _about(results: Results) -> list[tuple[str, str]]:
    """List the protocol, the clips, the machine and the models, as names and values."""
    protocol = results.protocol
    first_model = results.models[0]
    clips: list[str] = []
    for clip in first_model.clips:
        clips.append(f"{clip.identity.clip} ({clip.frames})")
    machine: Mapping[str, Mapping[str, object]] = first_model.clips[0].machine
    entries = [
        ("Protocol", results.name),
        ("Used by", ", ".join(protocol["used_by"]) or "–"),
        ("Clips", ", ".join(clips)),
        ("Versions", _join_items(machine.get("versions", {}))),
        ("Hardware", _join_items(machine.get("hardware", {}))),
    ]
    for model in results.models:
        precision = model.clips[0].identity.precision
        weights = f"SHA-256 {model.weights_sha256}" if model.weights_sha256 else "no weights"
        entries.append((model.model, f"{model.summary}; {precision}, {weights}; {MEASURED}"))
    return entries


def _join_items(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
