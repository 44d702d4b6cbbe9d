"""The one training loop."""

from tubelet.training.loop import Criterion, LoopSettings, pixel_loss, train
from tubelet.training.optimiser import OptimiserSettings
from tubelet.training.schedule import ScheduleSettings

__all__ = ["Criterion", "LoopSettings", "OptimiserSettings", "ScheduleSettings", "pixel_loss", "train"]
