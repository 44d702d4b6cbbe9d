"""`tubelet upscale`: make a video larger and sharper."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from tubelet.cli.flags import flags_from, parse, pick
from tubelet.cli.paths import companion, refuse_existing
from tubelet.cli.progress import ProgressStyle, error_events, json_line, show_progress, write_json
from tubelet.cli.startup import loading
from tubelet.errors import ConfigError, IncompleteError, RequestError
from tubelet.progress_display import clock
from tubelet.restore.settings import Result, UpscaleSettings

if TYPE_CHECKING:
    from tubelet.restore.estimate import Description
    from tubelet.restore.plan import Plan

__all__ = ["main"]

_ALIASES = {"model": "-m", "scale": "-s", "height": "-H", "dry_run": "-n", "overwrite": "-y"}
_METAVARS = {
    "input": "INPUT",
    "output": "OUTPUT",
    "plan": "FILE",
    "preview": "N",
    "model": "ID|PATH",
    "height": "PIXELS",
    "crf": "NUMBER",
    "preset": "NAME",
    "start": "SECONDS",
    "duration": "SECONDS",
    "device": "NAME",
    "tile": "PIXELS",
    "memory": "GIB",
}


@dataclass(frozen=True, kw_only=True)
class UpscaleFlags:
    """Make a video larger and sharper; audio, subtitles, chapters and the time of every frame stay."""

    input: str
    """Video file, folder of images, pattern like frames/%05d.png, or - for y4m on the standard input."""
    output: str
    """Video file, folder or pattern of PNGs, or - for y4m on the standard output. It appears under its name
    only when it is whole."""
    dry_run: bool = False
    """Only print the plan: sizes, model, device, and about how long and how large."""
    json: bool = False
    """With --dry-run: write it as JSON, with the whole plan."""
    plan: Path | None = None
    """Restore by this plan: a file with what --dry-run --json printed for the same input and model."""
    preview: int | None = None
    """Instead of the video, write one PNG with this many frames, before and after side by side. It is OUTPUT
    where that ends in .png, otherwise OUTPUT's name with .preview.png."""
    compare: bool = False
    """Also write a page with a before/after slider: OUTPUT's name with .compare.html."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: an event per line, on the standard
    output (on the standard error where OUTPUT is -)."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags = flags_from(UpscaleFlags, UpscaleSettings, aliases=_ALIASES, metavars=_METAVARS)
    command = parse(flags, args, verb="upscale")
    request, settings = pick(command, UpscaleFlags), pick(command, UpscaleSettings)
    _check(request)
    if request.dry_run:
        _print_plan(request, settings)
    elif request.preview is not None:
        _preview(request, settings)
    else:
        _upscale(request, settings)
    return 0


def _check(request: UpscaleFlags) -> None:
    if request.preview is not None and not 1 <= request.preview <= 64:
        raise ConfigError(f"preview={request.preview} must be between 1 and 64 frames")
    chosen = [
        flag
        for flag, on in (
            ("--dry-run", request.dry_run),
            ("--preview", request.preview is not None),
            ("--compare", request.compare),
        )
        if on
    ]
    if len(chosen) > 1:
        raise RequestError(f"{' and '.join(chosen)} contradict; give one of them")
    if chosen and request.input == "-":
        raise RequestError(
            f"{chosen[0]} must read the input twice, which a pipe cannot give; name a file"
        )
    if request.json and not request.dry_run:
        raise RequestError("--json is for --dry-run; the events of a run come with --progress json")
    if request.plan is not None and (request.dry_run or request.preview is not None):
        raise RequestError("--plan is for a run; leave --dry-run and --preview out")
    if request.compare:
        _check_comparable(request.output)


def _check_comparable(output: str) -> None:
    from tubelet.video.destination import destination_kind

    kind = destination_kind(output)
    if kind != "file":
        reason = "a pipe cannot be read again" if kind == "pipe" else "images have no times"
        raise RequestError(
            f"--compare pairs frames by their times, and {reason}; name a video file as the output"
        )


def _upscale(request: UpscaleFlags, settings: UpscaleSettings) -> None:
    with loading():
        from tubelet.restore.job import run

    plan = None if request.plan is None else _read_plan(request.plan)
    page = companion(request.output, ".compare.html")
    if request.compare:
        refuse_existing(page, overwrite=settings.overwrite)
    stream = sys.stderr if request.output == "-" else sys.stdout
    try:
        with _events(request, stream):
            with show_progress(
                request.progress, label=Path(request.input).name, json_to=stream
            ) as update:
                result = run(request.input, request.output, settings, on_progress=update, plan=plan)
            if request.progress == "json":
                json_line(stream, "end", **result.as_dict())
    except IncompleteError:
        if request.compare:
            _write_page(request, settings, page, {})
        raise
    if request.progress != "json":
        _print_summary(request, result)
    if request.compare:
        details = {
            "Model": result.model,
            "Time": f"{clock(result.elapsed_s)} for {result.frames} frames",
        }
        _write_page(request, settings, page, details)


def _read_plan(path: Path) -> Plan:
    """Read a plan, alone or in what --dry-run --json prints."""
    from tubelet.restore.plan import Plan

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the plan {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{path} is not JSON: {error}; make a plan with --dry-run --json"
        ) from error
    if isinstance(data, dict) and "plan" in data:
        data = cast("dict[str, Any]", data)["plan"]
    return Plan.from_json(json.dumps(data))


def _write_page(
    request: UpscaleFlags, settings: UpscaleSettings, page: Path, details: dict[str, str]
) -> None:
    from tubelet.evaluation.compare import write_compare_page

    write_compare_page(
        request.input, request.output, page, details=details, before_start_s=settings.start or 0.0
    )
    sys.stderr.write(f"before and after: {page}\n")


@contextmanager
def _events(request: UpscaleFlags, stream: TextIO) -> Generator[None]:
    """Write the first event, and the last one where the run fails, or the notes of an output that lacks something."""
    if request.progress != "json":
        try:
            yield
        except IncompleteError as error:
            _print_notes(error.notes)
            raise
        return
    json_line(stream, "start", input=request.input, output=request.output)
    with error_events(stream):
        yield


def _print_summary(request: UpscaleFlags, result: Result) -> None:
    from tubelet.video.probe import probe

    _print_notes(result.notes)
    before = ""
    if request.input != "-":
        info = probe(request.input)
        before = f"{info.width}×{info.height} → "
    speed = f"{clock(result.elapsed_s)} ({result.frames / result.elapsed_s:.1f} a second)"
    sys.stderr.write(
        f"{result.path or 'standard output'}: {before}{result.width}×{result.height}, "
        f"{result.frames} frames in {speed}, {result.model}\n"
    )


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _preview(request: UpscaleFlags, settings: UpscaleSettings) -> None:
    from tubelet.evaluation.preview import write_preview
    from tubelet.restore.job import build_engine
    from tubelet.video.probe import probe

    named = request.output.lower().endswith(".png") and "%" not in request.output
    path = Path(request.output) if named else companion(request.output, ".preview.png")
    refuse_existing(path, overwrite=settings.overwrite)
    info = probe(request.input)
    times_s = write_preview(
        build_engine(settings, info),
        info,
        path,
        count=request.preview or 1,
        start_s=settings.start or 0.0,
        duration_s=settings.duration,
    )
    at = ", ".join(f"{time_s:.2f}" for time_s in times_s)
    sys.stderr.write(f"{path}: input left, result right, at {at} s\n")


def _print_plan(request: UpscaleFlags, settings: UpscaleSettings) -> None:
    from tubelet.restore.estimate import describe

    stream = sys.stderr if request.output == "-" else sys.stdout
    description = describe(request.input, request.output, settings)
    if request.json:
        write_json(description.as_dict(), stream)
    else:
        _print_rows(_plan_rows(request, description), stream)


def _print_rows(rows: dict[str, str], stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console(file=stream, highlight=False).print(table)


def _plan_rows(request: UpscaleFlags, description: Description) -> dict[str, str]:
    info = description.info
    plan = description.plan
    width, height = plan.output
    kinds = [stream.kind for stream in info.streams]
    others = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind != "video"
    )
    tiles = f"tiles of {plan.tile_px} input pixels" if plan.tile_px else "whole frames"
    window = "" if plan.window is None else f", {plan.window.frames} frames at once"
    rate = "" if info.average_rate is None else f", {_rate(info.average_rate)} frames a second"
    rows = {
        "input": f"{request.input}, {info.codec} in {info.container}, {info.pix_fmt}{rate}",
        "size": f"{info.width}×{info.height} → {width}×{height}",
        "frames": "unknown"
        if description.frames is None
        else f"{description.frames} (by the header)",
        "frame rate": _new_rate(info.average_rate, description.frame_rate),
        "also copied": others or "nothing: the video is alone",
        "model": description.model,
        "runs on": f"{plan.device}, {plan.precision}, {tiles}{window}",
        "model's speed": f"{1 / description.frame_s:.1f} frames a second",
    }
    if description.restore_s is not None:
        rows["about"] = (
            f"{clock(description.restore_s)}, or more where the encoder is slower than the model"
        )
    if description.output_bytes is not None:
        rows["disk"] = f"about {_megabytes(description.output_bytes)}"
    rows["output"] = f"{request.output} (nothing is written now)"
    return rows


def _new_rate(before: Fraction | None, after: Fraction | None) -> str:
    """Say how the frame rate changes, if it does."""
    if before is None or after is None or before == after:
        return "as in the input"
    return f"{_rate(before)} → {_rate(after)} a second"


def _rate(rate: Fraction) -> str:
    return f"{float(rate):.6g}"


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"
