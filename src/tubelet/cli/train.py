"""`tubelet train RECIPE`: the training procedures, their settings as flags or as a YAML file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tubelet.errors import RequestError

if TYPE_CHECKING:
    from tubelet.recipes.online import OnlineConfig

__all__ = ["main"]

_HELP = """usage: tubelet train RECIPE [--config FILE.yaml] [OPTIONS]

recipes:
  online   FastVSR, the compact recurrent network of the embedded models

`tubelet train online --help` lists the options. A run that was stopped goes on where it was when the same command
is given again. --config reads the options from a file, flags after it override them; the run writes its own
config.yaml beside its log, which --config reads again.

example:
  tubelet train online --data clips/ --out runs/mine --evaluate held-out/ --loop.steps 20000
  tubelet upscale old.mp4 new.mp4 --model runs/mine/model.safetensors
"""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0 if args else 2
    if args[0] != "online":
        raise RequestError(f"no recipe {args[0]!r}; there is: online")
    from tubelet.recipes import online
    from tubelet.recipes.configs import write_config

    config = _parse(args[1:])
    config.out.mkdir(parents=True, exist_ok=True)
    if not (config.out / "state.pt").exists():  # a run that goes on, or is refused, keeps its own
        write_config(config.out / "config.yaml", config)
    path = online.main(config, on_log=_Report(config.loop.steps))
    print(f"wrote {path}; use it with: tubelet upscale IN OUT --model {path}")
    return 0


def _parse(args: Sequence[str]) -> OnlineConfig:
    from tubelet.recipes.configs import read_config
    from tubelet.recipes.online import OnlineConfig

    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in args:
        return tyro.cli(OnlineConfig, args=args, prog="tubelet train online")
    place = args.index("--config")
    if place + 1 == len(args):
        raise RequestError("--config needs the name of a YAML file")
    default = read_config(Path(args[place + 1]), OnlineConfig)
    return tyro.cli(OnlineConfig, args=args[:place] + args[place + 2 :], default=default, prog="tubelet train online")


class _Report:
    """Prints a line for every log record: progress with the time left, or scores."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def __call__(self, record: dict[str, Any]) -> None:
        step = f"step {record['step']}/{self._steps}"
        if "loss" in record:
            left = time.strftime("%H:%M:%S", time.gmtime(record["eta_s"]))
            speed = f"{record['s_per_step']:.2f} s/step"
            print(f"{step}  loss {record['loss']:.5f}  lr {record['lr']:.1e}  {speed}  {left} left", flush=True)
        else:
            scores = "  ".join(f"{name} {value:.3f}" for name, value in record.items() if name != "step")
            print(f"{step}  {scores}", flush=True)
