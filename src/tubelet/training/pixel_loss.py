"""Build the pixel loss from the settings of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tubelet.losses import LOSSES, charbonnier, luma
from tubelet.training.settings import LoopSettings

__all__ = ["PixelLoss", "pixel_loss"]

PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps sr and gt of the same shape to a scalar."""


def pixel_loss(settings: LoopSettings) -> PixelLoss:
    """Build the pixel loss that the settings select; it computes in float32."""
    mean_loss = LOSSES[settings.loss]
    if settings.loss == "charbonnier":
        mean_loss = partial(charbonnier, eps=settings.loss_eps)

    def loss(sr: Tensor, gt: Tensor) -> Tensor:
        sr = sr.float()
        if settings.loss_on == "luma":
            sr = luma(sr)
            gt = luma(gt)
        value = mean_loss(sr, gt)
        if settings.loss_reduction == "sum":
            value = value * sr.numel()
        return value

    return loss
