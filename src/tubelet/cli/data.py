"""`tubelet data`: list and check the standard datasets, and make low-quality copies of clips."""

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
    from rich.table import Table

    from tubelet.data.check import ClipReport, SetReport
    from tubelet.data.datasets import EvalClip

__all__ = ["main"]

_HELP = """\
usage: tubelet data list|check|prepare [OPTIONS]

List, check and prepare the standard datasets of video super-resolution, in their published layouts.

  list                                 list the datasets, their contents, sources and licenses
      --json                           print JSON instead of a table
  check ROOT                           report missing clips, and wrong sizes and counts
      --set NAME                       check this dataset; exit with 3 if it is not complete
      --every-frame                    decode every image, not only the first one of each clip
      --json                           print JSON instead of a table
  prepare ROOT --out DIR --preset P    write low-quality copies as PNGs; can be stopped and resumed
      --set NAME                       copy the clips of this dataset, not of any folder
      --scale N  --seed N              factor and seed of the degradation
      --cache  --variants N            write the arrays that training reads, instead of PNGs
      --progress STYLE                 auto, bar, json or none

`tubelet data check --help` lists the options of an action.

examples:
  tubelet data list
  tubelet data check datasets/ --set vid4
  tubelet data prepare datasets/REDS --set reds --preset bd --out datasets/REDS-bd
"""
_METAVARS = {
    "root": "ROOT",
    "set": "NAME",
    "preset": "NAME",
    "out": "DIR",
    "scale": "N",
    "seed": "N",
    "variants": "N",
}
# Of a dataset with more clips, only the clips with problems are listed.
_MAX_LISTED_CLIPS = 40
# Of more missing clips, only the first ten are named.
_MAX_NAMES = 12


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """List the standard datasets: contents, sources and licenses."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """Check the standard datasets in a folder: missing clips, and wrong sizes and counts."""

    root: Path
    """Folder of a dataset, or folder that contains several."""
    set: str | None = None
    """Dataset to check, listed by `tubelet data list`; the exit code is 3 if it is not complete.
    Default: all datasets that are in the folder."""
    every_frame: bool = False
    """Decode every image, not only the first one of each clip."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class PrepareFlags:
    """Write low-quality copies of clips, as folders of PNGs or as the arrays that training reads.

    A run that was stopped resumes when the same command is run again.
    """

    root: Path
    """Folder of a dataset, or any folder of videos or of folders of frames."""
    out: Path | None = None
    """Folder of the copies, which is created; clips that are in it already are skipped."""
    preset: str | None = None
    """Degradation: bi, bi-u8, bd, bd-b or bd-c as in benchmarks; real or second-order for random
    real-world degradation."""
    scale: int = 4
    """Downscaling factor."""
    seed: int = 0
    """Seed of the random presets real and second-order; combined with the name of each clip."""
    set: str | None = None
    """Standard dataset whose clips are copied, including its test clips. Default: all clips in the
    folder."""
    cache: bool = False
    """Write the arrays that `tubelet train --cache` reads, instead of PNGs."""
    variants: int = 3
    """With --cache: degraded versions of each clip, for the random presets."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: one event per line, on
    standard output."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if not args:
        sys.stdout.write(_HELP)
        return RequestError.exit_code
    action = args[0]
    action_args = args[1:]
    match action:
        case "-h" | "--help":
            sys.stdout.write(_HELP)
            sys.exit(0)
        case "list":
            return _list(parse(flags_from(ListFlags), action_args, verb="data list"))
        case "check":
            flags = flags_from(CheckFlags, metavars=_METAVARS)
            return _check(parse(flags, action_args, verb="data check"))
        case "prepare":
            flags = flags_from(PrepareFlags, metavars=_METAVARS)
            return _prepare(parse(flags, action_args, verb="data prepare"))
        case _:
            raise RequestError(f"unknown action {action!r}; there are list, check, prepare")


def _list(flags: ListFlags) -> int:
    with loading():
        from tubelet.data.catalog import DATASETS
    if flags.json:
        rows: list[dict[str, Any]] = []
        for dataset in DATASETS:
            row = {
                "name": dataset.name,
                "title": dataset.title,
                "summary": dataset.summary,
                "source": dataset.source,
                "license": dataset.license,
            }
            rows.append(row)
        write_json(rows, sys.stdout)
        return 0
    for dataset in DATASETS:
        print(f"{dataset.name:12}{dataset.summary}")
        print(f"{'':12}{dataset.source}")
        print(f"{'':12}license: {dataset.license}\n")
    print(
        "tubelet data check ROOT --set NAME checks a dataset; docs/datasets.md shows the layouts."
    )
    return 0


def _check(flags: CheckFlags) -> int:
    with loading():
        from tubelet.data.catalog import find_dataset
        from tubelet.data.check import check_folder, check_set, sets_in
    datasets = [find_dataset(flags.set)] if flags.set else sets_in(flags.root)
    every_frame = flags.every_frame
    style = "bar" if sys.stderr.isatty() else "none"
    reports: list[SetReport] = []
    with show_progress(style, label=flags.root.name, json_to=sys.stdout) as on_progress:
        for dataset in datasets:
            reports.append(
                check_set(dataset, flags.root, every_frame=every_frame, on_progress=on_progress)
            )
        if not reports:
            # No standard dataset: check the clips of the folder without knowing their number.
            reports.append(
                check_folder(flags.root, every_frame=every_frame, on_progress=on_progress)
            )
    if flags.json:
        write_json([report.as_dict() for report in reports], sys.stdout)
    else:
        for report in reports:
            _print_report(report)
    # Without --set, an incomplete dataset is no error: its presence was not requested.
    if flags.set and not reports[0].is_complete:
        if not flags.json:
            sys.stderr.write(f"{reports[0].title} is not complete\n")
        return InputError.exit_code
    return 0


def _print_report(report: SetReport) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    count = f"{report.found}"
    if report.expected is not None:
        count += f" of {report.expected}"
    console.print(f"[bold]{report.title}[/] in {report.folder}: {count} clips", soft_wrap=True)
    for note in report.notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)

    # Missing clips share a line; the others are rows of a table.
    present: list[ClipReport] = []
    missing: list[str] = []
    for clip in report.clips:
        if clip.path is None:
            missing.append(_full_name(clip))
        else:
            present.append(clip)
    problems = list(report.problems)
    if missing:
        problems.append(f"missing: {_shortened(missing)}")
    for problem in problems:
        console.print(f"  {problem}", style="red", markup=False, soft_wrap=True)

    listed = present
    if len(present) > _MAX_LISTED_CLIPS:
        listed = [clip for clip in present if clip.problems]
    if listed:
        console.print(_clip_table(listed[:_MAX_LISTED_CLIPS]))
    num_hidden = len(listed) - _MAX_LISTED_CLIPS
    if num_hidden > 0:
        console.print(f"and {num_hidden} more with problems; --json lists all")


def _clip_table(clips: Sequence[ClipReport]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("clip", no_wrap=True)
    table.add_column("frames", justify="right", no_wrap=True)
    table.add_column("size", no_wrap=True)
    table.add_column("low quality", no_wrap=True)
    table.add_column("problems", style="red")
    for clip in clips:
        size = "" if clip.size is None else f"{clip.size[0]}×{clip.size[1]}"
        frames = "" if clip.frames is None else str(clip.frames)
        table.add_row(_full_name(clip), frames, size, ", ".join(clip.lq), "; ".join(clip.problems))
    return table


def _shortened(names: Sequence[str]) -> str:
    if len(names) <= _MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:10])} and {len(names) - 10} more"


def _full_name(clip: ClipReport) -> str:
    """Return the name of a clip with its split, unless it is a test clip."""
    if clip.split in ("", "test"):
        return clip.name
    return f"{clip.split}/{clip.name}"


def _prepare(flags: PrepareFlags) -> int:
    with loading():
        from tubelet.data.copies import Degradation, write_clips
        from tubelet.degrade import PRESETS
    if flags.out is None or flags.preset is None:
        raise RequestError(f"give --out DIR and --preset, one of {', '.join(PRESETS)}")
    # `Degradation` refuses an unknown preset.
    preset: Any = flags.preset
    degradation = Degradation(preset=preset, scale=flags.scale, seed=flags.seed)
    if flags.cache:
        return _prepare_cache(flags, flags.out, degradation.preset)
    clips = _find_clips(flags)
    with show_progress(flags.progress, label=flags.out.name, json_to=sys.stdout) as on_progress:
        num_made = write_clips(clips, flags.out, degradation, on_progress=on_progress)
    num_skipped = len(clips) - num_made
    sys.stderr.write(f"{flags.out}: {num_made} clips written, {num_skipped} existed already\n")
    return 0


def _find_clips(flags: PrepareFlags) -> list[EvalClip]:
    from tubelet.data.catalog import find_dataset
    from tubelet.data.datasets import find_folder_clips, find_set_clips

    if flags.set:
        return find_set_clips(find_dataset(flags.set), flags.root)
    return find_folder_clips(flags.root)


def _prepare_cache(flags: PrepareFlags, out: Path, preset: Any) -> int:
    from tubelet.data import prepare_clips

    if flags.set is not None:
        raise RequestError(
            "--cache reads folders of clips, as training does; give the folder instead of --set"
        )
    num_clips = 0
    with show_progress(flags.progress, label=out.name, json_to=sys.stdout) as on_progress:
        ticker = Ticker(on_progress, unit="frame", label=out.name)
        clips = prepare_clips(
            [flags.root], out, preset=preset, scale=flags.scale, variants=flags.variants
        )
        for clip in clips:
            num_clips += 1
            ticker.tick(len(clip.gt))
        ticker.finish()
    sys.stderr.write(f"{out}: {num_clips} clips, {ticker.done} frames\n")
    return 0
