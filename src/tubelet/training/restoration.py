"""The loss of restored clips: pixels, and for networks that clean their input also clean frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.recurrence import Edge
from tubelet.losses import l1
from tubelet.models.contracts import CleaningModel, as_cleaning
from tubelet.training.pixel_loss import PixelLoss
from tubelet.training.task import Losses

__all__ = ["RestorationLoss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorationLoss:
    """Restores a clip and compares it with the ground truth.

    Attributes:
        pixel: Loss between restored frames and gt.
        cleaning_weight: Weight of the L1 loss between the cleaned frames of a `CleaningModel` and
            gt at their size; 0 for all other networks.
    """

    pixel: PixelLoss
    cleaning_weight: float = 0.0

    def __call__(
        self,
        model: nn.Module,
        lq: Tensor,
        gt: Tensor,
        *edges: Edge,
    ) -> Losses:
        """Restore a clip and compute the losses.

        Args:
            model: Network.
            lq: Low-quality clip, (B, T, 3, h, w).
            gt: Ground truth of the frames that the network outputs, (B, T', 3, sh, sw).
            edges: Edges before and after the clip, or none: then the clip is a whole video.

        Returns:
            "pixel", and "cleaning" where it has a weight.
        """
        if not self.cleaning_weight:
            return {"pixel": self.pixel(model(lq, *edges), gt)}

        # Clean once for both losses.
        network = as_cleaning(model)
        cleaned = network.clean(lq)
        cleaned_edges = [_clean_edge(network, edge) for edge in edges]
        sr = network.enlarge_cleaned(cleaned, *cleaned_edges)
        # (B·T, 3, sh, sw) → (B, T, 3, h, w)
        small_gt = functional.interpolate(gt.flatten(0, 1), lq.shape[-2:], mode="area")
        small_gt = small_gt.view_as(lq)
        return {
            "pixel": self.pixel(sr, gt),
            "cleaning": self.cleaning_weight * l1(cleaned.float(), small_gt),
        }


def _clean_edge(network: CleaningModel, edge: Edge) -> Edge:
    if not edge.frames:
        return edge
    cleaned = network.clean(torch.stack(edge.frames, 1))
    return replace(edge, frames=cleaned.unbind(1))
