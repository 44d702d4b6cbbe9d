"""`tubelet evaluate`: score models on a benchmark as its protocol says, and write a report."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.cli.flags import flags_from, parse, pick
from tubelet.cli.progress import ProgressStyle, error_events, json_line, show_progress
from tubelet.cli.startup import loading
from tubelet.errors import RequestError
from tubelet.evaluation.settings import EvaluateSettings
from tubelet.progress_display import clock

if TYPE_CHECKING:
    from tubelet.evaluation.results import ClipScore, ModelScore

__all__ = ["main"]

_ALIASES = {"model": "-m", "protocol": "-p"}
_METAVARS = {
    "model": "ID|PATH ...",
    "protocol": "NAME",
    "data": "FOLDER",
    "out": "FOLDER",
    "metrics": "NAME ...",
    "metric_weights": "PATH",
    "device": "NAME",
    "tile": "PIXELS",
    "max_frames": "N",
    "showcases": "N",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Score models on a benchmark, as its protocol says, with the engine that upscaling uses; write a report."""

    model: tuple[str, ...] | None = None
    """Ids of the models, names that stand for one per scale (bicubic), or paths of checkpoints."""
    protocol: str | None = None
    """What a score means: clips, degradation, scale, channel, border, frames. For example vid4-bi-x4, reds4-bi-x4,
    or folder-bi-x4 for any folder of clips. A wrong name lists them."""
    data: Path = Path()
    """Folder of the set in its published layout, or one that holds it. Default: this folder."""
    out: Path | None = None
    """Folder of the results. What is measured there already is not measured again. Default: evaluation-PROTOCOL."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: an event per line, on the standard
    output."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags = flags_from(EvaluateFlags, EvaluateSettings, aliases=_ALIASES, metavars=_METAVARS)
    command = parse(flags, args, verb="evaluate")
    request: EvaluateFlags = pick(command, EvaluateFlags)
    with _events(request):
        _evaluate(request, pick(command, EvaluateSettings))
    return 0


def _evaluate(request: EvaluateFlags, settings: EvaluateSettings) -> None:
    with loading():
        from tubelet.evaluation.evaluate import evaluate
        from tubelet.evaluation.report import write_report
    from tubelet.metrics.protocols import PROTOCOLS, find_protocol

    if not request.protocol:
        known = ", ".join(protocol.name for protocol in PROTOCOLS)
        raise RequestError(f"no protocol is named; give --protocol, one of {known}, folder-bi-x4")
    protocol = find_protocol(request.protocol)
    out = request.out or Path(f"evaluation-{protocol.name}")
    with show_progress(request.progress, label=protocol.name, json_to=sys.stdout) as on_progress:
        scores = evaluate(
            request.model or (),
            protocol,
            request.data,
            out,
            settings=settings,
            on_progress=on_progress,
            on_score=partial(_show_score, request),
        )
    reports = write_report(out)
    if request.progress == "json":
        means = {score.model: score.mean for score in scores}
        json_line(sys.stdout, "end", mean=_finite(means), reports=[str(path) for path in reports])
    else:
        _print_table(scores)
        sys.stdout.write(
            f"report: {out / 'report.html'} (and .md, .csv, .tex; the numbers: results.json, scores/)\n"
        )


@contextmanager
def _events(request: EvaluateFlags) -> Generator[None]:
    """Write the first event, and the last one where the run fails."""
    if request.progress != "json":
        yield
        return
    json_line(sys.stdout, "start", protocol=request.protocol, models=list(request.model or ()))
    with error_events(sys.stdout):
        yield


def _show_score(request: EvaluateFlags, score: ClipScore) -> None:
    """Tell the score of a clip, as an event or as a line."""
    model, clip = score.identity.model, score.identity.clip
    if request.progress == "json":
        seconds = round(score.seconds_per_frame, 6)
        json_line(
            sys.stdout,
            "score",
            model=model,
            clip=clip,
            mean=_finite(score.mean),
            seconds_per_frame=seconds,
        )
    elif request.progress != "none":
        sys.stderr.write(f"{model}  {clip}  {_words(score.mean)}\n")
        sys.stderr.flush()


def _finite(value: Any) -> Any:
    from tubelet.evaluation.results import to_jsonable

    return to_jsonable(value)


def _words(mean: Any) -> str:
    from tubelet.evaluation.report_rows import metric_text

    return "  ".join(f"{name} {metric_text(name, value)}" for name, value in mean.items())


def _print_table(scores: Sequence[ModelScore]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tubelet.evaluation.report_rows import metric_heading, metric_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True, style="bold")
    for name in scores[0].mean:
        table.add_column(metric_heading(name), justify="right", no_wrap=True)
    table.add_column("a frame", justify="right", no_wrap=True)
    for score in scores:
        numbers = [metric_text(name, value) for name, value in score.mean.items()]
        table.add_row(score.model, *numbers, _duration(score.seconds_per_frame))
    Console(highlight=False).print(table)


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else clock(seconds)
