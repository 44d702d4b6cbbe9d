"""Training losses; each maps sr and gt, or a flow and the true one, of one shape to a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

__all__ = ["LOSSES", "Loss", "LossName", "charbonnier", "end_point_error", "l1", "luma", "mse"]

LossName = Literal["charbonnier", "l1", "mse"]
Loss = Callable[[Tensor, Tensor], Tensor]


def charbonnier(sr: Tensor, gt: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(error² + eps²): L1 that is smooth at 0.

    Args:
        sr: any shape.
        gt: the same shape.
        eps: width of the smooth part, in units of the pixels.

    Returns:
        scalar.

    Source: Charbonnier et al., ICIP 1994; in VSR since Lai et al., CVPR 2017.
    """
    return ((sr - gt).square() + eps**2).sqrt().mean()


def l1(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean absolute error: scalar, for two tensors of one shape."""
    return (sr - gt).abs().mean()


def mse(sr: Tensor, gt: Tensor) -> Tensor:
    """Mean squared error, which PSNR measures: scalar, for two tensors of one shape."""
    return (sr - gt).square().mean()


def end_point_error(flow: Tensor, gt: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean distance between where a flow points and where it should.

    Args:
        flow: (B, 2, H, W), pixels.
        gt: the true flow, the same shape.
        weight: (B, 1, H, W), of each pixel; where all are 0, so is the error. Default: all alike.

    Returns:
        scalar, pixels. The gradient is finite where the two agree.

    Source: Otte and Nagel, ECCV 1994; Baker et al., IJCV 2011, Sec. 4.1.
    """
    distance = ((flow - gt).square().sum(1, keepdim=True) + 1e-12).sqrt()
    if weight is None:
        return distance.mean()
    return (distance * weight).sum() / weight.sum().clamp_min(1e-12)


def luma(x: Tensor) -> Tensor:
    """Weigh R'G'B' to full-range BT.601 luma: (..., 3, H, W) to (..., 1, H, W)."""
    red, green, blue = x.unbind(-3)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)


LOSSES: dict[LossName, Loss] = {"charbonnier": charbonnier, "l1": l1, "mse": mse}
