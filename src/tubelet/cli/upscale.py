"""`tubelet upscale`: upscale a video."""

from __future__ import annotations

import json
import sys
from collections import Counter
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
    "adapter": "PATH",
    "height": "PIXELS",
    "crf": "NUMBER",
    "preset": "NAME",
    "start": "SECONDS",
    "duration": "SECONDS",
    "device": "NAME",
    "tile": "PIXELS",
    "memory": "GIB",
}
_EXAMPLES = """\
examples:
  tubelet upscale old.mp4 new.mp4                            with the default model
  tubelet upscale old.mp4 new.mkv --height 1080 --crf 18     to a height of 1080 pixels
  tubelet upscale old.mp4 new.mp4 --preview 4                look at 4 frames first
  tubelet upscale old.mp4 new.mp4 --dry-run                  show the size, time and disk space
  tubelet upscale old.mp4 part.mp4 --start 60 --duration 10  only 10 seconds of the video
  tubelet upscale frames/%05d.png larger/                    images instead of a video
"""

_MAX_PREVIEW_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class UpscaleFlags:
    """Upscale a video. Audio, subtitles, chapters and the time of every frame are kept."""

    input: str
    """Video file, folder of images, numbered images such as frames/%05d.png, or - for y4m on
    standard input."""
    output: str
    """Video file, folder of PNG images, numbered images such as new/%05d.png, or - for y4m on
    standard output. A file appears under this name only when it is complete."""
    dry_run: bool = False
    """Print the plan and exit: sizes, model, device, estimated time and file size."""
    json: bool = False
    """With --dry-run: print the complete plan as JSON."""
    plan: Path | None = None
    """Follow the plan in this JSON file, printed by --dry-run --json for the same input and
    model."""
    preview: int | None = None
    """Write one PNG with N frames, 1 to 64, before and after side by side, instead of the video.
    Its name is OUTPUT if that ends in .png, otherwise OUTPUT's name with .preview.png."""
    compare: bool = False
    """Also write a page with a before/after slider: OUTPUT's name with .compare.html."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: one event per line, on
    standard output, or on standard error if OUTPUT is -."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags = flags_from(UpscaleFlags, UpscaleSettings, aliases=_ALIASES, metavars=_METAVARS)
    command = parse(flags, args, verb="upscale", examples=_EXAMPLES)
    request: UpscaleFlags = pick(command, UpscaleFlags)
    settings: UpscaleSettings = pick(command, UpscaleSettings)
    _check(request)
    if request.dry_run:
        _print_plan(request, settings)
    elif request.preview is not None:
        _preview(request, request.preview, settings)
    else:
        _upscale(request, settings)
    return 0


def _check(request: UpscaleFlags) -> None:
    """Refuse flags that contradict each other."""
    preview = request.preview
    if preview is not None and not 1 <= preview <= _MAX_PREVIEW_FRAMES:
        raise ConfigError(f"preview={preview} must be between 1 and {_MAX_PREVIEW_FRAMES} frames")

    # These three exclude each other, and read the input a second time.
    is_given = {
        "--dry-run": request.dry_run,
        "--preview": preview is not None,
        "--compare": request.compare,
    }
    modes = [flag for flag, given in is_given.items() if given]
    if len(modes) > 1:
        raise RequestError(f"{' and '.join(modes)} cannot be combined; give one of them")
    if modes and request.input == "-":
        raise RequestError(
            f"{modes[0]} reads the input twice, which a pipe does not allow; give a file as INPUT"
        )

    if request.json and not request.dry_run:
        raise RequestError(
            "--json works only with --dry-run; use --progress json for the events of a run"
        )
    # A plan is for a complete run; a comparison only adds a page to that.
    is_complete_run = modes in ([], ["--compare"])
    if request.plan is not None and not is_complete_run:
        raise RequestError(
            "--plan cannot be combined with --dry-run or --preview; leave them out",
        )
    if request.compare:
        _check_comparable(request.output)


def _check_comparable(output: str) -> None:
    """Refuse --compare for an output that the page cannot read."""
    from tubelet.video.destination import destination_kind

    kind = destination_kind(output)
    if kind == "file":
        return
    reason = "images have no times"
    if kind == "pipe":
        reason = "a pipe cannot be read again"
    raise RequestError(
        f"--compare pairs frames by their times, but {reason}; give a video file as OUTPUT"
    )


def _upscale(request: UpscaleFlags, settings: UpscaleSettings) -> None:
    with loading():
        from tubelet.restore.job import run

    # The plan and the page are checked before the run, which can take hours.
    plan: Plan | None = None
    if request.plan is not None:
        plan = _read_plan(request.plan)
    page = companion(request.output, ".compare.html")
    if request.compare:
        refuse_existing(page, overwrite=settings.overwrite)
    # Standard output belongs to the video if OUTPUT is "-".
    events_to = sys.stderr if request.output == "-" else sys.stdout
    label = Path(request.input).name

    try:
        with _report_errors(request, events_to):
            with show_progress(request.progress, label=label, json_to=events_to) as update:
                result = run(request.input, request.output, settings, on_progress=update, plan=plan)
            if request.progress == "json":
                json_line(events_to, "end", **result.as_dict())
    except IncompleteError:
        # The output exists, and has every frame that could be decoded: it can be compared.
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
    """Read a plan from a file: the plan itself, or the complete output of --dry-run --json."""
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

    start_s = settings.start or 0.0
    write_compare_page(
        request.input,
        request.output,
        page,
        details=details,
        before_start_s=start_s,
    )
    sys.stderr.write(f"before and after: {page}\n")


@contextmanager
def _report_errors(request: UpscaleFlags, events_to: TextIO) -> Generator[None]:
    """Report a failing run: with an event for programs, or with the notes of a partial output.

    For programs, the event `start` is written first.
    """
    if request.progress == "json":
        json_line(events_to, "start", input=request.input, output=request.output)
        with error_events(events_to):
            yield
        return
    try:
        yield
    except IncompleteError as error:
        _print_notes(error.notes)
        raise


def _print_summary(request: UpscaleFlags, result: Result) -> None:
    from tubelet.video.probe import probe

    _print_notes(result.notes)
    size = f"{result.width}×{result.height}"
    # A pipe cannot be read again for the size of the input.
    if request.input != "-":
        info = probe(request.input)
        size = f"{info.width}×{info.height} → {size}"
    fps = result.frames / result.elapsed_s
    output = result.path or "standard output"
    sys.stderr.write(
        f"{output}: {size}, {result.frames} frames in {clock(result.elapsed_s)} "
        f"({fps:.1f} a second), {result.model}\n"
    )


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _preview(request: UpscaleFlags, count: int, settings: UpscaleSettings) -> None:
    from tubelet.evaluation.preview import write_preview
    from tubelet.restore.job import build_engine
    from tubelet.video.probe import probe

    path = companion(request.output, ".preview.png")
    # "%" marks a pattern of numbered images, not the name of a single one.
    is_pattern = "%" in request.output
    if request.output.lower().endswith(".png") and not is_pattern:
        path = Path(request.output)
    refuse_existing(path, overwrite=settings.overwrite)
    info = probe(request.input)
    times_s = write_preview(
        build_engine(settings, info),
        info,
        path,
        count=count,
        start_s=settings.start or 0.0,
        duration_s=settings.duration,
    )
    times = ", ".join(f"{time_s:.2f}" for time_s in times_s)
    sys.stderr.write(f"{path}: input left, result right, at {times} s\n")


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
    """Describe the plan of a run, as rows of a table."""
    info = description.info
    plan = description.plan
    width, height = plan.output

    source = f"{request.input}, {info.codec} in {info.container}, {info.pix_fmt}"
    if info.average_rate is not None:
        source += f", {_rate(info.average_rate)} frames a second"
    frames = "unknown"
    if description.frames is not None:
        frames = f"{description.frames} (by the header)"
    extent = "whole frames"
    if plan.tile_px:
        extent = f"tiles of {plan.tile_px} input pixels"
    runs_on = f"{plan.device}, {plan.precision}, {extent}"
    if plan.window is not None:
        runs_on += f", {plan.window.frames} frames at once"
        if plan.window.lookahead:
            runs_on += f", the last {plan.window.lookahead} as look-ahead"

    rows = {
        "input": source,
        "size": f"{info.width}×{info.height} → {width}×{height}",
        "frames": frames,
        "frame rate": _new_rate(info.average_rate, description.frame_rate),
        "also copied": _other_streams([stream.kind for stream in info.streams]),
        "model": description.model,
        "runs on": runs_on,
        "model speed": f"{1 / description.frame_s:.1f} frames a second",
    }
    if description.restore_s is not None:
        duration = clock(description.restore_s)
        rows["time"] = f"about {duration}, or more if the encoder is slower than the model"
    if description.output_bytes is not None:
        rows["disk"] = f"about {_megabytes(description.output_bytes)}"
    rows["output"] = f"{request.output} (not written in a dry run)"
    return rows


def _other_streams(kinds: Sequence[str]) -> str:
    """Count the streams that are not video, for example "2 audio, 1 subtitle"."""
    # Each kind once, in the order of the streams.
    num_streams = Counter(kinds)
    del num_streams["video"]
    if not num_streams:
        return "nothing: the input has only video"
    return ", ".join(f"{count} {kind}" for kind, count in num_streams.items())


def _new_rate(before: Fraction | None, after: Fraction | None) -> str:
    """Describe the change of the frame rate."""
    # Without a rate in the header, the output has the times of the input.
    if before is None or after is None:
        return "as in the input"
    if before == after:
        return "as in the input"
    return f"{_rate(before)} → {_rate(after)} a second"


def _rate(rate: Fraction) -> str:
    return f"{float(rate):.6g}"


def _megabytes(size_bytes: int) -> str:
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{max(size_bytes / 1e6, 0.1):.1f} MB"
