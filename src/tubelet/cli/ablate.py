"""`tubelet ablate STUDY`: train the variants of a method several times, and judge what its paper claims."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tubelet.cli.flags import flags_from, parse, pick
from tubelet.cli.progress import show_progress
from tubelet.cli.startup import loading
from tubelet.errors import RequestError

if TYPE_CHECKING:
    from tubelet.recipes.two_step_ablation import Run

__all__ = ["main"]

_METAVARS = {
    "data": "FOLDER",
    "image_model": "NAME",
    "out": "FOLDER",
    "cache": "FOLDER",
    "seeds": "N",
    "steps": "N",
    "base": "N",
    "device": "NAME",
}
_EXAMPLE = """
studies:
  two-step    frozen image model alone, MSE, MAE, MAE + SSIM (α 0, 0.4, 0.8), encoder loss (α 0, 0.04, 0.08)

A study that was stopped goes on when the same command is given again; finished runs are not run again.

example:
  tubelet ablate two-step --preset small --seeds 3 --scale 4 --data clips/ --image-model fsrcnn.pth
"""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    wants_help = not {"-h", "--help"}.isdisjoint(args)
    if not wants_help and args[:1] != ["two-step"]:
        raise RequestError(f"no study {' '.join(args[:1])!r}; there is: two-step")
    with loading():
        from tubelet.recipes.two_step_ablation import TwoStepAblation, run
        from tubelet.restore.device import resolve_device
    flags = flags_from(TwoStepAblation, metavars=_METAVARS)
    rest = args[1:] if args[:1] == ["two-step"] else args
    try:
        command = parse(flags, rest, verb="ablate two-step")
    except SystemExit:
        if wants_help:
            sys.stdout.write(_EXAMPLE)
        raise
    ablation = pick(command, TwoStepAblation)
    ablation = replace(ablation, device=str(resolve_device(ablation.device)))
    with show_progress("auto", label="two-step", json_to=sys.stdout) as on_progress:
        _, verdicts = run(ablation, on_run=_report, on_progress=on_progress)
    for verdict in verdicts:
        print(f"{verdict.outcome:15} {verdict.claim.text}: {verdict.mean_db:+.2f} dB")
    print(f"wrote {ablation.out / 'report.md'} and {ablation.out / 'results.csv'}")
    return 0


def _report(run: Run) -> None:
    scores = f"{run.psnr_y:.3f} dB, {run.psnr_y - run.frozen_psnr_y:+.3f} over the image model"
    print(f"{run.variant.name}, seed {run.seed}: {scores}", flush=True)
