"""The task of supervised training: restore clips, and compare them with the ground truth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tubelet.data import Crops
from tubelet.training import Batch, Losses, RestorationLoss
from tubelet.types import Temporal

__all__ = ["SupervisedTask"]


class SupervisedTask:
    """Restores crops of clips as if each were a whole video.

    Args:
        crops: Crops of clips.
        temporal: Frames that the network takes and outputs.
        loss: Loss of a clip.
        is_mirrored: Append the frames of each clip in reverse order.
    """

    def __init__(
        self,
        crops: Crops,
        temporal: Temporal,
        loss: RestorationLoss,
        *,
        is_mirrored: bool = False,
    ) -> None:
        self._crops = crops
        self._temporal = temporal
        self._loss = loss
        self._is_mirrored = is_mirrored

    def batch(self, step: int) -> Batch:
        """Crop the input and the target of the network, lq and gt (B, T, 3, H, W)."""
        lq, gt = self._crops.batch(step)
        if self._temporal.kind == "window":
            # (B, T, 3, H, W) → (B, 1, 3, H, W)
            middle = gt[:, self._temporal.radius, None]
            return {"lq": lq, "gt": middle}
        # A space-time network restores the omitted frames between its inputs.
        frame_step = 1 + self._temporal.between_frames
        lq = lq[:, ::frame_step]
        if self._is_mirrored:
            return {"lq": _append_reversed(lq), "gt": _append_reversed(gt)}
        return {"lq": lq, "gt": gt}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Losses]:
        """Compare restored frames with gt, and cleaned frames with gt downscaled to their size."""
        del step
        yield self._loss(model, batch["lq"], batch["gt"])


def _append_reversed(clip: Tensor) -> Tensor:
    """Append the frames of a clip in reverse order: (B, T, ...) → (B, 2T, ...)."""
    return torch.cat([clip, clip.flip(1)], 1)
