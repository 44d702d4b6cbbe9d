"""Test the claims of the two-step paper at small scale: its Tables I to III with several seeds.

    variants (loss, alpha) × seeds ─ one short training each ─ PSNR of the test videos ─ claims
                                                                      report.md, results.csv

Runs with the same seed start from the same weights and see the same crops in the same order, so
that they are compared in pairs.

Source: two-step video super-resolution, Tables I–III.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tubelet.errors import require
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.recipes.two_step import (
    TwoStepLoss,
    TwoStepPreset,
    TwoStepTraining,
    configure,
    main,
    read_scores,
)
from tubelet.studies.claims import Outcome, judge_excess, paired_interval

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

# With 1000 steps, 24 runs take less than an hour on one core.
_SMALL_STEPS = 1000
# The preset's learning rate is for six times as many steps. In short runs, the results would depend
# more on the seed than on the loss.
_SMALL_LR = 1e-3


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
        counts = (self.seeds, self.steps, self.base)
        given_counts = [count for count in counts if count is not None]
        require(min(given_counts) >= 1, "seeds, steps and base must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A row of the paper's tables: a loss and its published result."""

    name: str
    loss: TwoStepLoss
    alpha: float = 0.0
    table: str
    """Number of the table in the paper."""
    published_db: float
    """RGB-PSNR on the authors' test videos."""

    @property
    def slug(self) -> str:
        """Name in the folders of its runs."""
        has_alpha = self.loss in ("mae+ssim", "encoder")
        return f"{self.loss}-{self.alpha:g}" if has_alpha else self.loss


# Table I, HAT ×2 without the second step.
_PUBLISHED_FROZEN_DB = 28.97
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
    """A claim of the paper: one variant is better than another by more than a margin."""

    text: str
    better: str
    """Name of the better variant."""
    worse: str
    """Name of the worse variant, or "frozen" for the image model without the second step."""
    margin_db: float = 0.0
    published_db: float
    """Difference in the paper."""


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

_RULE = (
    "A claim states that a difference exceeds a margin. d is the mean difference of runs with the "
    "same seed, and h half the width of its 95 % confidence interval (Student's t, seeds − 1 "
    "degrees of freedom). The claim *holds* if d − h is above the margin, it *does not hold* if "
    "d + h is below the margin, and otherwise the result is *inconclusive*. The margin is 0 for >, "
    "−0.05 dB for ≥, and 1 dB for “far worse”. With one seed, every result is inconclusive."
)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training: Y-PSNR of the network and of its image model on the test videos, dB."""

    variant: Variant
    seed: int
    psnr_y: float
    frozen_psnr_y: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the test of a claim: mean difference d and half the width h of its interval, dB."""

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
    """Train all variants, test the claims, and write report.md and results.csv.

    Finished runs in the output folder are reused.

    Args:
        ablation: Settings of the study.
        on_run: Called with every finished run.
        on_progress: Called before the first run and after every run; the label names the current
            run.
        cancel: Stops the study after the current training step; the same call resumes it.

    Raises:
        RequestError: The image model is unknown, is not a single-image model, or has another scale.
        InputError: There are no clips, or too few.
        CheckpointError: A folder contains a run with other settings.
        Cancelled: `cancel` was cancelled.
    """
    # Seed by seed, so that an interrupted study has complete pairs.
    plan = list(itertools.product(range(ablation.seeds), VARIANTS))
    runs: list[Run] = []
    ticker = Ticker(on_progress, unit="run", total=len(plan), cancel=cancel)
    for seed, variant in plan:
        config = _configure(ablation, variant, seed)
        ticker.label = f"{variant.name}, seed {seed}"
        ticker.report()
        main(config, cancel=cancel)
        # The training state is only for resuming, and many times larger than the network.
        (config.out / "state.pt").unlink(missing_ok=True)
        test = read_scores(config.out)["test"]
        finished = Run(variant, seed, test["psnr_y"], test["psnr_y/frozen"])
        runs.append(finished)
        if on_run is not None:
            on_run(finished)
        ticker.tick()
    ticker.finish()

    verdicts = [judge(claim, runs) for claim in CLAIMS]
    report = render_report(ablation, runs, verdicts)
    (ablation.out / "report.md").write_text(report, encoding="utf-8")
    (ablation.out / "results.csv").write_text(render_csv(runs), encoding="utf-8")
    return runs, verdicts


def _configure(ablation: TwoStepAblation, variant: Variant, seed: int) -> TwoStepTraining:
    """Build the configuration of one run from the preset."""
    preset = configure(ablation.preset, scale=ablation.scale)
    is_small = ablation.preset == "small"
    steps = ablation.steps
    if steps is None and is_small:
        steps = _SMALL_STEPS
    num_steps = steps or preset.loop.steps
    loop = replace(
        preset.loop,
        steps=num_steps,
        # Only the end is scored; the states in between are for resuming.
        save_every=max(500, num_steps // 4),
        seed=seed,
        device=ablation.device,
    )
    if is_small:
        loop = replace(loop, lr=_SMALL_LR)
    network = preset.network
    if ablation.base is not None:
        network = replace(network, channels=ablation.base)
    return replace(
        preset,
        image_model=ablation.image_model,
        network=network,
        data=ablation.data,
        out=ablation.out / "runs" / f"{variant.slug}-{seed}",
        cache=ablation.cache,
        frozen=ablation.out / "frozen",
        loss=variant.loss,
        alpha=variant.alpha,
        # Either number of steps overrides the preset's epochs.
        epochs=preset.epochs if steps is None else None,
        loop=loop,
    )


def judge(claim: Claim, runs: Sequence[Run]) -> Verdict:
    """Test a claim with a paired t-test over the seeds; the report contains the rule."""
    better = _psnr_by_seed(claim.better, runs)
    worse = _psnr_by_seed(claim.worse, runs)
    interval = paired_interval([better[seed] - worse[seed] for seed in better])
    outcome = judge_excess(interval, margin_db=claim.margin_db)
    return Verdict(claim, outcome, interval.mean_db, interval.half_width_db)


def _psnr_by_seed(name: str, runs: Sequence[Run]) -> dict[int, float]:
    """Return the score of a variant, or of the frozen image model, by seed."""
    scores: dict[int, float] = {}
    for run in runs:
        if name == "frozen":
            scores[run.seed] = run.frozen_psnr_y
        elif run.variant.name == name:
            scores[run.seed] = run.psnr_y
    return scores


_CSV_HEADER = (
    "table",
    "variant",
    "loss",
    "alpha",
    "seed",
    "psnr_y_db",
    "frozen_psnr_y_db",
    "published_db",
)


def render_csv(runs: Sequence[Run]) -> str:
    """Render a CSV table with a line for every run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for run in runs:
        variant = run.variant
        row = (
            variant.table,
            variant.name,
            variant.loss,
            variant.alpha,
            run.seed,
            f"{run.psnr_y:.4f}",
            f"{run.frozen_psnr_y:.4f}",
            variant.published_db,
        )
        writer.writerow(row)
    return text.getvalue()


def render_report(
    ablation: TwoStepAblation, runs: Sequence[Run], verdicts: Sequence[Verdict]
) -> str:
    """Render the report in Markdown: settings, results of the variants, and verdicts."""
    config = _configure(ablation, VARIANTS[0], 0)
    length = f"{config.loop.steps} steps" if config.epochs is None else f"{config.epochs} epochs"
    frozen_db = runs[0].frozen_psnr_y
    lines = [
        "# Two-step: losses and claims at small scale",
        "",
        f"Image model {ablation.image_model}, ×{ablation.scale}, frozen; preset {ablation.preset}, "
        f"base width {config.network.channels}; {length} of {config.batch} crops of "
        f"{config.crops.patch_px} px; seeds: {ablation.seeds}.",
        "",
        "Ours: mean ± standard deviation over the seeds of the mean Y-PSNR (BT.601, border 0) of "
        "the test videos, dB. Paper: RGB-PSNR of its own test videos, ×2 over HAT; only "
        "differences can be compared.",
        "",
        "| table | variant | ours | over frozen | paper | over frozen |",
        "|---|---|---:|---:|---:|---:|",
        f"| I | only the frozen image model | {frozen_db:.2f} | | {_PUBLISHED_FROZEN_DB:.2f} | |",
    ]
    for variant in VARIANTS:
        lines.append(_variant_row(variant, runs, frozen_db))
    lines += [
        "",
        "| claim | verdict | d ± h, dB | margin, dB | paper, dB |",
        "|---|---|---:|---:|---:|",
    ]
    for verdict in verdicts:
        lines.append(_verdict_row(verdict))
    lines += ["", _RULE]
    for caveat in _caveats(config):
        lines += ["", caveat]
    return "\n".join(lines) + "\n"


def _variant_row(variant: Variant, runs: Sequence[Run], frozen_db: float) -> str:
    values = list(_psnr_by_seed(variant.name, runs).values())
    mean_db = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    published_db = variant.published_db
    published_gain_db = published_db - _PUBLISHED_FROZEN_DB
    cells = (
        variant.table,
        variant.name,
        f"{mean_db:.2f}{spread}",
        f"{mean_db - frozen_db:+.2f}",
        f"{published_db:.2f}",
        f"{published_gain_db:+.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _verdict_row(verdict: Verdict) -> str:
    claim = verdict.claim
    half_width_db = verdict.half_width_db
    interval = f" ± {half_width_db:.2f}" if math.isfinite(half_width_db) else ""
    cells = (
        claim.text,
        verdict.outcome,
        f"{verdict.mean_db:+.2f}{interval}",
        f"{claim.margin_db:+.2f}",
        f"{claim.published_db:+.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _caveats(config: TwoStepTraining) -> list[str]:
    """List the differences between this study and the paper in the network and the loss."""
    caveats = [
        "SSIM has a data range of 1 here, like the images. The authors' code has a data range of "
        "255, with which 1 − SSIM has almost no gradient.",
    ]
    if config.network.residual:
        caveats.append(
            "The network outputs a residual over the image model's result and initially equals the "
            "image model; the paper's network outputs the full image. Therefore, no loss starts "
            "below the frozen model here."
        )
    return caveats
