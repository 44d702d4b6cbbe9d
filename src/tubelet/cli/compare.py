"""`tubelet compare`: measure two videos of the same scene, and write a page with a slider."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.paths import companion, refuse_existing
from tubelet.cli.progress import ProgressStyle, show_progress, write_json
from tubelet.cli.startup import loading
from tubelet.errors import RequestError

if TYPE_CHECKING:
    from tubelet.evaluation.two_videos import Comparison

__all__ = ["main"]

_ALIASES = {"reference": "-r", "out": "-o", "overwrite": "-y"}
_METAVARS = {
    "first": "A",
    "second": "B",
    "reference": "VIDEO",
    "out": "PAGE.html",
    "metrics": "NAME ...",
    "device": "NAME",
}
_EXAMPLES = """\
examples:
  tubelet compare old.mp4 new.mp4
  tubelet compare a.mp4 b.mp4 --reference original.mp4 --metrics psnr-y ssim-y
"""


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """Compare two videos of the same scene: metrics, and a page with a slider between them."""

    first: str
    """Video file or folder of frames, shown left of the slider."""
    second: str
    """Another video of the same scene, shown right of the slider. The smaller of the two is
    upscaled with bicubic interpolation."""
    reference: str | None = None
    """Original video. A and B are both measured against it. Default: B is measured against A."""
    out: Path | None = None
    """Page to write. Default: B's name with .compare.html."""
    metrics: tuple[str, ...] = ()
    """Metrics to compute, for example psnr-y ssim-y lpips. Default: metrics that need no weight
    files."""
    device: str = "cpu"
    """Device that computes the metrics: cpu, cuda, cuda:1 or mps."""
    no_page: bool = False
    """Only measure; do not write a page."""
    json: bool = False
    """Print JSON instead of a table."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: one event per line, on
    standard error."""
    overwrite: bool = False
    """Replace the page if it exists."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    command = flags_from(CompareFlags, aliases=_ALIASES, metavars=_METAVARS)
    flags: CompareFlags = parse(command, args, verb="compare", examples=_EXAMPLES)
    if "-" in (flags.first, flags.second, flags.reference):
        raise RequestError("a pipe cannot be read twice; give files or folders of frames")
    # The page is checked before the videos are measured, which can take long.
    page = None if flags.no_page else _page_path(flags)

    comparison = _measure(flags)
    if page is not None:
        _write_page(flags, comparison, page)
    if flags.json:
        report = {
            "first": flags.first,
            "second": flags.second,
            "reference": flags.reference,
            **comparison.as_dict(),
            "page": None if page is None else str(page),
        }
        write_json(report, sys.stdout)
        return 0
    _print_table(flags, comparison)
    if page is not None:
        sys.stdout.write(f"page: {page}\n")
    return 0


def _page_path(flags: CompareFlags) -> Path:
    path = flags.out or companion(flags.second, ".compare.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"the page {path} must have a name that ends in .html")
    remedy = "give --overwrite to replace it, or --no-page"
    refuse_existing(path, overwrite=flags.overwrite, remedy=remedy)
    return path


def _measure(flags: CompareFlags) -> Comparison:
    with loading():
        from tubelet.evaluation.two_videos import compare_videos

    label = Path(flags.second).name
    with show_progress(flags.progress, label=label, json_to=sys.stderr) as on_progress:
        return compare_videos(
            flags.first,
            flags.second,
            reference=flags.reference,
            metrics=flags.metrics,
            device=flags.device,
            on_progress=on_progress,
        )


def _labels(flags: CompareFlags) -> tuple[str, str]:
    """Label the videos by the shortest ends of their paths that differ."""
    first_parts = Path(flags.first).absolute().parts
    second_parts = Path(flags.second).absolute().parts
    max_depth = max(len(first_parts), len(second_parts))
    depth = 1
    while first_parts[-depth:] == second_parts[-depth:] and depth < max_depth:
        depth += 1
    first = str(Path(*first_parts[-depth:]))
    second = str(Path(*second_parts[-depth:]))
    if first == second:
        return f"{first} (A)", f"{second} (B)"
    return first, second


def _write_page(flags: CompareFlags, comparison: Comparison, page: Path) -> None:
    from tubelet.evaluation.compare import ComparePage, write_page
    from tubelet.evaluation.report_rows import metric_heading, metric_text

    details = {"Frames": str(comparison.frames)}
    for score in comparison.scores:
        second = metric_text(score.metric, score.second)
        if score.first is None:
            text = f"{second}, the second against the first"
        else:
            text = f"{metric_text(score.metric, score.first)} and {second}"
        details[metric_heading(score.metric)] = text
    for number, note in enumerate(comparison.notes, 1):
        details[f"Note {number}"] = note

    content = ComparePage(
        details=details,
        truth=flags.reference,
        labels=_labels(flags),
        size="larger",
    )
    write_page(flags.first, flags.second, page, content)


def _print_table(flags: CompareFlags, comparison: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tubelet.evaluation.report_rows import metric_heading, metric_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for label in _labels(flags):
        table.add_column(label, justify="right", overflow="fold")
    for score in comparison.scores:
        # Without a reference, the first video is the reference of the second.
        first = "the reference"
        if score.first is not None:
            first = metric_text(score.metric, score.first)
        second = metric_text(score.metric, score.second)
        table.add_row(metric_heading(score.metric), first, second)
    Console(highlight=False).print(table)
    for note in comparison.notes:
        sys.stderr.write(f"note: {note}\n")
    size = f"{comparison.width}×{comparison.height}"
    sys.stdout.write(f"{comparison.frames} frames, compared at {size}\n")
