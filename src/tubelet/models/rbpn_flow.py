"""Optical flow without learned weights: the least of an energy, found from coarse to fine.

    E(u, v) = Σ ψ(features of supp at (x + u, y + v) − features of ref) + α ψ(|∇u|² + |∇v|²),   ψ(s²) = √(s² + ε²)

      for every size, from the smallest on: enlarge the flow; a few times over:
        warp supp with the flow; linearise; solve for the change of the flow (B, 2, H, W) by conjugate gradients

RBPN was trained with such flow as a part of its input, computed beforehand by C. Liu's program; this is the same energy
with that program's settings, solved in another way.

Source: Brox et al., ECCV 2004, Secs. 2 and 3; Liu, "Beyond Pixels", PhD thesis, MIT, 2009, App. A.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops.resize import resample
from tubelet.ops.warp import backward_warp

__all__ = ["estimate_flow"]

_SMOOTHNESS = 0.012  # α, for images in [0, 1]
_RATIO = 0.75  # of the sizes of two levels
_MIN_PX = 20  # smaller images are not made
_WARPS = 7  # linearisations a level
_ITERATIONS = 30  # of the solver
_EPS = 1e-3
_DERIVATIVE = (1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12)
_LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def estimate_flow(ref: Tensor, supp: Tensor) -> Tensor:
    """Estimate where each pixel of `ref` lies in `supp`.

    Args:
        ref: (B, 3, H, W), RGB in [0, 1].
        supp: (B, 3, H, W), the other frame.

    Returns:
        (B, 2, H, W), pixels, dx then dy; no gradients.
    """
    height, width = ref.shape[-2:]
    sizes = [(height, width)]
    while min(sizes[-1]) * _RATIO >= _MIN_PX:
        factor = _RATIO ** len(sizes)
        sizes.append((round(height * factor), round(width * factor)))
    flow = ref.new_zeros(ref.shape[0], 2, *sizes[-1])
    for size in reversed(sizes):
        flow = _enlarge(flow, size)
        features = [_features(resample(frame, size)) for frame in (ref, supp)]
        for _ in range(_WARPS):
            flow = flow + _change(features[0], features[1], flow)
    return flow


def _enlarge(flow: Tensor, size: tuple[int, int]) -> Tensor:
    if flow.shape[-2:] == size:
        return flow
    factors = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]]).view(1, 2, 1, 1)
    return functional.interpolate(flow, size, mode="bilinear", align_corners=False) * factors


def _features(frame: Tensor) -> Tensor:
    """Describe a frame (B, 3, H, W): luma, its two derivatives, and two differences of colors, (B, 5, H, W)."""
    red, green, blue = frame[:, :1], frame[:, 1:2], frame[:, 2:]
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return torch.cat([luma, *_derive(luma), green - red, green - blue], 1)


def _derive(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate (B, C, H, W) along x and along y."""
    batch, channels, height, width = x.shape
    planes = functional.pad(
        x.reshape(batch * channels, 1, height, width), [2] * 4, mode="replicate"
    )
    taps = x.new_tensor(_DERIVATIVE)
    dx = functional.conv2d(planes[:, :, 2:-2], taps.view(1, 1, 1, 5))
    dy = functional.conv2d(planes[..., 2:-2], taps.view(1, 1, 5, 1))
    return dx.view_as(x), dy.view_as(x)


def _change(ref: Tensor, supp: Tensor, flow: Tensor) -> Tensor:
    """Linearise the energy around `flow` and find the change (B, 2, H, W) that lowers it."""
    warped = backward_warp(supp, flow, padding="border")
    dx, dy = _derive(0.4 * ref + 0.6 * warped)
    dt = (warped - ref) * _lands_inside(flow)  # what leaves the image says nothing
    robust = 0.5 * (dt.square() + _EPS**2).rsqrt()
    data = [
        (robust * product).mean(1, keepdim=True)
        for product in (dx * dx, dx * dy, dy * dy, dx * dt, dy * dt)
    ]
    xx, xy, yy, xt, yt = data
    horizontal, vertical = _steps(flow)
    slope = functional.pad(horizontal, (0, 1)).square().sum(1, keepdim=True)
    slope = slope + functional.pad(vertical, (0, 0, 0, 1)).square().sum(1, keepdim=True)
    stiffness = _SMOOTHNESS * 0.5 * (slope + _EPS**2).rsqrt()  # (B, 1, H, W)

    def apply(change: Tensor) -> Tensor:
        u, v = change[:, :1], change[:, 1:]
        return torch.cat([xx * u + xy * v, xy * u + yy * v], 1) + _roughness(change, stiffness)

    return _solve(apply, -torch.cat([xt, yt], 1) - _roughness(flow, stiffness))


def _lands_inside(flow: Tensor) -> Tensor:
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[:, :1]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the next column (B, C, H, W - 1) and to the next line (B, C, H - 1, W)."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def _roughness(x: Tensor, stiffness: Tensor) -> Tensor:
    """Differentiate the weighted smoothness of x (B, 2, H, W): how far each value is from its neighbors."""
    horizontal, vertical = _steps(x)
    horizontal, vertical = horizontal * stiffness[..., :-1], vertical * stiffness[..., :-1, :]
    out = functional.pad(horizontal, (1, 0)) - functional.pad(horizontal, (0, 1))
    return out + functional.pad(vertical, (0, 0, 1, 0)) - functional.pad(vertical, (0, 0, 0, 1))


def _solve(apply: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve apply(x) = right (B, 2, H, W) by conjugate gradients (Hestenes and Stiefel, 1952), each clip apart."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2, 3), keepdim=True)

    x, residue, direction = torch.zeros_like(right), right, right
    norm = dot(residue, residue)
    for _ in range(_ITERATIONS):
        image = apply(direction)
        step = norm / dot(direction, image).clamp_min(1e-20)
        x, residue = x + step * direction, residue - step * image
        before, norm = norm, dot(residue, residue)
        direction = residue + norm / before.clamp_min(1e-20) * direction
    return x
