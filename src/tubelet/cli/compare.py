"""`tubelet compare`: measure two videos of the same scene, and write the page with the slider."""

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
    "reference": "R",
    "out": "PAGE.html",
    "metrics": "NAME ...",
    "device": "NAME",
}


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """Measure two videos of the same scene, and show them on a page with a slider."""

    first: str
    """Video file or folder of frames; left of the slider."""
    second: str
    """Another of the same scene; right of the slider. A smaller video is enlarged (bicubic)."""
    reference: str | None = None
    """The original: both are measured against it. Without it, B is measured against A."""
    out: Path | None = None
    """The page. Default: B's name with .compare.html."""
    metrics: tuple[str, ...] = ()
    """Names of metrics. Default: those that need no weights."""
    device: str = "cpu"
    """Where metrics run: cpu, cuda, cuda:1, ..."""
    no_page: bool = False
    """Only measure."""
    json: bool = False
    """Write JSON instead of a table."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: an event per line, on the standard
    error."""
    overwrite: bool = False
    """Replace the page if it exists."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags: CompareFlags = parse(
        flags_from(CompareFlags, aliases=_ALIASES, metavars=_METAVARS), args, verb="compare"
    )
    if "-" in (flags.first, flags.second, flags.reference):
        raise RequestError("a pipe cannot be read twice; name files or folders of frames")
    page = None if flags.no_page else _page_path(flags)
    found = _measure(flags)
    if page is not None:
        _write_page(flags, found, page)
    if flags.json:
        sources = {"first": flags.first, "second": flags.second, "reference": flags.reference}
        write_json(
            {**sources, **found.as_dict(), "page": None if page is None else str(page)}, sys.stdout
        )
    else:
        _print_table(flags, found)
        if page is not None:
            sys.stdout.write(f"page: {page}\n")
    return 0


def _page_path(flags: CompareFlags) -> Path:
    """Name the page, and refuse what cannot be written before anything is measured."""
    path = flags.out or companion(flags.second, ".compare.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"{path} is no name for a page; give one that ends in .html")
    refuse_existing(
        path, overwrite=flags.overwrite, remedy="give --overwrite to replace it, or --no-page"
    )
    return path


def _measure(flags: CompareFlags) -> Comparison:
    with loading():
        from tubelet.evaluation.two_videos import compare_videos

    with show_progress(
        flags.progress, label=Path(flags.second).name, json_to=sys.stderr
    ) as on_progress:
        return compare_videos(
            flags.first,
            flags.second,
            reference=flags.reference,
            metrics=flags.metrics,
            device=flags.device,
            on_progress=on_progress,
        )


def _labels(flags: CompareFlags) -> tuple[str, str]:
    """Call the videos by the shortest ends of their paths that differ."""
    parts = [Path(name).absolute().parts for name in (flags.first, flags.second)]
    depth = 1
    while parts[0][-depth:] == parts[1][-depth:] and depth < max(map(len, parts)):
        depth += 1
    first, second = (str(Path(*part[-depth:])) for part in parts)
    return (first, second) if first != second else (f"{first} (A)", f"{second} (B)")


def _write_page(flags: CompareFlags, found: Comparison, page: Path) -> None:
    from tubelet.evaluation.compare import ComparePage, write_page
    from tubelet.evaluation.report_rows import metric_heading, metric_text

    details: dict[str, str] = {"Frames": str(found.frames)}
    for score in found.scores:
        second = metric_text(score.metric, score.second)
        if score.first is None:
            details[metric_heading(score.metric)] = f"{second}, the second against the first"
        else:
            details[metric_heading(score.metric)] = (
                f"{metric_text(score.metric, score.first)} and {second}"
            )
    details |= {f"Note {number}": note for number, note in enumerate(found.notes, 1)}
    content = ComparePage(
        details=details, truth=flags.reference, labels=_labels(flags), size="larger"
    )
    write_page(flags.first, flags.second, page, content)


def _print_table(flags: CompareFlags, found: Comparison) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tubelet.evaluation.report_rows import metric_heading, metric_text

    first, second = _labels(flags)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in (first, second):
        table.add_column(name, justify="right", overflow="fold")
    for score in found.scores:
        one = "the reference" if score.first is None else metric_text(score.metric, score.first)
        table.add_row(metric_heading(score.metric), one, metric_text(score.metric, score.second))
    Console(highlight=False).print(table)
    for note in found.notes:
        sys.stderr.write(f"note: {note}\n")
    sys.stdout.write(f"{found.frames} frames, compared at {found.width}×{found.height}\n")
