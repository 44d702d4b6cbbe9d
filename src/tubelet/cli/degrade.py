"""`tubelet degrade`: make the low-quality version of a video, an image, or a folder of clips."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
_METAVARS = {
    "input": "INPUT",
    "output": "OUTPUT",
    "preset": "NAME",
    "scale": "N",
    "seed": "N",
    "recipe": "FILE",
}
_EXAMPLES = """\
examples:
  tubelet degrade sharp.mp4 small.mkv --preset bi
  tubelet degrade sharp.mp4 worn.mkv --preset real --seed 3 --recipe worn.json
  tubelet degrade clips/ clips-bd/ --preset bd --scale 4
"""

InputKind = Literal["image", "frames", "video", "clips"]


@dataclass(frozen=True, kw_only=True)
class DegradeFlags:
    """Make the low-quality version of a video, an image, a folder of frames or a folder of clips.

    A folder of clips that was stopped resumes when the same command is run again.
    """

    input: str
    """Video file, image, folder of frames, numbered images such as frames/%05d.png, or folder of
    clips."""
    output: str
    """Video file (written without loss) or folder of PNGs for a video or frames, .png file for an
    image, folder for a folder of clips. It appears under this name only when it is complete."""
    preset: str | None = None
    """Degradation: bi, bi-u8, bd, bd-b or bd-c as in benchmarks; real or second-order for random
    real-world degradation."""
    scale: int | None = None
    """Downscaling factor. Frames are first cropped to a multiple of it. Default: 4."""
    seed: int | None = None
    """Seed of the random presets real and second-order; in a folder, combined with the name of
    each clip. Default: 0."""
    recipe: Path | None = None
    """JSON file of the random degradation steps: replayed if the file exists, otherwise written."""
    overwrite: bool = False
    """Replace the output if it exists; not for a folder of clips."""
    progress: ProgressStyle = "auto"
    """auto: a bar on a terminal, otherwise a line every ten seconds. json: one event per line, on
    standard output."""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    command = flags_from(DegradeFlags, aliases=_ALIASES, metavars=_METAVARS)
    flags: DegradeFlags = parse(command, args, verb="degrade", examples=_EXAMPLES)
    with loading():
        # This is the first call that imports torch.
        kind = _input_kind(flags.input)
    degradation = _find_degradation(flags, kind)
    if kind == "clips":
        _degrade_clips(flags, degradation)
    elif kind == "image":
        _degrade_image(flags, degradation)
    else:
        _degrade_video(flags, degradation)
    if flags.recipe is not None and degradation.recipe is not None and not flags.recipe.exists():
        _write_recipe(flags.recipe, degradation.recipe)
    return 0


def _input_kind(source: str) -> InputKind:
    from tubelet.data.datasets import count_frames, find_folder_clips

    path = Path(source)
    num_frames = count_frames(path)
    if path.is_dir() and not num_frames:
        # Raises an error that describes the problem if the folder has no clips either.
        find_folder_clips(path)
        return "clips"
    is_pattern = not path.exists() and "%" in path.name
    if path.is_dir() or is_pattern:
        return "frames"
    return "image" if num_frames else "video"


def _find_degradation(flags: DegradeFlags, kind: InputKind) -> Degradation:
    """Read the degradation from an existing recipe, or make it from the other flags."""
    from tubelet.data.copies import Degradation
    from tubelet.degrade import PRESETS, RANDOM_PRESETS, draw_recipe

    if flags.recipe is not None and flags.recipe.exists():
        return _replayed(flags, flags.recipe)
    if flags.preset is None:
        raise RequestError(f"give --preset, one of {', '.join(PRESETS)}")
    scale = 4 if flags.scale is None else flags.scale
    seed = flags.seed or 0
    # `Degradation` refuses an unknown preset.
    preset: Any = flags.preset
    degradation = Degradation(preset=preset, scale=scale, seed=seed)
    if flags.recipe is None:
        return degradation

    if flags.preset not in RANDOM_PRESETS:
        raise RequestError(
            f"--recipe {flags.recipe}: {flags.preset} has no random steps; "
            f"leave --recipe out, or use {' or '.join(RANDOM_PRESETS)}"
        )
    if kind == "clips":
        raise RequestError(
            "--recipe holds the steps of one clip, but each clip of a folder has different ones; "
            "give a single clip as INPUT"
        )
    if not flags.recipe.parent.is_dir():
        raise RequestError(f"the folder {flags.recipe.parent} does not exist; create it first")
    recipe = draw_recipe(preset, scale=scale, seed=seed)
    return dataclasses.replace(degradation, recipe=recipe)


def _replayed(flags: DegradeFlags, path: Path) -> Degradation:
    """Read the degradation from a recipe, which must agree with the other flags."""
    from tubelet.data.copies import Degradation
    from tubelet.degrade.recipe import recipe_from_json

    try:
        recipe = recipe_from_json(path.read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be replayed: {error}") from error
    for name in ("preset", "scale", "seed"):
        flag_value = getattr(flags, name)
        recipe_value = getattr(recipe, name)
        if flag_value is not None and flag_value != recipe_value:
            raise RequestError(
                f"{path} exists and has {name} {recipe_value}, not {flag_value}; "
                f"leave --{name} out, or give the name of a new file"
            )
    sys.stderr.write(f"{recipe}\nsteps read from {path}\n")
    preset: Any = recipe.preset
    return Degradation(preset=preset, scale=recipe.scale, seed=recipe.seed, recipe=recipe)


def _degrade_image(flags: DegradeFlags, degradation: Degradation) -> None:
    from tubelet.data.copies import write_image

    output = Path(flags.output)
    if output.suffix.lower() != ".png":
        raise RequestError(
            f"the output of an image must be a .png file, not {output.name!r}; rename the output"
        )
    refuse_existing(output, overwrite=flags.overwrite)
    if output.exists() and output.samefile(flags.input):
        raise RequestError(f"output {output} is the input itself; choose another name")
    write_image(Path(flags.input), output, degradation)


def _degrade_video(flags: DegradeFlags, degradation: Degradation) -> None:
    """Degrade a video or frames."""
    from tubelet.data.copies import lossless, write_images, write_video
    from tubelet.video.destination import check_output, destination_kind

    output = Path(flags.output)
    target = destination_kind(flags.output)
    if target in ("pipe", "pattern"):
        raise RequestError(
            f"the output must be a video file or a folder of images, not {flags.output!r}"
        )
    check_output(flags.output, source=flags.input, overwrite=flags.overwrite)
    with show_progress(flags.progress, label=output.name, json_to=sys.stdout) as on_progress:
        if target == "folder":
            write_images(flags.input, output, degradation, on_progress=on_progress)
            return
        notes = write_video(
            flags.input,
            output,
            degradation,
            encode=lossless(output),
            overwrite=flags.overwrite,
            on_progress=on_progress,
        )
    for note in notes:
        sys.stderr.write(f"note: {note}\n")


def _degrade_clips(flags: DegradeFlags, degradation: Degradation) -> None:
    from tubelet.data.copies import write_clips
    from tubelet.data.datasets import find_folder_clips

    if flags.overwrite:
        raise RequestError(
            "--overwrite is not for a folder of clips, which is resumed; "
            "remove the output folder, or choose another one, to start again"
        )
    source = Path(flags.input)
    output = Path(flags.output)
    if output.resolve() == source.resolve():
        raise RequestError(f"output {output} is the input itself; choose another name")
    clips = find_folder_clips(source)
    with show_progress(flags.progress, label=output.name, json_to=sys.stdout) as on_progress:
        num_made = write_clips(clips, output, degradation, on_progress=on_progress)
    num_skipped = len(clips) - num_made
    sys.stderr.write(f"{output}: {num_made} clips written, {num_skipped} existed already\n")


def _write_recipe(path: Path, recipe: DegradationRecipe) -> None:
    from tubelet.degrade.recipe import recipe_to_json

    with atomic_write(path) as part:
        part.write_text(recipe_to_json(recipe), encoding="utf-8")
    sys.stderr.write(f"{recipe}\nsteps written to {path}\n")
