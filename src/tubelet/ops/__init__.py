"""Pure tensor functions."""

from tubelet.ops.deform import deform_conv2d
from tubelet.ops.resize import imresize, resample
from tubelet.ops.warp import backward_warp

__all__ = ["backward_warp", "deform_conv2d", "imresize", "resample"]
