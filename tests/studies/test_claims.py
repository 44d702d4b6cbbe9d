import math

import numpy as np
import pytest

from tubelet.studies.claims import (
    Interval,
    bootstrap_interval,
    judge_absence,
    judge_excess,
    num_seeds_needed,
    paired_interval,
)


def test_an_interval_is_that_of_a_t_test():
    interval = paired_interval([1.0, 2.0, 4.0])
    # R: t.test(c(1, 2, 4))$conf.int is -1.4612 … 6.1279.
    assert interval.low_db == pytest.approx(-1.4612, abs=1e-3)
    assert interval.high_db == pytest.approx(6.1279, abs=1e-3)
    assert interval.spread_db == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert paired_interval([9.0]).half_width_db == math.inf


@pytest.mark.parametrize(
    ("mean_db", "half_width_db", "margin_db", "floor_db", "outcome"),
    [
        (0.20, 0.05, 0.0, None, "holds"),
        (0.20, 0.05, 0.0, 0.12, "holds"),
        (0.05, 0.03, 0.0, 0.12, "holds, but small"),
        (0.02, 0.05, 0.0, 0.12, "does not hold"),  # the effect is below a third of the paper's
        (0.02, 0.12, 0.0, 0.12, "inconclusive"),
        (-0.20, 0.05, 0.0, 0.12, "does not hold"),
        (0.40, 0.05, 0.3, None, "holds"),
        (0.32, 0.05, 0.3, None, "inconclusive"),
        (0.20, 0.05, 0.3, None, "does not hold"),
        (-0.02, 0.05, -0.1, None, "holds"),
        (9.0, math.inf, 0.0, 0.03, "inconclusive"),  # one seed
    ],
)
def test_verdicts(mean_db, half_width_db, margin_db, floor_db, outcome):
    interval = Interval(mean_db, half_width_db, 0.1, 3)
    assert judge_excess(interval, margin_db=margin_db, floor_db=floor_db) == outcome


@pytest.mark.parametrize(
    ("mean_db", "half_width_db", "outcome"),
    [
        (0.02, 0.02, "holds"),
        (-0.02, 0.02, "holds"),
        (0.02, 0.04, "inconclusive"),
        (0.20, 0.04, "does not hold"),
        (-0.20, 0.04, "does not hold"),
        (0.0, math.inf, "inconclusive"),
    ],
)
def test_verdicts_on_an_absence(mean_db, half_width_db, outcome):
    assert judge_absence(Interval(mean_db, half_width_db, 0.1, 3), limit_db=0.05) == outcome


def test_number_of_seeds_by_spread():
    ratios = (0.25, 0.33, 0.5, 0.6, 0.75, 0.9, 1.0, 1.25, 1.5)
    numbers = [num_seeds_needed(0.1 * ratio, 0.1) for ratio in ratios]
    assert numbers == [3, 4, 5, 5, 7, 9, 10, 15, 20]
    assert num_seeds_needed(0.5, 0.1) is None
    assert num_seeds_needed(math.nan, 0.1) is None


def test_the_bootstrap_covers_seeds_and_videos():
    rng = np.random.default_rng(1)
    videos = rng.normal(0, 0.5, (1, 8))
    low, high = bootstrap_interval((0.3 + videos + rng.normal(0, 0.01, (5, 8))).tolist())
    # Seeds agree, videos do not: 0.5 / √8 on both sides of the mean, times 1.96.
    assert high - low == pytest.approx(2 * 1.96 * videos.std() / math.sqrt(8), rel=0.2)
    low, high = bootstrap_interval([[0.1, 0.1], [0.1, 0.1]])
    assert (low, high) == pytest.approx((0.1, 0.1))
