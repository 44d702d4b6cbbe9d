"""The one training loop."""

from tubelet.training.loop import Criterion, LoopSettings, pixel_loss, train

__all__ = ["Criterion", "LoopSettings", "pixel_loss", "train"]
