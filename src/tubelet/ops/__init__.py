"""Pure tensor functions."""

from tubelet.ops.resize import imresize, resample

__all__ = ["imresize", "resample"]
