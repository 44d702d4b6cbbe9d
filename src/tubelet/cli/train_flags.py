"""Flags of the training recipes: the defaults are those of a preset, a network or a YAML file."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from tubelet.cli.nested_flags import parse_nested
from tubelet.errors import RequestError

__all__ = [
    "parse_lrti",
    "parse_pfvsr",
    "parse_recipe",
    "parse_supervised",
    "parse_two_step",
    "take_flag",
]

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
_HELP_LRTI = """\
usage: tubelet train lrti --model NAME [--config FILE.yaml] [OPTIONS]
       tubelet train lrti --preset NAME [OPTIONS]

Train a recurrent network on long clips, at the cost of short ones.

A recurrent network restores each frame with states that have seen many others, but training on a
few frames never shows it such states. Truncated back-propagation does: the network runs over a long
clip without gradients, and then trains on short samples of the clip, which continue from its
states. The network itself does not change, and runs as before.

strategies:
  --strategy truncated            samples continue from the states of their clip (the default)
  --strategy plain                random samples without states, as `tubelet train supervised`
  --strategy plain-same-samples   the samples of truncated without states, as a control: truncated
                                  sees fewer clips than plain, because each serves several steps

samples:
  --clip 40      frames of a long clip: how far back its states reach
  --length 8     frames of a sample: time and memory grow with it
  --samples 5    samples of each long clip. Choose samples x length near clip: more samples cost
                 less time, but their states get older
  --starts all   also train the first and last two frames of the clips, where states are missing;
                 choose it if these frames of your videos matter

A step takes about 1 + clip / (3 x samples x length) times as long as plain training on `length`
frames (here 1.33), and about the same memory. The command prints both before it starts.

networks with states:
  {networks}

presets:
{presets}

`tubelet train lrti --model NAME --help` lists all options, with the defaults of the network.

examples:
  tubelet train lrti --model basicvsr --data clips/ --out runs/long --length 8 --samples 5 --clip 40
  tubelet train lrti --preset small --data clips/ --evaluate held-out/
  tubelet train lrti --preset psrt-tb --data REDS/train --init psrt.pth --loop.device cuda
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
_HELP_PFVSR = """\
Adapters turn an image model into a video model: a few trainable layers in each of its blocks, and
its own attention, which stays frozen, along time. Until they are trained, the result is that of the
image model. A file of adapters has a few megabytes, and works with the image model that it was
trained with: keep one for each kind of footage.

  --image-model NAME    id of `tubelet models`, or checkpoint: SwinIR, HAT, DAT, RRDBNet, EDSR,
                        MSRResNet or SRVGGNetCompact
  --degradation NAME    that of your footage, best the one that the image model was trained with
  --network.temporal    what a frame sees of the others: t-msa, trajectory (both for transformers),
                        neighbors (for convolutional networks) or none

presets (the default is small-dat):
{presets}

examples:
  tubelet train pfvsr --image-model dat-light-x4 --data clips/ --out runs/street
  tubelet train pfvsr --image-model my-swinir.pth --preset small-swinir --data clips/
  tubelet upscale in.mp4 out.mp4 --model dat-light-x4 --adapter runs/street/model.safetensors

All options, with the defaults of the preset:

"""


def parse_recipe(name: str, config_class: type[Any], args: Sequence[str]) -> Any:
    """Parse the flags of a recipe; the defaults are those of the settings class or of --config."""
    from tubelet.recipes.configs import read_config

    path, args = take_flag(args, "--config", "the name of a YAML file")
    default = None
    if path is not None:
        default = read_config(Path(path), config_class)
    return parse_nested(config_class, args, verb=f"train {name}", default=default)


def parse_supervised(args: Sequence[str]) -> Any:
    """Parse the flags of `supervised`; the defaults are those of the network's recipe.

    Returns:
        The configuration, or None after printing the list of networks.
    """
    from tubelet.recipes.configs import read_config, read_entry
    from tubelet.recipes.published import find_recipe
    from tubelet.recipes.supervised import configure

    path, args = take_flag(args, "--config", "the name of a YAML file")
    model, args = take_flag(args, "--model", "the name of a network")
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


def parse_lrti(args: Sequence[str]) -> Any:
    """Parse the flags of `lrti`; the defaults are those of a preset or of the network's recipe.

    Returns:
        The configuration, or None after printing the list of networks and presets.
    """
    from tubelet.recipes.configs import read_config, read_entry
    from tubelet.recipes.lrti import configure
    from tubelet.recipes.lrti_presets import Strategy

    path, args = take_flag(args, "--config", "the name of a YAML file")
    model, args = take_flag(args, "--model", "the name of a network")
    preset, args = take_flag(args, "--preset", "the name of a preset")
    strategy, args = take_flag(args, "--strategy", ", ".join(get_args(Strategy)))
    # The file of a run has its network.
    if path is not None:
        if preset is not None:
            raise _config_and_preset(path, preset)
        model = model or read_entry(Path(path), "model")
    if model is None and preset is None:
        if not _wants_help(args):
            raise RequestError(
                "no network is given; use --model NAME or --preset NAME "
                "(`tubelet train lrti --help` lists the names)"
            )
        _print_long_clip_help()
        return None

    default = configure(model, preset=preset)
    if path is not None:
        default = read_config(Path(path), type(default), default=default)
    # Here, and not among the other flags, an unknown strategy is an error of one line.
    if strategy is not None:
        default = replace(default, strategy=strategy)
    return parse_nested(type(default), args, verb="train lrti", default=default)


def _print_long_clip_help() -> None:
    from tubelet.recipes.lrti_presets import PRESETS
    from tubelet.recipes.lrti_settings import recurrent_names

    rows: list[str] = []
    for name, preset in PRESETS.items():
        samples = f"{preset.samples} samples of {preset.length} frames, clips of {preset.clip}"
        if preset.strategy == "plain":
            samples = f"plain training on {preset.length} frames"
        rows.append(f"  {name:<16} {preset.summary}: {samples}")
    networks = textwrap.fill(", ".join(recurrent_names()), 98, subsequent_indent="  ")
    text = _HELP_LRTI.format(networks=networks, presets="\n".join(rows))
    sys.stdout.write(text)


def parse_two_step(args: Sequence[str]) -> Any:
    """Parse the flags of `two-step`; the defaults are those of a preset."""
    from tubelet.recipes.configs import read_config
    from tubelet.recipes.two_step import PRESETS, TwoStepTraining, configure

    path, args = take_flag(args, "--config", "the name of a YAML file")
    preset, args = take_flag(args, "--preset", "paper or small")
    scale, args = take_flag(args, "--scale", "2 or 4")
    preset_name = preset or "small"
    if preset_name not in PRESETS:
        raise RequestError(f"unknown preset {preset_name!r}; there are: {', '.join(PRESETS)}")
    if preset is not None and path is not None:
        raise _config_and_preset(path, preset)

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


def parse_pfvsr(args: Sequence[str]) -> Any:
    """Parse the flags of `pfvsr`; the defaults are those of a preset."""
    from tubelet.recipes.configs import read_config
    from tubelet.recipes.pfvsr import PRESETS, PFVSRTraining, configure

    path, args = take_flag(args, "--config", "the name of a YAML file")
    preset, args = take_flag(args, "--preset", ", ".join(PRESETS))
    if preset is not None and path is not None:
        raise _config_and_preset(path, preset)
    # The preset for weights that come by pip.
    default = configure(preset or "small-dat")
    if path is not None:
        default = read_config(Path(path), PFVSRTraining, default=default)
    if _wants_help(args):
        rows: list[str] = []
        for name, settings in PRESETS.items():
            crops = settings.crops
            samples = f"{crops.batch} samples of {crops.frames} frames, {crops.patch_px} px"
            rows.append(f"  {name:<14} {settings.loop.steps} steps of {samples}")
        sys.stdout.write(_HELP_PFVSR.format(presets="\n".join(rows)))
    return parse_nested(PFVSRTraining, args, verb="train pfvsr", default=default)


def _config_and_preset(path: str, preset: str) -> RequestError:
    return RequestError(
        f"{path} sets everything that --preset {preset} would set; leave one of them out"
    )


def _has_flag(args: Sequence[str], flag: str) -> bool:
    """Return whether a flag is given, as `--loop.steps 5` or `--loop.steps=5`."""
    for arg in args:
        name, _, _ = arg.partition("=")
        if name.replace("_", "-") == flag:
            return True
    return False


def _wants_help(args: Sequence[str]) -> bool:
    return "-h" in args or "--help" in args


def take_flag(args: Sequence[str], flag: str, expected: str) -> tuple[str | None, list[str]]:
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
