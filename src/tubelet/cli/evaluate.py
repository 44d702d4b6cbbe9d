"""`tubelet evaluate`: score models on a benchmark by its protocol, and write a report."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
_EXAMPLES = """\
examples:
  tubelet evaluate -m fast-x4-bi bicubic -p vid4-bi-x4 --data datasets/
  tubelet evaluate -m runs/mine/model.safetensors -p folder-bi-x4 --data clips/ --out scores/
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Score models on a benchmark by its protocol, and write a report next to published scores.

    The models run exactly as in `tubelet upscale`.
    """

    model: tuple[str, ...] | None = None
    """Models to score: ids, listed by `tubelet models`, paths of checkpoints, or bicubic and
    lanczos, which exist for every scale."""
    protocol: str | None = None
    """Protocol of the scores: dataset, degradation, scale, channel, border and frames; for example
    vid4-bi-x4, reds4-bi-x4, or folder-bi-x4 for any folder of clips. A wrong name lists all
    protocols."""
    data: Path = Path()
    """Folder of the dataset in its published layout, or folder that contains it. Default: the
    current folder."""
    out: Path | None = None
    """Folder of the scores and the report; scores that are in it already are reused. Default:
    evaluation-PROTOCOL."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: one event per line, on
    standard output."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags = flags_from(EvaluateFlags, EvaluateSettings, aliases=_ALIASES, metavars=_METAVARS)
    command = parse(flags, args, verb="evaluate", examples=_EXAMPLES)
    request: EvaluateFlags = pick(command, EvaluateFlags)
    settings: EvaluateSettings = pick(command, EvaluateSettings)
    with _events(request):
        _evaluate(request, settings)
    return 0


def _evaluate(request: EvaluateFlags, settings: EvaluateSettings) -> None:
    with loading():
        from tubelet.evaluation.evaluate import evaluate
        from tubelet.evaluation.report import write_report
        from tubelet.evaluation.results import to_jsonable
    from tubelet.metrics.protocols import PROTOCOLS, find_protocol

    if not request.protocol:
        # "folder" protocols take any degradation and scale, and are not in the list.
        names = ", ".join(protocol.name for protocol in PROTOCOLS)
        raise RequestError(f"no protocol is given; use --protocol with {names} or folder-bi-x4")
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
            on_score=lambda score: _show_score(request, score),
        )
    # The report has all scores in the folder, including those of earlier runs.
    reports = write_report(out)
    if request.progress == "json":
        means = {score.model: score.mean for score in scores}
        paths = [str(path) for path in reports]
        json_line(sys.stdout, "end", mean=to_jsonable(means), reports=paths)
    else:
        _print_table(scores)
        report = out / "report.html"
        sys.stdout.write(
            f"report: {report} (and .md, .csv, .tex; the numbers: results.json, scores/)\n"
        )


@contextmanager
def _events(request: EvaluateFlags) -> Generator[None]:
    """For programs, write the event `start`, and the event `error` if the run fails."""
    if request.progress != "json":
        yield
        return
    json_line(sys.stdout, "start", protocol=request.protocol, models=list(request.model or ()))
    with error_events(sys.stdout):
        yield


def _show_score(request: EvaluateFlags, score: ClipScore) -> None:
    """Print the score of one clip, as an event or as a line."""
    from tubelet.evaluation.results import to_jsonable

    model = score.identity.model
    clip = score.identity.clip
    if request.progress == "json":
        json_line(
            sys.stdout,
            "score",
            model=model,
            clip=clip,
            mean=to_jsonable(score.mean),
            seconds_per_frame=round(score.seconds_per_frame, 6),
        )
    elif request.progress != "none":
        sys.stderr.write(f"{model}  {clip}  {_metric_texts(score.mean)}\n")
        sys.stderr.flush()


def _metric_texts(mean: Mapping[str, float]) -> str:
    from tubelet.evaluation.report_rows import metric_text

    texts: list[str] = []
    for name, value in mean.items():
        texts.append(f"{name} {metric_text(name, value)}")
    return "  ".join(texts)


def _print_table(scores: Sequence[ModelScore]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tubelet.evaluation.report_rows import metric_heading, metric_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # All models are scored by the same metrics.
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
