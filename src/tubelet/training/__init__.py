"""The one training loop."""

from tubelet.training.loop import LoopSettings, train

__all__ = ["LoopSettings", "train"]
