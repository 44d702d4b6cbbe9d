"""The one training loop."""

from tubelet.training.loop import Criterion, LoopSettings, check_same_run, pixel_loss, result_settings, train
from tubelet.training.optimiser import OptimiserSettings
from tubelet.training.schedule import ScheduleSettings

__all__ = [
    "Criterion",
    "LoopSettings",
    "OptimiserSettings",
    "ScheduleSettings",
    "check_same_run",
    "pixel_loss",
    "result_settings",
    "train",
]
