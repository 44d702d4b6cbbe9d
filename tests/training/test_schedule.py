from itertools import pairwise

import pytest

from tubelet.errors import ConfigError
from tubelet.training import ScheduleSettings
from tubelet.training.schedule import learning_rate


def _rates(
    steps: list[int], *, warmup_steps: int = 0, lr_final: float = 0.1, **schedule
) -> list[float]:
    settings = ScheduleSettings(**schedule)
    return [
        learning_rate(
            step, settings, steps=100, lr=1.0, lr_final=lr_final, warmup_steps=warmup_steps
        )
        for step in steps
    ]


def test_a_rise_then_half_a_cosine():
    rates = _rates(list(range(101)), warmup_steps=10)
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_restarts_begin_again_at_the_peak():
    rates = _rates([0, 5, 10, 20, 30, 40], kind="restarts", periods=(10, 20))
    assert rates == pytest.approx([1, 0.55, 1, 0.55, 1, 0.55])


def test_steps_fall_at_their_milestones():
    rates = _rates([0, 9, 10, 19, 20, 99], kind="steps", milestones=(10, 20), factor=0.5)
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_a_line_ends_after_its_period():
    assert _rates([0, 50, 100], kind="linear") == pytest.approx([1, 0.55, 0.1])
    assert _rates([0, 20, 40, 90], kind="linear", periods=(40,)) == pytest.approx(
        [1, 0.55, 0.1, 0.1]
    )


def test_a_rate_that_ends_where_it_begins_is_constant():
    assert set(_rates(list(range(100)), lr_final=1.0)) == {1.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "restarts"}, "needs periods"),
        ({"periods": (5, 0)}, "periods ≥ 1"),
        ({"milestones": (5, 5)}, "must rise"),
        ({"factor": 0.0}, "0 < factor"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleSettings(**wrong)
