"""`tubelet degrade`: make the low-quality version of a video, an image, or folders of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tubelet.cli.flags import flags_from, parse
from tubelet.cli.paths import refuse_existing
from tubelet.cli.progress import ProgressStyle, show_progress
from tubelet.cli.startup import loading
from tubelet.errors import InputError, RequestError
from tubelet.files import atomic_write

if TYPE_CHECKING:
    from tubelet.data.copies import Degradation
    from tubelet.degrade import DegradationRecipe

__all__ = ["main"]

_ALIASES = {"preset": "-p", "scale": "-s", "overwrite": "-y"}
_METAVARS = {"input": "INPUT", "output": "OUTPUT", "preset": "NAME", "recipe": "FILE"}


@dataclass(frozen=True, kw_only=True)
class DegradeFlags:
    """Make the low-quality version of a video, an image, a folder of frames, or a folder of clips."""

    input: str
    """Video file, image, folder of frames, pattern like frames/%05d.png, or folder of clips."""
    output: str
    """For a video or frames: a video file (lossless) or a folder of PNGs; for an image a .png; for a folder of clips
    a folder. It appears under its name only when it is whole; a folder of clips goes on where it was stopped."""
    preset: str | None = None
    """bi, bi-u8, bd, bd-b, bd-c: those of benchmarks. real, second-order: of the real world, drawn from the seed."""
    scale: int | None = None
    """Factor by which the result is smaller. Default: 4. Sizes are cropped to multiples of it first."""
    seed: int | None = None
    """Of the draws of real and second-order. Default: 0. Each clip of a folder has its own, made of it and its name."""
    recipe: Path | None = None
    """JSON file of the drawn steps: read and replayed where it exists, else written."""
    overwrite: bool = False
    """Replace an existing output (not a folder of clips)."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: an event per line on the standard output."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    flags: DegradeFlags = parse(
        flags_from(DegradeFlags, aliases=_ALIASES, metavars=_METAVARS), args, verb="degrade"
    )
    with loading():
        kind = _kind(flags.input)  # imports torch
    degradation = _degradation(flags, kind)
    if kind == "clips":
        _clips(flags, degradation)
    else:
        _one(flags, degradation, kind)
    if flags.recipe is not None and degradation.recipe is not None and not flags.recipe.exists():
        _write(flags.recipe, degradation.recipe)
    return 0


def _kind(src: str) -> str:
    """Tell what the input is: image, frames, video or clips."""
    from tubelet.data.datasets import count_frames, find_folder_clips

    path = Path(src)
    if path.is_dir() and not count_frames(path):
        find_folder_clips(path)  # says what is wrong where there is none
        return "clips"
    if path.is_dir() or (not path.exists() and "%" in path.name):
        return "frames"
    return "image" if count_frames(path) else "video"


def _degradation(flags: DegradeFlags, kind: str) -> Degradation:
    from tubelet.data.copies import Degradation
    from tubelet.degrade import PRESETS, RANDOM_PRESETS, draw_recipe

    if flags.recipe is not None and flags.recipe.exists():
        return _replayed(flags, flags.recipe)
    if flags.preset is None:
        raise RequestError(f"give --preset: {', '.join(PRESETS)}")
    scale, seed = 4 if flags.scale is None else flags.scale, flags.seed or 0
    degradation = Degradation(preset=flags.preset, scale=scale, seed=seed)  # pyright: ignore[reportArgumentType]
    if flags.recipe is None:
        return degradation
    if flags.preset not in RANDOM_PRESETS:
        raise RequestError(
            f"--recipe {flags.recipe}: {flags.preset} draws nothing; {', '.join(RANDOM_PRESETS)} do"
        )
    if kind == "clips":
        raise RequestError(
            "--recipe writes the steps of one clip, and each clip of a folder has its own; name one"
        )
    if not flags.recipe.parent.is_dir():
        raise RequestError(f"the folder {flags.recipe.parent} does not exist; make it first")
    recipe = draw_recipe(flags.preset, scale=scale, seed=seed)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(degradation, recipe=recipe)


def _replayed(flags: DegradeFlags, path: Path) -> Degradation:
    from tubelet.data.copies import Degradation
    from tubelet.degrade.recipe import recipe_from_json

    try:
        recipe = recipe_from_json(path.read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be replayed: {error}") from error
    for name, asked, has in (
        ("preset", flags.preset, recipe.preset),
        ("scale", flags.scale, recipe.scale),
        ("seed", flags.seed, recipe.seed),
    ):
        if asked is not None and asked != has:
            raise RequestError(
                f"{path} exists and has {name} {has}, not {asked}; leave --{name} out or name a new file"
            )
    sys.stderr.write(f"{recipe}\nsteps read from {path}\n")
    return Degradation(preset=recipe.preset, scale=recipe.scale, seed=recipe.seed, recipe=recipe)  # pyright: ignore


def _one(flags: DegradeFlags, degradation: Degradation, kind: str) -> None:
    from tubelet.data.copies import lossless, write_image, write_images, write_video
    from tubelet.video.destination import check_output, destination_kind

    dst = Path(flags.output)
    if kind == "image":
        if dst.suffix.lower() != ".png":
            raise RequestError(
                f"an image becomes a PNG, not {dst.name!r}; let the output end in .png"
            )
        _check_image(dst, flags)
        write_image(Path(flags.input), dst, degradation)
        return
    target = destination_kind(flags.output)
    if target in ("pipe", "pattern"):
        raise RequestError(f"the output is a video file or a folder, not {flags.output!r}")
    check_output(flags.output, source=flags.input, overwrite=flags.overwrite)
    with show_progress(flags.progress, label=dst.name, json_to=sys.stdout) as on_progress:
        if target == "folder":
            write_images(flags.input, dst, degradation, on_progress=on_progress)
            return
        notes = write_video(
            flags.input,
            dst,
            degradation,
            encode=lossless(dst),
            overwrite=flags.overwrite,
            on_progress=on_progress,
        )
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _clips(flags: DegradeFlags, degradation: Degradation) -> None:
    from tubelet.data.copies import write_clips
    from tubelet.data.datasets import find_folder_clips

    if flags.overwrite:
        raise RequestError(
            "a folder of clips goes on where it was stopped; remove it, or name another, to begin anew"
        )
    src, out = Path(flags.input), Path(flags.output)
    if out.resolve() == src.resolve():
        raise RequestError(f"output {out} is the input itself; choose another name")
    clips = find_folder_clips(src)
    with show_progress(flags.progress, label=out.name, json_to=sys.stdout) as on_progress:
        made = write_clips(clips, out, degradation, on_progress=on_progress)
    sys.stderr.write(f"{out}: {made} clips made, {len(clips) - made} were there\n")


def _check_image(path: Path, flags: DegradeFlags) -> None:
    refuse_existing(path, overwrite=flags.overwrite)
    if path.exists() and path.samefile(flags.input):
        raise RequestError(f"output {path} is the input itself; choose another name")


def _write(path: Path, recipe: DegradationRecipe) -> None:
    from tubelet.degrade.recipe import recipe_to_json

    with atomic_write(path) as part:
        part.write_text(recipe_to_json(recipe), encoding="utf-8")
    sys.stderr.write(f"{recipe}\nsteps written to {path}\n")
