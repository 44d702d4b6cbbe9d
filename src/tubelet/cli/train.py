"""`tubelet train RECIPE`: train a model, with settings from flags or from a YAML file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from tubelet.cli.progress import ProgressStyle, error_events, json_line, show_progress
from tubelet.cli.train_flags import (
    parse_lrti,
    parse_pfvsr,
    parse_recipe,
    parse_supervised,
    parse_two_step,
    take_flag,
)
from tubelet.errors import RequestError, suggest

__all__ = ["main"]

_HELP = """\
usage: tubelet train RECIPE [--config FILE.yaml] [--progress STYLE] [OPTIONS]

Train a model. A run that was stopped resumes when the same command is run again.

recipes:
  online       FastVSR, the compact recurrent network of the embedded models
  supervised   any other network, with its published recipe: --model NAME
  lrti         a recurrent network on long clips, at the cost of short ones: --model NAME
  spynet       SpyNet, the optical flow of the BasicVSR family, from still images
  two-step     a network that adds temporal information to any image model: --image-model ID
  pfvsr        adapters that turn a frozen image model into a video model: --image-model ID

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
        config = parse_recipe(name, recipe.config, recipe_args)
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
                parse=parse_supervised,
            )
        case "lrti":
            from tubelet.recipes import lrti

            return _Recipe(
                config=lrti.LRTITraining,
                run=lrti.main,
                describe=lrti.describe,
                parse=parse_lrti,
            )
        case "two-step":
            from tubelet.recipes import two_step

            return _Recipe(
                config=two_step.TwoStepTraining,
                run=two_step.main,
                describe=two_step.describe,
                steps=_num_steps_unless_epochs,
                parse=parse_two_step,
            )
        case "pfvsr":
            from tubelet.recipes import pfvsr

            return _Recipe(
                config=pfvsr.PFVSRTraining,
                run=pfvsr.main,
                describe=pfvsr.describe,
                parse=parse_pfvsr,
            )
        case _:
            raise RequestError(
                f"unknown recipe {name!r}; there are: online, supervised, lrti, spynet, two-step, "
                "pfvsr"
            )


def _num_steps_unless_epochs(config: Any) -> int | None:
    # With epochs, the number of steps depends on the data.
    if config.epochs is not None:
        return None
    return config.loop.steps


def _take_style(args: Sequence[str]) -> tuple[ProgressStyle, list[str]]:
    """Take --progress out of the arguments."""
    styles: tuple[ProgressStyle, ...] = get_args(ProgressStyle)
    value, remaining = take_flag(args, "--progress", ", ".join(styles))
    if not value:
        return "auto", remaining
    for style in styles:
        if style == value:
            return style, remaining
    suggestion = suggest(value, styles)
    raise RequestError(f"unknown value {value!r} of --progress; {suggestion}")


class _LogPrinter:
    """Prints a line for every log record: progress with the remaining time, a note, or scores."""

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
        if "note" in record:
            print(record["note"], flush=True)
            return
        # A record without a loss holds the scores of an evaluation.
        scores = dict(record)
        del scores["step"]
        line = step
        for name, value in scores.items():
            line += f"  {name} {value:.3f}"
        print(line, flush=True)
