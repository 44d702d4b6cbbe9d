"""Report of the studies of LRTI-VSR: one HTML page with tables and plots, from their results."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from string import Template

from tubelet.evaluation.page import empty_section, escape, style_sheet, text_table
from tubelet.evaluation.plots import Axis, Line, Point, line_plot, line_sample, point_plot
from tubelet.studies.claims import MAX_SEEDS
from tubelet.studies.lrti_endpoints import ENDPOINT_NAMES
from tubelet.studies.lrti_results import ClaimResult, Score, StudyResult

__all__ = ["render_page"]

_TITLE = "LRTI-VSR: truncated back-propagation and refocused attention at small scale"

_MIB = 2**20

_RULE = f"""\
Arms are compared in pairs of the same seed: the same initial weights where the networks are the
same, and the same samples in the same order where both have the same kind of samples. d is the mean
paired difference in Y-PSNR (BT.601, border 0) over the held-out videos, h half the width of its
95 % interval over the seeds (Student's t). The bootstrap interval beside it resamples seeds and
videos.

A claim holds if d - h is above its margin, and does not hold if d + h is below it. A claim with a
margin of 0 does not hold either if d + h is below the floor, a third of the paper's difference and
at least 0.03 dB; if d - h is above 0 as well, it holds, but the effect is small. Otherwise the
result is inconclusive. A claim of no gain holds if |d| + h is at most the margin.

If a positive control does not hold, nothing else in its study is judged. If a negative control does
not hold, there is a gain without anything to gain from, and no claim of the study holds.

Seeds needed: to show the study's smallest effect with a power of 80 %, by the spread of the paired
differences. A claim that needs more than {MAX_SEEDS} is not decidable here.

The gain "far minus near" is that of frames at least T/4 from both ends of a video, minus that of
frames closer than T/10.

Truncated back-propagation never trains the first and last two frames of a video, so they are given
apart. Time is that of the processor (of the clock on a GPU), measured over whole long clips; memory
is the peak of all tensors that exist at the same time, with the optimizer. Figures of the paper are
RGB-PSNR on REDS4, from trainings of 300 000 steps on a GPU: only ratios and differences can be
compared."""


def render_page(results: Sequence[StudyResult]) -> str:
    """Write the page.

    Args:
        results: Results of the studies.
    """
    text = resources.files("tubelet.studies").joinpath("lrti_page.html").read_text("utf-8")
    studies = list(map(_study, results))
    rule = list(map(_paragraph, _RULE.split("\n\n")))
    return Template(text).substitute(
        title=escape(_TITLE),
        style=style_sheet(),
        verdicts=_all_verdicts(results),
        studies="\n".join(studies),
        rule="\n".join(rule),
    )


def _all_verdicts(results: Sequence[StudyResult]) -> str:
    """Write the claims of all studies in one table."""
    body: list[list[str]] = []
    for result in results:
        for claim in result.claims:
            row = [
                claim.id,
                result.name,
                _statement(claim),
                claim.outcome,
                _difference(claim),
            ]
            body.append(row)
    header = ["claim", "study", "states", "verdict", "d ± h, dB"]
    return f"<h2>Verdicts</h2>{text_table(header, body, num_text=4)}"


def _study(result: StudyResult) -> str:
    """Write the section of a study."""
    parts = [f"<h2>{escape(result.title)}</h2>"]
    parts += map(_paragraph, _setting(result))
    parts += [_claims_table(result), _arms_table(result), _cost_table(result)]
    parts.append(f'<div class="plots">{_cost_plots(result)}{_gain_plot(result)}</div>')
    return "\n".join(parts)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _setting(result: StudyResult) -> list[str]:
    """Describe clips, network and seeds of a study in paragraphs."""
    *earlier, seeds = result.seeds
    text = f"{seeds} seeds"
    if earlier and result.is_pilot:
        text += f", after a pilot of {earlier[-1]}"
    elif earlier:
        numbers = ", then ".join(map(str, earlier))
        text += f"; {numbers} had been planned, so the intervals are too narrow"
    return [
        f"{result.regime}. {result.network}. {text}.",
        f"Scored: {', '.join(result.held_out)}. Trained on {len(result.train_videos)} others.",
    ]


def _claims_table(result: StudyResult) -> str:
    """Write a row per claim."""
    header = [
        "claim",
        "states",
        "of",
        "verdict",
        "d ± h, dB",
        "bootstrap, dB",
        "RGB, dB",
        "margin, dB",
        "floor, dB",
        "paper, dB",
        "seeds needed",
    ]
    body: list[list[str]] = []
    for claim in result.claims:
        low_db, high_db = claim.bootstrap_db
        row = [
            claim.id,
            _statement(claim),
            ENDPOINT_NAMES[claim.endpoint],
            claim.outcome,
            _difference(claim),
            f"{low_db:+.3f} to {high_db:+.3f}",
            f"{claim.rgb_db:+.3f}",
            f"{claim.margin_db:+.2f}",
            _optional(claim.floor_db, ".2f"),
            _optional(claim.published_db, "+.2f"),
            _seeds_needed(claim, result),
        ]
        body.append(row)
    return text_table(header, body, num_text=4, caption="Claims and controls")


def _arms_table(result: StudyResult) -> str:
    """Write a row per arm: scores, mean ± standard deviation over the seeds."""
    header = [
        "arm",
        "steps",
        "Y, all frames",
        "RGB, all frames",
        "Y, frames 5 to T-4",
        "Y, first and last two",
        "time of a step, s",
        "training, s",
        "memory, MiB",
    ]
    body: list[list[str]] = []
    for arm in result.arms:
        row = [
            arm.name,
            str(arm.steps),
            _score(arm.psnr_y),
            _score(arm.psnr_rgb),
            _score(arm.inner_y),
            _score(arm.ends_y),
            f"{arm.step_s:.3g}",
            f"{arm.train_s:.0f}",
            f"{arm.peak_bytes / _MIB:.1f}",
        ]
        body.append(row)
    return text_table(header, body, caption="Arms, PSNR in dB")


def _cost_table(result: StudyResult) -> str:
    """Redraw Table 3: memory, time and quality relative to the first arm, ours and the paper's."""
    published = [arm for arm in result.arms if arm.published_db is not None]
    if not published:
        return ""
    first = published[0]
    header = [
        f"relative to {first.name}",
        "memory",
        "paper",
        "time",
        "paper",
        "Y, dB",
        "RGB, dB",
        "paper (RGB), dB",
    ]
    body: list[list[str]] = []
    for arm in published:
        row = [
            arm.name,
            f"×{arm.peak_bytes / first.peak_bytes:.2f}",
            _ratio(arm.published_memory_gb, first.published_memory_gb),
            f"×{arm.train_s / first.train_s:.2f}",
            _ratio(arm.published_days, first.published_days),
            f"{arm.psnr_y.mean_db - first.psnr_y.mean_db:+.3f}",
            f"{arm.psnr_rgb.mean_db - first.psnr_rgb.mean_db:+.3f}",
            f"{(arm.published_db or 0.0) - (first.published_db or 0.0):+.2f}",
        ]
        body.append(row)
    return text_table(header, body, caption="Table 3 of the paper, from these measurements")


def _cost_plots(result: StudyResult) -> str:
    """Plot quality against memory and against training time, of arms that can be compared."""
    by_memory: list[Point] = []
    by_time: list[Point] = []
    for color, arm in enumerate(result.arms):
        if arm.clips != result.arms[0].clips:
            continue
        quality_db = arm.psnr_y.mean_db
        by_memory.append(Point(arm.name, arm.peak_bytes / _MIB, quality_db, color))
        by_time.append(Point(arm.name, arm.train_s, quality_db, color))
    return _point_figure(by_memory, "Quality against memory", "peak memory, MiB") + _point_figure(
        by_time, "Quality against time", "training time, s"
    )


def _point_figure(points: Sequence[Point], caption: str, x_label: str) -> str:
    plot = point_plot(
        points,
        x=Axis(x_label, logarithmic=True),
        y=Axis("Y-PSNR, dB"),
        title=caption,
    )
    plot = plot or empty_section("no figure is known")
    return f"<figure><figcaption>{caption}</figcaption>{plot}</figure>"


def _gain_plot(result: StudyResult) -> str:
    """Plot the gains over the distance from the nearer end of a video."""
    lines: list[Line] = []
    legend: list[str] = []
    for color, curve in enumerate(result.curves):
        distances = range(len(curve.gains_db))
        lines.append(Line(curve.name, distances, curve.gains_db, color))
        legend.append(f"<span>{line_sample(color)}{escape(curve.name)}</span>")
    caption = "Gain by the distance from the nearer end of a video"
    plot = line_plot(
        lines,
        x=Axis("distance, frames", integers=True),
        y=Axis("gain in Y-PSNR, dB"),
        title=caption,
    )
    return (
        f"<figure><figcaption>{caption}</figcaption>{plot}"
        f'<div class="legend">{"".join(legend)}</div></figure>'
    )


def _statement(claim: ClaimResult) -> str:
    return claim.text if claim.role == "claim" else f"{claim.role}: {claim.text}"


def _difference(claim: ClaimResult) -> str:
    if claim.half_width_db is None:
        return f"{claim.mean_db:+.3f}"
    return f"{claim.mean_db:+.3f} ± {claim.half_width_db:.3f}"


def _seeds_needed(claim: ClaimResult, result: StudyResult) -> str:
    if len(claim.differences_db) < 2:
        return "–"
    count = "more than 21" if claim.seeds_needed is None else str(claim.seeds_needed)
    return f"{count} for {result.effect_db:g} dB"


def _score(score: Score) -> str:
    if score.spread_db is None:
        return f"{score.mean_db:.3f}"
    return f"{score.mean_db:.3f} ± {score.spread_db:.3f}"


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _ratio(value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return "–"
    return f"×{value / reference:.2f}"
