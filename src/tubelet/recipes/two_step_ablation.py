"""Ask at small scale what the paper of two-step claims: its Tables I to III, a coarser grid, several seeds.

    variants (loss, alpha) × seeds ─ one short training each ─ PSNR of the test videos ─ report.md, results.csv

Runs of one seed begin with the same weights and see the same crops in the same order, so they are compared in pairs.

Source: two-step video super-resolution, Tables I–III; Student, Biometrika 1908, for the intervals.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tubelet.errors import ConfigError
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.recipes.two_step import (
    TwoStepLoss,
    TwoStepPreset,
    TwoStepTraining,
    configure,
    main,
    read_scores,
)

__all__ = [
    "CLAIMS",
    "VARIANTS",
    "Claim",
    "Run",
    "TwoStepAblation",
    "Variant",
    "Verdict",
    "judge",
    "render_csv",
    "render_report",
    "run",
]

Outcome = Literal["holds", "does not hold", "not told apart"]
_SMALL_STEPS = 1000
_SMALL_LR = 1e-3
"""24 runs in under an hour of one core. At the rate of the preset, which is for six times as many steps, so short runs
depend on their seed more than on their loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStepAblation:
    """Train two-step with each loss of the paper, several times, and test the paper's claims."""

    data: tuple[Path, ...] = ()
    """Folders of videos, of images, or of folders of frames; a tenth of the videos is scored."""
    image_model: str = ""
    """Frozen image model of the first step: id or checkpoint of a single-image model of the same
    scale."""
    out: Path = Path("runs/two-step-ablation")
    """Folder of the runs, report.md and results.csv; finished runs in it are reused."""
    cache: Path = Path("cache")
    """Folder of the decoded clips; reused by later runs."""
    preset: TwoStepPreset = "small"
    """Size of the network, the crops and the batches: small, or as in the paper."""
    scale: Literal[2, 4] = 2
    """Upscaling factor of the image model."""
    seeds: int = 3
    """Runs of each variant, with different initial weights and orders of the crops."""
    steps: int | None = None
    """Training steps of each run. Default: 1000 for small, 10 epochs for paper."""
    base: int | None = None
    """Channels of the first stage of the network. Default: as in the preset."""
    device: str = "cpu"
    """Device to train on, for example cpu or cuda."""

    def __post_init__(self) -> None:
        if (
            self.seeds < 1
            or (self.steps is not None and self.steps < 1)
            or (self.base is not None and self.base < 1)
        ):
            raise ConfigError("seeds, steps and base must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A row of a table: a loss, and what the paper prints for it."""

    name: str
    loss: TwoStepLoss
    alpha: float = 0.0
    table: str
    """Of the paper."""
    published_db: float
    """RGB-PSNR on the authors' test videos."""

    @property
    def slug(self) -> str:
        """The name of its folders."""
        return f"{self.loss}-{self.alpha:g}" if self.loss in ("mae+ssim", "encoder") else self.loss


_PUBLISHED_FROZEN_DB = 28.97  # HAT ×2 alone, Table I
VARIANTS = (
    Variant(name="MSE", loss="mse", table="I", published_db=30.55),
    Variant(name="MAE", loss="mae", table="I", published_db=30.73),
    Variant(name="MAE + SSIM, α = 0.0", loss="mae+ssim", alpha=0.0, table="II", published_db=27.34),
    Variant(name="MAE + SSIM, α = 0.4", loss="mae+ssim", alpha=0.4, table="II", published_db=30.70),
    Variant(name="MAE + SSIM, α = 0.8", loss="mae+ssim", alpha=0.8, table="II", published_db=30.86),
    Variant(
        name="encoder loss, α = 0.00", loss="encoder", alpha=0.0, table="III", published_db=30.55
    ),
    Variant(
        name="encoder loss, α = 0.04", loss="encoder", alpha=0.04, table="III", published_db=30.76
    ),
    Variant(
        name="encoder loss, α = 0.08", loss="encoder", alpha=0.08, table="III", published_db=30.76
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The paper says that one variant is better than another, by more than a margin."""

    text: str
    better: str
    """Name of a variant."""
    worse: str
    """Name of a variant, or "frozen"."""
    margin_db: float = 0.0
    published_db: float
    """The difference in the paper."""


CLAIMS = (
    Claim(
        text="two-step > its frozen image model", better="MAE", worse="frozen", published_db=1.76
    ),
    Claim(text="MAE > MSE", better="MAE", worse="MSE", published_db=0.18),
    Claim(
        text="MAE + SSIM (α = 0.8) ≥ MAE",
        better="MAE + SSIM, α = 0.8",
        worse="MAE",
        margin_db=-0.05,
        published_db=0.13,
    ),
    Claim(
        text="SSIM alone (α = 0) is far worse than MAE",
        better="MAE",
        worse="MAE + SSIM, α = 0.0",
        margin_db=1.0,
        published_db=3.39,
    ),
)
RULE = (
    "A claim says that a difference exceeds a margin. d is the mean difference of runs with the same seed, and h half "
    "the width of its 95 % interval (Student's t, seeds − 1 degrees of freedom). The claim *holds* where d − h is "
    "above the margin, it *does not hold* where d + h is below, and otherwise the two are *not told apart*. The "
    "margin is 0 for >, −0.05 dB for ≥, and 1 dB for “far worse”. One seed tells nothing apart."
)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training, and what it and its image model score on the test videos, dB."""

    variant: Variant
    seed: int
    psnr_y: float
    frozen_psnr_y: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the runs say of a claim: mean difference d and half its interval h, dB."""

    claim: Claim
    outcome: Outcome
    mean_db: float
    half_width_db: float


def run(
    ablation: TwoStepAblation,
    *,
    on_run: Callable[[Run], None] | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[list[Run], list[Verdict]]:
    """Train what is not trained yet, judge the claims, and write report.md and results.csv.

    Args:
        ablation: see there.
        on_run: called with every finished run.
        on_progress: called before the first and after every finished run; the label names the one that trains.
        cancel: stops the study after the step that it is at; the same call goes on there.

    Raises:
        RequestError: the image model is unknown, is none of single frames, or is of another scale.
        InputError: no clips, or too few.
        CheckpointError: a folder holds a run with other settings.
        Cancelled: `cancel` was cancelled.
    """
    plan = [(variant, seed) for seed in range(ablation.seeds) for variant in VARIANTS]
    runs: list[Run] = []
    ticker = Ticker(on_progress, unit="run", total=len(plan), cancel=cancel)
    for variant, seed in plan:
        config = _configure(ablation, variant, seed)
        ticker.label = f"{variant.name}, seed {seed}"
        ticker.report()
        main(config, cancel=cancel)
        (config.out / "state.pt").unlink(missing_ok=True)  # to go on is no longer needed
        test = read_scores(config.out)["test"]
        runs.append(Run(variant, seed, test["psnr_y"], test["psnr_y/frozen"]))
        if on_run is not None:
            on_run(runs[-1])
        ticker.tick()
    ticker.finish()
    verdicts = [judge(claim, runs) for claim in CLAIMS]
    (ablation.out / "report.md").write_text(
        render_report(ablation, runs, verdicts), encoding="utf-8"
    )
    (ablation.out / "results.csv").write_text(render_csv(runs), encoding="utf-8")
    return runs, verdicts


def _configure(ablation: TwoStepAblation, variant: Variant, seed: int) -> TwoStepTraining:
    base = configure(ablation.preset, scale=ablation.scale)
    small = ablation.preset == "small"
    steps = ablation.steps or (_SMALL_STEPS if small else None)
    length = steps or base.loop.steps
    # Only the end is scored; a state is kept now and then, to go on with.
    loop = replace(
        base.loop, steps=length, save_every=max(500, length // 4), seed=seed, device=ablation.device
    )
    loop = replace(loop, lr=_SMALL_LR) if small else loop
    return replace(
        base,
        image_model=ablation.image_model,
        network=replace(base.network, channels=ablation.base or base.network.channels),
        data=ablation.data,
        out=ablation.out / "runs" / f"{variant.slug}-{seed}",
        cache=ablation.cache,
        frozen=ablation.out / "frozen",
        loss=variant.loss,
        alpha=variant.alpha,
        epochs=base.epochs if steps is None else None,
        loop=loop,
    )


def judge(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """Compare two variants, seed by seed, as `RULE` says."""
    better, worse = (_by_seed(name, runs) for name in (claim.better, claim.worse))
    differences = [better[seed] - worse[seed] for seed in better]
    mean = statistics.fmean(differences)
    half = _half_width(differences)
    outcome: Outcome = "not told apart"
    if mean - half > claim.margin_db:
        outcome = "holds"
    elif mean + half < claim.margin_db:
        outcome = "does not hold"
    return Verdict(claim, outcome, mean, half)


def _by_seed(name: str, runs: Sequence[Run]) -> dict[int, float]:
    if name == "frozen":
        return {run.seed: run.frozen_psnr_y for run in runs}
    return {run.seed: run.psnr_y for run in runs if run.variant.name == name}


_STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles for 1, 2, ... degrees of freedom; for more, the last one, which is a little too wide."""


def _half_width(differences: Sequence[float]) -> float:
    if len(differences) < 2:
        return math.inf
    freedom = min(len(differences) - 1, len(_STUDENT_T))
    return _STUDENT_T[freedom - 1] * statistics.stdev(differences) / math.sqrt(len(differences))


def render_csv(runs: Sequence[Run]) -> str:
    """Write a line for every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "table",
            "variant",
            "loss",
            "alpha",
            "seed",
            "psnr_y_db",
            "frozen_psnr_y_db",
            "published_db",
        ]
    )
    for run in runs:
        variant = run.variant
        row = [variant.table, variant.name, variant.loss, variant.alpha, run.seed]
        writer.writerow(
            [*row, f"{run.psnr_y:.4f}", f"{run.frozen_psnr_y:.4f}", variant.published_db]
        )
    return text.getvalue()


def render_report(
    ablation: TwoStepAblation, runs: Sequence[Run], verdicts: Sequence[Verdict]
) -> str:
    """Write the report in Markdown."""
    config = _configure(ablation, VARIANTS[0], 0)
    length = f"{config.loop.steps} steps" if config.epochs is None else f"{config.epochs} epochs"
    frozen = runs[0].frozen_psnr_y
    lines = [
        "# Two-step: losses and claims at small scale",
        "",
        f"Image model {ablation.image_model}, ×{ablation.scale}, frozen; preset {ablation.preset}, base width "
        f"{config.network.channels}; {length} of {config.batch} crops of {config.crops.patch_px} px; seeds: "
        f"{ablation.seeds}.",
        "",
        "Ours: mean ± standard deviation over the seeds of the mean Y-PSNR (BT.601, border 0) of the test videos, dB. "
        "Paper: RGB-PSNR of its own test videos, ×2 over HAT; only differences can be compared.",
        "",
        "| table | variant | ours | over frozen | paper | over frozen |",
        "|---|---|---:|---:|---:|---:|",
        f"| I | frozen image model alone | {frozen:.2f} | | {_PUBLISHED_FROZEN_DB:.2f} | |",
        *(_row(variant, runs, frozen) for variant in VARIANTS),
        "",
        "| claim | verdict | d ± h, dB | margin, dB | paper, dB |",
        "|---|---|---:|---:|---:|",
        *(_verdict_row(verdict) for verdict in verdicts),
        "",
        RULE,
        *_caveats(config),
    ]
    return "\n".join(lines) + "\n"


def _row(variant: Variant, runs: Sequence[Run], frozen: float) -> str:
    values = list(_by_seed(variant.name, runs).values())
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    paper = variant.published_db
    return (
        f"| {variant.table} | {variant.name} | {mean:.2f}{spread} | {mean - frozen:+.2f} | {paper:.2f} | "
        f"{paper - _PUBLISHED_FROZEN_DB:+.2f} |"
    )


def _verdict_row(verdict: Verdict) -> str:
    claim = verdict.claim
    half = verdict.half_width_db
    width = f" ± {half:.2f}" if math.isfinite(half) else ""
    return (
        f"| {claim.text} | {verdict.outcome} | {verdict.mean_db:+.2f}{width} | {claim.margin_db:+.2f} | "
        f"{claim.published_db:+.2f} |"
    )


def _caveats(config: TwoStepTraining) -> list[str]:
    """Say where the network or the loss is not the paper's."""
    lines = [
        "SSIM has a data range of 1 here, as the images have. The authors' code has one of 255, with which 1 − SSIM "
        "hardly moves the weights.",
    ]
    if config.network.residual:
        lines.append(
            "The network adds to what the image model made, and begins as the image model; the paper's makes the "
            "whole image anew. So no loss begins worse than the frozen model here."
        )
    return [text for line in lines for text in ("", line)]
