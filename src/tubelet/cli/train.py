"""`tubelet train RECIPE`: the training procedures, their settings as flags or as a YAML file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import tyro

from tubelet.cli.progress import ProgressStyle, error_events, json_line, show_progress
from tubelet.errors import RequestError, suggest
from tubelet.field_names import current_path

__all__ = ["main"]

_HELP = """usage: tubelet train RECIPE [--config FILE.yaml] [OPTIONS]

recipes:
  online       FastVSR, the compact recurrent network of the embedded models
  supervised   any network of the zoo, with its published recipe: --model NAME
  spynet       SpyNet, the optical flow of the BasicVSR family, on photographs that move
  two-step     three networks that lift any image model by what its neighbors show: --image-model ID

`tubelet train RECIPE --help` lists the options. A run that was stopped goes on where it was when the same command
is given again. --config reads the options from a file, flags after it override them; the run writes its own
config.yaml beside its log, which --config reads again. --progress auto, bar, json or none: a bar on a terminal beside
the lines of the log, or an event per line on the standard output.

example:
  tubelet train online --data clips/ --out runs/mine --evaluate held-out/ --loop.steps 20000
  tubelet upscale old.mp4 new.mp4 --model runs/mine/model.safetensors
"""
_HELP_SUPERVISED = """usage: tubelet train supervised --model NAME [--config FILE.yaml] [OPTIONS]

networks with a recipe of their own, as published:
{recipes}

networks that one plain recipe trains:
  {others}

`tubelet train supervised --model NAME --help` lists the options, with the recipe's numbers as defaults.

example:
  tubelet train supervised --model edvr-m --data clips/ --out runs/edvr --crops.batch 8 --loop.device cuda
"""
_HELP_TWO_STEP = """Two-step lifts an image model that you have: the model enlarges every frame by itself and stays as
it is; what is trained here restores each result, told by the frames before and after. The image model runs once on
every crop, and what it made is kept. A tenth of the videos validates, a tenth tests: give ten or more.

  tubelet train two-step --data clips/ --image-model hat.pth --scale 2 --preset small --out runs/two-step
  tubelet train two-step --data clips/ --image-model runs/fsrcnn/model.safetensors --scale 4 --network.channels 16
  tubelet ablate two-step --data clips/ --image-model hat.pth           which loss is best?

  --image-model NAME    an id of `tubelet models`, or a checkpoint, of a network of single frames
  --preset small        a network of base width 8, minutes on a laptop (the default)
  --preset paper        as published: base width 64, 64 px, batch 64, 10 epochs; for a GPU
  --scale 2 | 4         that of the image model

All options, with the defaults of the preset:

"""


class _Recipe(NamedTuple):
    config: type[Any]  # has `out` and `loop`
    run: Callable[..., Path]
    use: str  # of the result; {} is its path
    describe: Callable[[Any], list[str]] = lambda config: []  # what to print before it begins
    steps: Callable[[Any], int | None] = lambda config: (
        config.loop.steps
    )  # None where only the data tells
    parse: Callable[[Sequence[str]], Any] | None = (
        None  # where it is not by the configuration alone
    )


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0 if args else 2
    recipe = _find_recipe(args[0])
    from tubelet.recipes.configs import write_config

    style, rest = _take_style(args[1:])
    config = recipe.parse(rest) if recipe.parse else _parse(args[0], recipe.config, rest)
    if config is None:
        return 0
    from tubelet.restore.device import resolve_device

    config = replace(
        config, loop=replace(config.loop, device=str(resolve_device(config.loop.device)))
    )
    if style != "json":
        for line in recipe.describe(config):
            print(line)
    config.out.mkdir(parents=True, exist_ok=True)
    if not any(
        (config.out / name).exists() for name in ("state.pt", "run.json")
    ):  # of a run that is there
        write_config(config.out / "config.yaml", config)
    _run(recipe, config, style)
    return 0


def _run(recipe: _Recipe, config: Any, style: ProgressStyle) -> None:
    """Train, with a bar on a terminal, a line for every log record, or events."""
    if style == "json":
        json_line(sys.stdout, "start", output=str(config.out))
        with (
            error_events(sys.stdout),
            show_progress(style, label=config.out.name, json_to=sys.stdout) as on_progress,
        ):
            path = recipe.run(config, on_log=_write_record, on_progress=on_progress)
        json_line(sys.stdout, "end", output=str(path))
        return
    if style == "auto" and not sys.stderr.isatty():
        style = "none"  # the lines of the log say the same
    with show_progress(style, label=config.out.name, json_to=sys.stdout) as on_progress:
        path = recipe.run(config, on_log=_Report(recipe.steps(config)), on_progress=on_progress)
    print(f"wrote {path}; {recipe.use.format(path)}")


def _write_record(record: dict[str, Any]) -> None:
    json_line(sys.stdout, "log", **record)


def _find_recipe(name: str) -> _Recipe:
    if name == "online":
        from tubelet.recipes import online

        return _Recipe(
            online.OnlineConfig, online.main, "use it with: tubelet upscale IN OUT --model {}"
        )
    if name == "spynet":
        from tubelet.recipes import spynet

        return _Recipe(
            spynet.SpynetConfig,
            spynet.main,
            "train finer levels from it with: --levels N --init {}",
        )
    if name == "supervised":
        from tubelet.recipes import supervised

        use = "use it with: tubelet upscale IN OUT --model {}"
        return _Recipe(
            supervised.SupervisedConfig,
            supervised.main,
            use,
            supervised.describe,
            parse=_parse_supervised,
        )
    if name == "two-step":
        from tubelet.recipes import two_step

        return _Recipe(
            two_step.TwoStepTraining,
            two_step.main,
            "use it with: tubelet upscale IN OUT --model {}",
            two_step.describe,
            steps=_steps_unless_epochs,
            parse=_parse_two_step,
        )
    raise RequestError(f"no recipe {name!r}; there are: online, supervised, spynet, two-step")


def _steps_unless_epochs(config: Any) -> int | None:
    return config.loop.steps if config.epochs is None else None


def _parse(name: str, kind: type[Any], args: Sequence[str]) -> Any:
    from tubelet.recipes.configs import read_config

    prog = f"tubelet train {name}"
    path, args = _take(args, "--config", "the name of a YAML file")
    if path is None:
        return tyro.cli(kind, args=_current_flags(kind, args), prog=prog)
    default = read_config(Path(path), kind)
    return tyro.cli(kind, args=_current_flags(kind, args), default=default, prog=prog)


def _parse_supervised(args: Sequence[str]) -> Any:
    """Read the options of a network, whose defaults its recipe gives; None where only a list was asked for."""
    from tubelet.recipes.configs import read_config, read_entry
    from tubelet.recipes.published import RECIPES, find_recipe, list_names
    from tubelet.recipes.supervised import configure

    path, rest = _take(args, "--config", "the name of a YAML file")
    model, rest = _take(rest, "--model", "the name of a network")
    written = None if path is None else read_entry(Path(path), "model")
    if model is None and written is None:
        own = [recipe.name for recipe in RECIPES]
        if not {"-h", "--help"} & set(rest):
            raise RequestError(
                "which network? --model NAME; `tubelet train supervised --help` lists them"
            )
        recipes = "\n".join(f"  {recipe.name:<16} {recipe.source}" for recipe in RECIPES)
        others = ", ".join(name for name in list_names() if name not in own)
        sys.stdout.write(_HELP_SUPERVISED.format(recipes=recipes, others=others))
        return None
    default = configure(str(model or written))
    if written is not None and find_recipe(str(written)).name != default.model:
        raise RequestError(
            f"{path} is for model {written}, not {model}; leave --model out, or --config"
        )
    if path is not None:
        default = read_config(Path(path), type(default), default=default)
    prog = f"tubelet train supervised --model {default.model}"
    return tyro.cli(
        type(default), args=_current_flags(type(default), rest), default=default, prog=prog
    )


def _parse_two_step(args: Sequence[str]) -> Any:
    """Read the options of two-step, whose defaults a preset gives."""
    from tubelet.recipes.configs import read_config
    from tubelet.recipes.two_step import PRESETS, TwoStepTraining, configure

    path, rest = _take(args, "--config", "the name of a YAML file")
    preset, rest = _take(rest, "--preset", "paper or small")
    scale, rest = _take(rest, "--scale", "2 or 4")
    if (name := preset or "small") not in PRESETS:
        raise RequestError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    if preset is not None and path is not None:
        raise RequestError(
            f"{path} has all that --preset {preset} would set; leave one of both out"
        )
    default = configure(name)
    if path is not None:
        default = read_config(Path(path), TwoStepTraining, default=default)
    if {"-h", "--help"} & set(rest):
        sys.stdout.write(_HELP_TWO_STEP)
    given = ["--network.scale", scale] if scale is not None else []
    rest = _current_flags(TwoStepTraining, rest)
    config = tyro.cli(
        TwoStepTraining, args=[*given, *rest], default=default, prog="tubelet train two-step"
    )
    named = {arg.split("=")[0].replace("_", "-") for arg in rest}
    if (
        "--loop.steps" in named and "--epochs" not in named
    ):  # else the preset's epochs would say how long
        config = replace(config, epochs=None)
    return config


def _current_flags(kind: type[Any], args: Sequence[str]) -> list[str]:
    """Rename the flags that are other names of settings: `--loop.optimiser.kind`, `--network.num-feat`."""
    renamed: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag.startswith("--") and flag != "--":
            path = current_path(kind, flag[2:].replace("-", "_"))
            flag = "--" + path.replace("_", "-")
        renamed.append(flag + equals + value)
    return renamed


def _take_style(args: Sequence[str]) -> tuple[ProgressStyle, list[str]]:
    """Take --progress out of the arguments."""
    known: tuple[ProgressStyle, ...] = get_args(ProgressStyle)
    value, rest = _take(args, "--progress", ", ".join(known))
    for style in known:
        if style == (value or "auto"):
            return style, rest
    raise RequestError(f"no way to show progress is called {value!r}; {suggest(str(value), known)}")


def _take(args: Sequence[str], flag: str, what: str) -> tuple[str | None, list[str]]:
    """Take a flag and its value out of the arguments."""
    rest = [
        part
        for arg in args
        for part in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])
    ]
    if flag not in rest:
        return None, rest
    place = rest.index(flag)
    if place + 1 == len(rest):
        raise RequestError(f"{flag} needs {what}")
    return rest[place + 1], rest[:place] + rest[place + 2 :]


class _Report:
    """Prints a line for every log record: progress with the time left, or scores."""

    def __init__(self, steps: int | None) -> None:
        self._of = f"/{steps}" if steps is not None else ""

    def __call__(self, record: dict[str, Any]) -> None:
        step = f"step {record['step']}{self._of}"
        if "loss" in record:
            left = time.strftime("%H:%M:%S", time.gmtime(record["eta_s"]))
            speed = f"{record['s_per_step']:.2f} s/step"
            print(
                f"{step}  loss {record['loss']:.5f}  lr {record['lr']:.1e}  {speed}  {left} left",
                flush=True,
            )
        else:
            scores = "  ".join(
                f"{name} {value:.3f}" for name, value in record.items() if name != "step"
            )
            print(f"{step}  {scores}", flush=True)
