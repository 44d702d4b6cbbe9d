"""`tubelet ablate STUDY`: train the variants of a method, and test the claims of its paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tubelet.cli.flags import flags_from, parse, pick
from tubelet.cli.progress import show_progress
from tubelet.cli.startup import loading
from tubelet.errors import RequestError, suggest

if TYPE_CHECKING:
    from tubelet.studies.lrti import FinishedRun
    from tubelet.studies.two_step import Run

__all__ = ["main"]

_STUDIES = ("two-step", "lrti")

_HELP = """\
usage: tubelet ablate STUDY [OPTIONS]

Train the variants of a method several times, and test the claims of its paper. Run the same command
again to resume a study that was stopped; finished runs are not repeated.

studies:
  two-step    frozen image model, and training with MSE, MAE, MAE + SSIM (α 0, 0.4, 0.8) and
              encoder loss (α 0, 0.04, 0.08): --image-model NAME
  lrti        recurrent networks trained with and without the states of long clips, and the blocks
              of LRTI-VSR: --studies mechanism truncation block

`tubelet ablate STUDY --help` lists all options of a study.

examples:
  tubelet ablate two-step --data clips/ --image-model fsrcnn.pth --scale 4 --seeds 3
  tubelet ablate lrti --data clips/ --studies mechanism
"""
_METAVARS = {
    "data": "FOLDER ...",
    "image_model": "NAME",
    "out": "FOLDER",
    "cache": "FOLDER",
    "preset": "NAME",
    "studies": "NAME ...",
    "networks": "NAME ...",
    "seeds": "N",
    "steps": "N",
    "base": "N",
    "device": "NAME",
}
_TWO_STEP_EXAMPLES = """\
variants: frozen image model, and training with MSE, MAE, MAE + SSIM (α 0, 0.4, 0.8) and encoder
loss (α 0, 0.04, 0.08)

Run the same command again to resume a study that was stopped; finished runs are not repeated.

example:
  tubelet ablate two-step --data clips/ --image-model fsrcnn.pth --scale 4 --seeds 3
"""
_LRTI_EXAMPLES = """\
studies:
  mechanism    noisy slow pans, BasicVSR: does truncated back-propagation (TB) on 4 frames match
               plain training on 16? Controls: the same samples without states, and clips of
               unrelated frames, on which there is nothing to gain
  truncation   real clips, three networks: TB on 4 and 8 frames against plain training on 8 and 24,
               at equal steps and at equal time, with memory and time
  block        real clips, LRTI-VSR: seven combinations of attention and gate

The report has a verdict on every claim with its interval; "inconclusive" is one of them. The arms,
margins and numbers of seeds are written to OUT/STUDY/plan.json before the first run. Run the same
command again to resume; finished runs are not repeated. Run it in several terminals at once to
divide the runs among them, each with its share of the cores (OMP_NUM_THREADS=1).

examples:
  tubelet ablate lrti --data clips/ --preset smoke --out runs/try
  tubelet ablate lrti --data clips/ --studies mechanism
  tubelet ablate lrti --data clips/ --studies truncation --networks basicvsr lrti --device cuda
  tubelet ablate lrti --data clips/ --studies mechanism --seeds 2 --steps 400 --out runs/short
"""


def main(args: Sequence[str]) -> int:
    """Run the verb."""
    if args and args[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    study = args[0] if args else ""
    if study == "two-step":
        return _run_two_step(args[1:])
    if study == "lrti":
        return _run_lrti(args[1:])
    raise RequestError(f"unknown study {study!r}; {suggest(study, _STUDIES)}")


def _run_two_step(args: Sequence[str]) -> int:
    with loading():
        from tubelet.restore.device import resolve_device
        from tubelet.studies.two_step import TwoStepAblation, run

    flags = flags_from(TwoStepAblation, metavars=_METAVARS)
    command = parse(flags, args, verb="ablate two-step", examples=_TWO_STEP_EXAMPLES)
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


def _run_lrti(args: Sequence[str]) -> int:
    with loading():
        from tubelet.restore.device import resolve_device
        from tubelet.studies.lrti import LRTIAblation, describe, run

    flags = flags_from(LRTIAblation, metavars=_METAVARS)
    command = parse(flags, args, verb="ablate lrti", examples=_LRTI_EXAMPLES)
    ablation: LRTIAblation = pick(command, LRTIAblation)
    ablation = replace(ablation, device=str(resolve_device(ablation.device)))

    for line in describe(ablation):
        print(line, flush=True)
    with show_progress("auto", label="lrti", json_to=sys.stdout) as on_progress:
        results = run(ablation, on_run=_report_lrti, on_progress=on_progress)
    for result in results:
        for claim in result.claims:
            half_width = ""
            if claim.half_width_db is not None:
                half_width = f" ± {claim.half_width_db:.3f}"
            difference = f"{claim.mean_db:+.3f}{half_width} dB"
            print(f"{claim.outcome:18} {result.name} {claim.id}: {claim.text}: {difference}")
    print(f"wrote {ablation.out / 'report.html'} and {ablation.out / 'results.json'}")
    return 0


def _report_lrti(run: FinishedRun) -> None:
    """Print the score of a finished run."""
    print(f"{run.study}: {run.arm}, seed {run.seed}: {run.psnr_y:.3f} dB", flush=True)
