"""`tubelet ablate STUDY`: train the variants of a method, and test the claims of its paper."""

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
    "data": "FOLDER ...",
    "image_model": "NAME",
    "out": "FOLDER",
    "cache": "FOLDER",
    "seeds": "N",
    "steps": "N",
    "base": "N",
    "device": "NAME",
}
_EXAMPLES = """\
studies:
  two-step    frozen image model, and training with MSE, MAE, MAE + SSIM (α 0, 0.4, 0.8) and
              encoder loss (α 0, 0.04, 0.08)

Run the same command again to resume a study that was stopped; finished runs are not repeated.

example:
  tubelet ablate two-step --data clips/ --image-model fsrcnn.pth --scale 4 --seeds 3
"""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    wants_help = not {"-h", "--help"}.isdisjoint(args)
    study = args[0] if args else ""
    if study == "two-step":
        args = args[1:]
    elif not wants_help:
        raise RequestError(f"unknown study {study!r}; there is: two-step")
    with loading():
        from tubelet.recipes.two_step_ablation import TwoStepAblation, run
        from tubelet.restore.device import resolve_device

    # `--help` works without a study, since there is only one.
    flags = flags_from(TwoStepAblation, metavars=_METAVARS)
    command = parse(flags, args, verb="ablate two-step", examples=_EXAMPLES)
    ablation: TwoStepAblation = pick(command, TwoStepAblation)
    ablation = replace(ablation, device=str(resolve_device(ablation.device)))

    with show_progress("auto", label="two-step", json_to=sys.stdout) as on_progress:
        _, verdicts = run(ablation, on_run=_report, on_progress=on_progress)
    for verdict in verdicts:
        print(f"{verdict.outcome:15} {verdict.claim.text}: {verdict.mean_db:+.2f} dB")
    print(f"wrote {ablation.out / 'report.md'} and {ablation.out / 'results.csv'}")
    return 0


def _report(run: Run) -> None:
    """Print the scores of a finished run."""
    gain_db = run.psnr_y - run.frozen_psnr_y
    scores = f"{run.psnr_y:.3f} dB, {gain_db:+.3f} over the image model"
    print(f"{run.variant.name}, seed {run.seed}: {scores}", flush=True)
