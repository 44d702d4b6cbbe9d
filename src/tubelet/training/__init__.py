"""The training loop, and the interface of the tasks that it trains."""

from tubelet.training.loop import train
from tubelet.training.optimizer import OptimizerSettings
from tubelet.training.pixel_loss import PixelLoss, pixel_loss
from tubelet.training.restoration import RestorationLoss
from tubelet.training.schedule import ScheduleSettings
from tubelet.training.settings import LoopSettings, result_settings
from tubelet.training.state import check_same_run
from tubelet.training.task import Batch, Losses, TrainingTask

__all__ = [
    "Batch",
    "LoopSettings",
    "Losses",
    "OptimizerSettings",
    "PixelLoss",
    "RestorationLoss",
    "ScheduleSettings",
    "TrainingTask",
    "check_same_run",
    "pixel_loss",
    "result_settings",
    "train",
]
