"""The learning-rate schedule of a training run."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from tubelet.errors import ConfigError, require

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
        require(min(self.periods, default=1) >= 1, f"periods={self.periods}: need periods ≥ 1")
        require(0 < self.factor <= 1, f"factor={self.factor}: need 0 < factor ≤ 1")
        # In a set, a repeated milestone is lost, and so is one at step 0.
        rising = sorted({0, *self.milestones})
        require(
            [0, *self.milestones] == rising,
            f"milestones={self.milestones} must rise, from 1 on",
        )
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
    """Compute the learning rate of a step: a linear warm-up, then the schedule.

    A cosine starts after the warm-up. Periods and milestones count from step 0, as published ones
    do.

    Args:
        step: Step, from 0.
        schedule: Schedule after the warm-up.
        steps: Number of steps of the whole run.
        lr: Peak learning rate.
        lr_final: Learning rate at the end of a cosine or a line.
        warmup_steps: Number of warm-up steps.
    """
    if step < warmup_steps:
        # The first step is not lost: it has a learning rate above 0.
        return lr * (step + 1) / warmup_steps
    match schedule.kind:
        case "steps":
            # Milestones are sorted, so this counts those up to the step.
            num_passed = bisect_right(schedule.milestones, step)
            return lr * schedule.factor**num_passed
        case "linear":
            length = schedule.periods[0] if schedule.periods else steps
            return lr + (lr_final - lr) * min(1.0, step / length)
        case "restarts":
            progress = _progress_in_period(step, schedule.periods)
        case "cosine":
            progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    # Half a cosine, from 1 to 0.
    weight = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return lr_final + (lr - lr_final) * weight


def _progress_in_period(step: int, periods: tuple[int, ...]) -> float:
    """Return the position of a step in its period, from 0 to 1; the last period repeats."""
    # Count the step from the start of each period in turn.
    for period in periods[:-1]:
        if step < period:
            return step / period
        step -= period
    return step % periods[-1] / periods[-1]
