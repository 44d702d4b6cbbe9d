"""Verdicts on claims, from paired differences of scores.

Two arms of a study are trained with the same seeds: with the same initial weights, and with the
same samples in the same order. The difference of their scores then varies less than the scores.

    d = mean difference over the seeds      h = half the width of its 95 % interval      m = margin

    ├──────────┼── d-h ──── d ──── d+h ──        holds: d - h > m
    0          m

Source: Student, Biometrika 1908; number of seeds: Cohen, Statistical Power Analysis, Sec. 2.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "MAX_SEEDS",
    "Interval",
    "Outcome",
    "bootstrap_interval",
    "judge_absence",
    "judge_excess",
    "num_seeds_needed",
    "paired_interval",
]

Outcome = Literal["holds", "holds, but small", "does not hold", "inconclusive"]

MAX_SEEDS = 10
"""A claim that needs more seeds than this is not decidable in a study of this size."""

_MIN_SEEDS = 3
_RESAMPLES = 2000

# Quantiles of Student's t for 1, 2, … degrees of freedom. The last one stands for more, which makes
# an interval slightly too wide.
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_T_80 = (
    *(1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883, 0.879),
    *(0.876, 0.873, 0.870, 0.868, 0.866, 0.865, 0.863, 0.862, 0.861, 0.860),
)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference and its 95 % confidence interval, d ± h, dB.

    Attributes:
        mean_db: Mean of the paired differences, d.
        half_width_db: Half the width of the interval, h; infinite with a single seed.
        spread_db: Standard deviation of the differences; NaN with a single seed.
        seeds: Number of differences.
    """

    mean_db: float
    half_width_db: float
    spread_db: float
    seeds: int

    @property
    def low_db(self) -> float:
        """Lower end of the interval."""
        return self.mean_db - self.half_width_db

    @property
    def high_db(self) -> float:
        """Upper end of the interval."""
        return self.mean_db + self.half_width_db


def paired_interval(differences: Sequence[float]) -> Interval:
    """Return the interval of the mean of paired differences, one for each seed.

    Args:
        differences: Differences of the scores of two arms, dB; at least one.
    """
    num_seeds = len(differences)
    mean_db = statistics.fmean(differences)
    if num_seeds < 2:
        return Interval(mean_db, math.inf, math.nan, num_seeds)
    spread_db = statistics.stdev(differences)
    t = _quantile(_T_975, num_seeds - 1)
    return Interval(mean_db, t * spread_db / math.sqrt(num_seeds), spread_db, num_seeds)


def judge_excess(
    interval: Interval,
    *,
    margin_db: float = 0.0,
    floor_db: float | None = None,
) -> Outcome:
    """Judge the claim that a difference is larger than a margin.

    Args:
        interval: Interval of the difference.
        margin_db: The claim holds if the whole interval is above the margin, and does not hold if
            the whole interval is below it.
        floor_db: Smallest effect of interest. If the whole interval is below it, the claim does not
            hold, or the effect is small.
    """
    is_small = floor_db is not None and interval.high_db < floor_db
    if interval.low_db > margin_db:
        return "holds, but small" if is_small else "holds"
    if interval.high_db < margin_db or is_small:
        return "does not hold"
    return "inconclusive"


def judge_absence(interval: Interval, *, limit_db: float) -> Outcome:
    """Judge the claim that a difference is at most `limit_db` in either direction."""
    size_db = abs(interval.mean_db)
    if size_db + interval.half_width_db <= limit_db:
        return "holds"
    if size_db - interval.half_width_db > limit_db:
        return "does not hold"
    return "inconclusive"


def num_seeds_needed(spread_db: float, effect_db: float) -> int | None:
    """Return how many seeds show an effect with a power of 80 %.

    Args:
        spread_db: Standard deviation of the paired differences.
        effect_db: Smallest effect worth showing.

    Returns:
        The least n ≥ ((t₀.₉₇₅ + t₀.₈₀) · spread / effect)² with n - 1 degrees of freedom, at least
        3; None if that is more than the quantiles cover.
    """
    for num_seeds in range(_MIN_SEEDS, len(_T_975) + 2):
        t = _quantile(_T_975, num_seeds - 1) + _quantile(_T_80, num_seeds - 1)
        if num_seeds >= (t * spread_db / effect_db) ** 2:
            return num_seeds
    return None


def bootstrap_interval(differences: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return a 95 % interval of the mean difference over other seeds and other videos.

    Args:
        differences: A row for each seed, with the difference on every video, dB.

    Returns:
        Lower and upper end; the percentiles of means of resampled seeds and videos.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, Sec. 13.3.
    """
    rows = np.asarray(differences)
    num_seeds, num_videos = rows.shape
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, num_seeds, (_RESAMPLES, num_seeds, 1))
    videos = rng.integers(0, num_videos, (_RESAMPLES, 1, num_videos))
    means = rows[seeds, videos].mean((1, 2))
    low_db, high_db = np.quantile(means, (0.025, 0.975))
    return float(low_db), float(high_db)


def _quantile(table: Sequence[float], degrees_of_freedom: int) -> float:
    return table[min(degrees_of_freedom, len(table)) - 1]
