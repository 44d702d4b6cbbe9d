"""`tubelet data`: the standard sets: what they are, what of them is there, and low-quality copies of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.progress import ProgressStyle, show_progress, write_json
from tubelet.cli.startup import loading
from tubelet.errors import InputError, RequestError
from tubelet.progress import Ticker

if TYPE_CHECKING:
    from tubelet.data.check import ClipReport, SetReport
    from tubelet.data.datasets import EvalClip

__all__ = ["main"]

_HELP = """usage: tubelet data list|check|prepare [OPTIONS]

The standard sets of video super-resolution, in the folder layouts they are published in.

  list                                 the sets: what they hold, where to get them, their licenses
      --json                           JSON instead of a table
  check ROOT                           what is there, what is missing, wrong sizes and counts
      --set NAME                       this set; ends with 3 where it is not complete
      --every-frame                    decode every image, not only the size of the first
      --json                           JSON instead of a table
  prepare ROOT --out DIR --preset P    low-quality copies as PNGs; goes on where it was stopped
      --set NAME                       this set, not just any folder of clips
      --scale N  --seed N              factor and seed of the degradation
      --cache  --variants N            the arrays that training reads, instead of PNGs
      --progress STYLE                 auto, bar, json or none

`tubelet data check --help` and so on tell more.

example:
  tubelet data check datasets/ --set vid4
  tubelet data prepare datasets/REDS --set reds --preset bd --out datasets/REDS-bd
"""
_METAVARS = {"root": "ROOT", "set": "NAME", "preset": "NAME", "out": "DIR"}
_MANY = 40  # clips; of a larger set only those with problems are listed


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """List the standard sets: what they hold, where to get them, and their licenses."""

    json: bool = False
    """Write JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """Say what of the standard sets is in a folder: what is missing, and wrong sizes and counts."""

    root: Path
    """Folder of a set, or one that holds sets."""
    set: str | None = None
    """Name of a set; the command ends with 3 where it is not complete. Default: whatever is found."""
    every_frame: bool = False
    """Decode every image, not only the size of the first of each clip."""
    json: bool = False
    """Write JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class PrepareFlags:
    """Write low-quality copies of clips: folders of PNGs, or the arrays that training reads."""

    root: Path
    """Folder of the set, or any folder of videos or folders of frames."""
    out: Path | None = None
    """Folder of the copies. It is made; what is there already is not made again."""
    preset: str | None = None
    """bi, bi-u8, bd, bd-b, bd-c, real or second-order."""
    scale: int = 4
    """Factor by which the copies are smaller."""
    seed: int = 0
    """Of the draws of real and second-order; each clip has its own, made of it and the clip's name."""
    set: str | None = None
    """Name of a standard set: its clips, test sets too. Default: all clips of the folder."""
    cache: bool = False
    """Write the arrays that `tubelet train --cache` reads instead of PNGs."""
    variants: int = 3
    """With --cache: versions of each clip, for the presets that draw."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: an event per line on the standard output."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if not args:
        sys.stdout.write(_HELP)
        return 2
    action, rest = args[0], args[1:]
    if action in ("-h", "--help"):
        sys.stdout.write(_HELP)
        sys.exit(0)
    if action == "list":
        return _list(parse(flags_from(ListFlags), rest, verb="data list"))
    if action == "check":
        return _check(parse(flags_from(CheckFlags, metavars=_METAVARS), rest, verb="data check"))
    if action == "prepare":
        return _prepare(
            parse(flags_from(PrepareFlags, metavars=_METAVARS), rest, verb="data prepare")
        )
    raise RequestError(f"no action {action!r} of data; there are list, check, prepare")


def _list(flags: ListFlags) -> int:
    with loading():
        from tubelet.data.catalog import DATASETS
    if flags.json:
        rows = [
            {
                "name": d.name,
                "title": d.title,
                "summary": d.summary,
                "source": d.source,
                "license": d.license,
            }
            for d in DATASETS
        ]
        write_json(rows, sys.stdout)
        return 0
    for dataset in DATASETS:
        print(
            f"{dataset.name:12}{dataset.summary}\n{'':12}{dataset.source}\n{'':12}license: {dataset.license}\n"
        )
    print(
        "tubelet data check ROOT --set NAME says what of a set is there; docs/datasets.md shows the layouts."
    )
    return 0


def _check(flags: CheckFlags) -> int:
    with loading():
        from tubelet.data.catalog import find_dataset
        from tubelet.data.check import check_folder, check_set, sets_in
    wanted = [find_dataset(flags.set)] if flags.set else sets_in(flags.root)
    style = "bar" if sys.stderr.isatty() else "none"
    with show_progress(style, label=flags.root.name, json_to=sys.stdout) as on_progress:
        reports: list[SetReport] = []
        for dataset in wanted:
            reports.append(
                check_set(
                    dataset, flags.root, every_frame=flags.every_frame, on_progress=on_progress
                )
            )
        if not reports:
            reports.append(
                check_folder(flags.root, every_frame=flags.every_frame, on_progress=on_progress)
            )
    if flags.json:
        write_json([report.as_dict() for report in reports], sys.stdout)
    else:
        for report in reports:
            _print_report(report)
    if flags.set and not reports[0].is_complete:
        if not flags.json:
            sys.stderr.write(f"{reports[0].title} is not complete\n")
        return InputError.exit_code
    return 0


def _print_report(report: SetReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    of = "" if report.expected is None else f" of {report.expected}"
    console.print(
        f"[bold]{report.title}[/] in {report.folder}: {report.found}{of} clips", soft_wrap=True
    )
    for note in report.notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)
    missing = [_full_name(clip) for clip in report.clips if clip.path is None]
    for problem in [*report.problems, *([f"missing: {_shortened(missing)}"] if missing else [])]:
        console.print(f"  {problem}", style="red", markup=False, soft_wrap=True)
    present = [clip for clip in report.clips if clip.path is not None]
    listed = [clip for clip in present if len(present) <= _MANY or clip.problems]
    if listed:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("clip", no_wrap=True)
        table.add_column("frames", justify="right", no_wrap=True)
        table.add_column("size", no_wrap=True)
        table.add_column("low quality", no_wrap=True)
        table.add_column("problems", style="red")
        for clip in listed[:_MANY]:
            table.add_row(*_cells(clip))
        console.print(table)
    if len(listed) > _MANY:
        console.print(f"and {len(listed) - _MANY} more with problems; --json lists all")


def _shortened(names: Sequence[str]) -> str:
    return (
        ", ".join(names)
        if len(names) <= 12
        else f"{', '.join(names[:10])} and {len(names) - 10} more"
    )


def _full_name(clip: ClipReport) -> str:
    return f"{clip.split}/{clip.name}" if clip.split and clip.split != "test" else clip.name


def _cells(clip: ClipReport) -> tuple[str, str, str, str, str]:
    size = "" if clip.size is None else f"{clip.size[0]}×{clip.size[1]}"
    frames = "" if clip.frames is None else str(clip.frames)
    return _full_name(clip), frames, size, ", ".join(clip.lq), "; ".join(clip.problems)


def _prepare(flags: PrepareFlags) -> int:
    with loading():
        from tubelet.data.copies import Degradation, write_clips
        from tubelet.degrade import PRESETS
    if flags.out is None or flags.preset is None:
        raise RequestError(f"give --out DIR and --preset, one of {', '.join(PRESETS)}")
    preset: Any = flags.preset
    degradation = Degradation(preset=preset, scale=flags.scale, seed=flags.seed)
    if flags.cache:
        return _prepare_cache(flags, flags.out, degradation.preset)
    clips = _clips(flags)
    with show_progress(flags.progress, label=flags.out.name, json_to=sys.stdout) as on_progress:
        made = write_clips(clips, flags.out, degradation, on_progress=on_progress)
    sys.stderr.write(f"{flags.out}: {made} clips made, {len(clips) - made} were there\n")
    return 0


def _clips(flags: PrepareFlags) -> list[EvalClip]:
    from tubelet.data.catalog import find_dataset
    from tubelet.data.datasets import find_folder_clips, find_set_clips

    return (
        find_set_clips(find_dataset(flags.set), flags.root)
        if flags.set
        else find_folder_clips(flags.root)
    )


def _prepare_cache(flags: PrepareFlags, out: Path, preset: Any) -> int:
    from tubelet.data import prepare_clips

    if flags.set is not None:
        raise RequestError(
            "--cache takes folders of clips as training does; name the folder instead of --set"
        )
    clips = 0
    with show_progress(flags.progress, label=out.name, json_to=sys.stdout) as on_progress:
        ticker = Ticker(on_progress, unit="frame", label=out.name)
        for clip in prepare_clips(
            [flags.root], out, preset=preset, scale=flags.scale, variants=flags.variants
        ):
            clips += 1
            ticker.tick(len(clip.gt))
        ticker.finish()
    sys.stderr.write(f"{out}: {clips} clips, {ticker.done} frames\n")
    return 0
