"""Patch alignment: whole patches are moved by their mean flow, so that no pixel is interpolated.

    flow (B, 2, H, W) ── pad to multiples of 8 ── mean of every 8×8 patch ── repeat ── (B, 2, H, W)
    aligned(x, y) = feat at (x, y) + mean flow of the patch around (x, y), nearest pixel

Interpolation would blur features, which a transformer cannot undo; small errors of a position are
within its windows.

Source: Shi et al., Rethinking Alignment in Video Super-Resolution Transformers, NeurIPS 2022,
Sec. 4.2.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from tubelet.layers.windows import pad_to_windows
from tubelet.ops.warp import backward_warp

__all__ = ["PATCH_PX", "align_patches", "patch_mean_flow"]

PATCH_PX = 8
"""Side of a patch in all published networks."""


def patch_mean_flow(flow: Tensor) -> Tensor:
    """Replace the flow of every pixel by the mean of its 8×8 patch: (B, 2, H, W) → same shape."""
    height, width = flow.shape[-2:]
    padded = pad_to_windows(flow, PATCH_PX)
    means = functional.avg_pool2d(padded, PATCH_PX)  # (B, 2, ⌈H/8⌉, ⌈W/8⌉)
    repeated = functional.interpolate(means, scale_factor=float(PATCH_PX), mode="nearest")
    return repeated[..., :height, :width]


def align_patches(feat: Tensor, flow: Tensor) -> Tensor:
    """Move every 8×8 patch of a frame to where its mean flow points.

    The flow gets no gradient: a position that is rounded does not change with it.

    Args:
        feat: Features of the other frame, (B, C, H, W).
        flow: Flow from this frame to the other one, (B, 2, H, W), pixels.

    Returns:
        (B, C, H, W): pixels of `feat`, and zeros where the flow leaves the image.
    """
    return backward_warp(feat, patch_mean_flow(flow), mode="nearest")
