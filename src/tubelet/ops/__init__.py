"""Pure tensor functions."""

from tubelet.ops.resize import imresize, resample
from tubelet.ops.warp import backward_warp

__all__ = ["backward_warp", "imresize", "resample"]
