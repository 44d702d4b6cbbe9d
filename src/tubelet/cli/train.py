"""`tubelet train RECIPE`: train a model, with settings from flags or from a YAML file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from tubelet.cli.nested_flags import parse_nested
from tubelet.cli.progress import ProgressStyle, error_events, json_line, show_progress
from tubelet.errors import RequestError, suggest

__all__ = ["main"]

_HELP = """\
usage: tubelet train RECIPE [--config FILE.yaml] [--progress STYLE] [OPTIONS]

Train a model. A run that was stopped resumes when the same command is run again.

recipes:
  online       FastVSR, the compact recurrent network of the embedded models
  supervised   any other network, with its published recipe: --model NAME
  spynet       SpyNet, the optical flow of the BasicVSR family, from still images
  two-step     a network that adds temporal information to any image model: --image-model ID

options of every recipe:
  --config FILE.yaml   read the options from a file; flags override them. A run writes its options
                       to config.yaml in its folder.
  --progress STYLE     auto, bar, json or none. auto: a bar on a terminal, below the log lines.
                       json: one event per line on standard output. (default: auto)

`tubelet train RECIPE --help` lists all options of a recipe.

examples:
  tubelet train online --data clips/ --out runs/mine --evaluate held-out/ --loop.steps 20000
  tubelet train online --config runs/mine/config.yaml --out runs/longer --loop.steps 40000
  tubelet upscale old.mp4 new.mp4 --model runs/mine/model.safetensors
"""
_HELP_SUPERVISED = """\
usage: tubelet train supervised --model NAME [--config FILE.yaml] [OPTIONS]

Train a network with its published recipe, or with a general one.

networks with a published recipe:
{recipes}

networks with the general recipe:
  {others}

`tubelet train supervised --model NAME --help` lists the options, with the defaults of the recipe.

example:
  tubelet train supervised --model edvr-m --data clips/ --out runs/edvr --loop.device cuda
"""
_HELP_TWO_STEP = """\
The two-step network adds temporal information to an existing image model. The image model, which
stays frozen, upscales every frame; the network restores each result with the help of the frames
before and after it. The image model runs once on every crop, and its results are stored.
A tenth of the videos is used for validation and a tenth for testing: give ten videos or more.

  --image-model NAME    id of `tubelet models`, or checkpoint, of a single-image network
  --preset small        8 channels, minutes on a laptop (the default)
  --preset paper        as published, for a GPU: 64 channels, 64 px, batch 64, 10 epochs
  --scale 2 | 4         scale of the image model

examples:
  tubelet train two-step --data clips/ --image-model hat.pth --scale 2 --out runs/two-step
  tubelet train two-step --data clips/ --image-model bicubic-x4 --scale 4 --network.channels 16
  tubelet ablate two-step --data clips/ --image-model hat.pth     compare the losses

All options, with the defaults of the preset:

"""

_UPSCALE_WITH_IT = "use it with: tubelet upscale IN OUT --model {}"
# Files that mark the folder of an existing run.
_RUN_FILES = ("state.pt", "run.json")


def _no_description(config: Any) -> list[str]:
    del config
    return []


def _num_steps(config: Any) -> int | None:
    return config.loop.steps


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """A training procedure.

    Attributes:
        config: Class of its settings, which have `out` and `loop`.
        run: Trains, and returns the path of the result.
        next_step: Command for the result; {} is a placeholder for its path.
        describe: Lists lines to print before the training.
        steps: Returns the number of steps; None if it depends on the data.
        parse: Parses the flags, if the settings class is not enough for that. Returns None if only
            help was requested.
    """

    config: type[Any]
    run: Callable[..., Path]
    next_step: str = _UPSCALE_WITH_IT
    describe: Callable[[Any], list[str]] = _no_description
    steps: Callable[[Any], int | None] = _num_steps
    parse: Callable[[Sequence[str]], Any] | None = None


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0 if args else RequestError.exit_code
    name = args[0]
    recipe = _find_recipe(name)
    style, recipe_args = _take_style(args[1:])
    if recipe.parse is not None:
        config = recipe.parse(recipe_args)
    else:
        config = _parse(name, recipe.config, recipe_args)
    if config is None:
        return 0

    from tubelet.recipes.configs import write_config
    from tubelet.restore.device import resolve_device

    device = str(resolve_device(config.loop.device))
    config = replace(config, loop=replace(config.loop, device=device))
    if style != "json":
        for line in recipe.describe(config):
            print(line)
    config.out.mkdir(parents=True, exist_ok=True)
    # An existing run keeps its settings file: the new settings may still be refused.
    run_files = [config.out / name for name in _RUN_FILES]
    is_new_run = not any(map(Path.exists, run_files))
    if is_new_run:
        write_config(config.out / "config.yaml", config)
    _run(recipe, config, style)
    return 0


def _run(recipe: _Recipe, config: Any, style: ProgressStyle) -> None:
    """Train, and show a bar on a terminal, a line for every log record, or events."""
    label = config.out.name
    if style == "json":
        json_line(sys.stdout, "start", output=str(config.out))
        with (
            error_events(sys.stdout),
            show_progress(style, label=label, json_to=sys.stdout) as on_progress,
        ):
            path = recipe.run(config, on_log=_write_record, on_progress=on_progress)
        json_line(sys.stdout, "end", output=str(path))
        return
    if style == "auto" and not sys.stderr.isatty():
        # Without a terminal, the log lines already show the progress.
        style = "none"
    with show_progress(style, label=label, json_to=sys.stdout) as on_progress:
        log = _LogPrinter(recipe.steps(config))
        path = recipe.run(config, on_log=log, on_progress=on_progress)
    print(f"wrote {path}; {recipe.next_step.format(path)}")


def _write_record(record: dict[str, Any]) -> None:
    json_line(sys.stdout, "log", **record)


def _find_recipe(name: str) -> _Recipe:
    """Import a recipe. Only one is imported, because some need seconds."""
    match name:
        case "online":
            from tubelet.recipes import online

            return _Recipe(config=online.OnlineConfig, run=online.main)
        case "spynet":
            from tubelet.recipes import spynet

            return _Recipe(
                config=spynet.SpynetConfig,
                run=spynet.main,
                next_step="train finer levels from it with: --levels N --init {}",
            )
        case "supervised":
            from tubelet.recipes import supervised

            return _Recipe(
                config=supervised.SupervisedConfig,
                run=supervised.main,
                describe=supervised.describe,
                parse=_parse_supervised,
            )
        case "two-step":
            from tubelet.recipes import two_step

            return _Recipe(
                config=two_step.TwoStepTraining,
                run=two_step.main,
                describe=two_step.describe,
                steps=_num_steps_unless_epochs,
                parse=_parse_two_step,
            )
        case _:
            raise RequestError(
                f"unknown recipe {name!r}; there are: online, supervised, spynet, two-step"
            )


def _num_steps_unless_epochs(config: Any) -> int | None:
    # With epochs, the number of steps depends on the data.
    if config.epochs is not None:
        return None
    return config.loop.steps


def _parse(name: str, config_class: type[Any], args: Sequence[str]) -> Any:
    """Parse the flags of a recipe; the defaults are those of the settings class or of --config."""
    from tubelet.recipes.configs import read_config

    path, args = _take_flag(args, "--config", "the name of a YAML file")
    default = None
    if path is not None:
        default = read_config(Path(path), config_class)
    return parse_nested(config_class, args, verb=f"train {name}", default=default)


def _parse_supervised(args: Sequence[str]) -> Any:
    """Parse the flags of `supervised`; the defaults are those of the network's recipe.

    Returns:
        The configuration, or None after printing the list of networks.
    """
    from tubelet.recipes.configs import read_config, read_entry
    from tubelet.recipes.published import find_recipe
    from tubelet.recipes.supervised import configure

    path, args = _take_flag(args, "--config", "the name of a YAML file")
    model, args = _take_flag(args, "--model", "the name of a network")
    file_model = None
    if path is not None:
        file_model = read_entry(Path(path), "model")
    if model is None and file_model is None:
        if not _wants_help(args):
            raise RequestError(
                "no network is given; use --model NAME "
                "(`tubelet train supervised --help` lists the names)"
            )
        _print_networks()
        return None

    # A model may be given twice, if both names are of the same recipe.
    default = configure(str(model or file_model))
    if file_model is not None and find_recipe(str(file_model)).name != default.model:
        raise RequestError(
            f"{path} is for model {file_model}, not {model}; leave out --model or --config"
        )
    if path is not None:
        default = read_config(Path(path), type(default), default=default)
    verb = f"train supervised --model {default.model}"
    return parse_nested(type(default), args, verb=verb, default=default)


def _print_networks() -> None:
    from tubelet.recipes.published import RECIPES, list_names

    # Every recipe has a name; `list_names` also has the architectures without a published recipe.
    others = list(list_names())
    rows: list[str] = []
    for recipe in RECIPES:
        rows.append(f"  {recipe.name:<16} {recipe.source}")
        if recipe.name in others:
            others.remove(recipe.name)
    text = _HELP_SUPERVISED.format(recipes="\n".join(rows), others=", ".join(others))
    sys.stdout.write(text)


def _parse_two_step(args: Sequence[str]) -> Any:
    """Parse the flags of `two-step`; the defaults are those of a preset."""
    from tubelet.recipes.configs import read_config
    from tubelet.recipes.two_step import PRESETS, TwoStepTraining, configure

    path, args = _take_flag(args, "--config", "the name of a YAML file")
    preset, args = _take_flag(args, "--preset", "paper or small")
    scale, args = _take_flag(args, "--scale", "2 or 4")
    preset_name = preset or "small"
    if preset_name not in PRESETS:
        raise RequestError(f"unknown preset {preset_name!r}; there are: {', '.join(PRESETS)}")
    if preset is not None and path is not None:
        raise RequestError(
            f"{path} sets everything that --preset {preset} would set; leave one of them out"
        )

    default = configure(preset_name)
    if path is not None:
        default = read_config(Path(path), TwoStepTraining, default=default)
    if _wants_help(args):
        sys.stdout.write(_HELP_TWO_STEP)
    if scale is not None:
        args = ["--network.scale", scale, *args]
    config = parse_nested(TwoStepTraining, args, verb="train two-step", default=default)

    # The epochs of the preset would otherwise take precedence over --loop.steps.
    if _has_flag(args, "--loop.steps") and not _has_flag(args, "--epochs"):
        config = replace(config, epochs=None)
    return config


def _has_flag(args: Sequence[str], flag: str) -> bool:
    """Return whether a flag is given, as `--loop.steps 5` or `--loop.steps=5`."""
    for arg in args:
        name, _, _ = arg.partition("=")
        if name.replace("_", "-") == flag:
            return True
    return False


def _wants_help(args: Sequence[str]) -> bool:
    return "-h" in args or "--help" in args


def _take_style(args: Sequence[str]) -> tuple[ProgressStyle, list[str]]:
    """Take --progress out of the arguments."""
    styles: tuple[ProgressStyle, ...] = get_args(ProgressStyle)
    value, remaining = _take_flag(args, "--progress", ", ".join(styles))
    if not value:
        return "auto", remaining
    for style in styles:
        if style == value:
            return style, remaining
    suggestion = suggest(value, styles)
    raise RequestError(f"unknown value {value!r} of --progress; {suggestion}")


def _take_flag(args: Sequence[str], flag: str, expected: str) -> tuple[str | None, list[str]]:
    """Take a flag and its value out of the arguments.

    Args:
        args: Arguments of the command.
        flag: Flag with a value: `--config FILE` or `--config=FILE`.
        expected: Description of the value, for the error.

    Returns:
        The value, None without the flag, and the remaining arguments.
    """
    remaining: list[str] = []
    for arg in args:
        if arg.startswith(f"{flag}="):
            remaining += arg.split("=", 1)
        else:
            remaining.append(arg)
    if flag not in remaining:
        return None, remaining
    position = remaining.index(flag)
    if position + 1 == len(remaining):
        raise RequestError(f"{flag} needs {expected}")
    value = remaining[position + 1]
    del remaining[position : position + 2]
    return value, remaining


class _LogPrinter:
    """Prints a line for every log record: progress with the remaining time, or scores."""

    def __init__(self, steps: int | None) -> None:
        self._total = "" if steps is None else f"/{steps}"

    def __call__(self, record: dict[str, Any]) -> None:
        step = f"step {record['step']}{self._total}"
        if "loss" in record:
            remaining = time.strftime("%H:%M:%S", time.gmtime(record["eta_s"]))
            loss = f"loss {record['loss']:.5f}"
            lr = f"lr {record['lr']:.1e}"
            speed = f"{record['s_per_step']:.2f} s/step"
            print(f"{step}  {loss}  {lr}  {speed}  {remaining} left", flush=True)
            return
        # A record without a loss holds the scores of an evaluation.
        scores = dict(record)
        del scores["step"]
        line = step
        for name, value in scores.items():
            line += f"  {name} {value:.3f}"
        print(line, flush=True)
