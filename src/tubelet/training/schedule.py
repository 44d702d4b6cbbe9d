"""The learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tubelet.errors import ConfigError

__all__ = ["ScheduleSettings", "learning_rate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """Learning-rate schedule after the warmup."""

    kind: Literal["cosine", "restarts", "steps", "linear"] = "cosine"
    """cosine: half a cosine over all steps. restarts: a cosine per period, each from the peak.
    steps: multiply by `factor` at each milestone. linear: a straight line."""
    periods: tuple[int, ...] = ()
    """For restarts: steps of each cosine; the last one repeats. For linear: steps until
    `lr_final`, all steps if empty."""
    milestones: tuple[int, ...] = ()
    """For steps: steps at which the learning rate is reduced."""
    factor: float = 0.5
    """For steps: multiplier at each milestone."""

    def __post_init__(self) -> None:
        if any(period < 1 for period in self.periods) or not 0 < self.factor <= 1:
            raise ConfigError(f"{self}: need periods ≥ 1 and 0 < factor ≤ 1")
        if any(later <= earlier for earlier, later in pairwise((0, *self.milestones))):
            raise ConfigError(f"milestones={self.milestones} must rise, from 1 on")
        if self.kind == "restarts" and not self.periods:
            raise ConfigError("schedule kind=restarts needs periods, the steps of each cosine")


def learning_rate(
    step: int,
    schedule: ScheduleSettings,
    *,
    steps: int,
    lr: float,
    lr_final: float,
    warmup_steps: int,
) -> float:
    """Compute the rate of a step: a linear rise over `warmup_steps`, then as the schedule says.

    A cosine begins where the rise ends; periods and milestones count from step 0, as published ones
    do.

    Args:
        step: from 0 on.
        schedule: how the rate falls.
        steps: of the whole run.
        lr: peak of the rate.
        lr_final: rate at the end of a cosine or line.
        warmup_steps: of the rise.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule.kind == "steps":
        passed = sum(step >= milestone for milestone in schedule.milestones)
        return lr * schedule.factor**passed
    if schedule.kind == "linear":
        length = schedule.periods[0] if schedule.periods else steps
        return lr + (lr_final - lr) * min(1.0, step / length)
    if schedule.kind == "restarts":
        progress = _within_period(step, schedule.periods)
    else:
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return lr_final + (lr - lr_final) * falling


def _within_period(step: int, periods: tuple[int, ...]) -> float:
    """Return the share of its cosine that lies before a step, from 0 to 1."""
    for period in periods[:-1]:
        if step < period:
            return step / period
        step -= period
    return step % periods[-1] / periods[-1]
