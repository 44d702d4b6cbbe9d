"""Variational optical flow, without learned weights: minimizes an energy from coarse to fine.

    E(u, v) = Σ ψ(features of supp at (x + u, y + v) − features of ref) + α ψ(|∇u|² + |∇v|²),
    ψ(s²) = √(s² + ε²)

    for each level of the image pyramid, from the smallest:
      upsample the flow of the previous level
      repeat: warp supp with the flow; linearize the energy around the flow;
              solve for the change of the flow (B, 2, H, W) by conjugate gradients; add it

RBPN was trained with such flow as an input, computed beforehand by the program of C. Liu. This is
the same energy with the settings of that program, and another solver.

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

# Weight α of the smoothness, for images in [0, 1].
_SMOOTHNESS = 0.012
# Ratio of the sizes of successive pyramid levels.
_LEVEL_RATIO = 0.75
# Smallest side of a pyramid level.
_MIN_PX = 20
# Warps, and linearizations, at each level.
_NUM_WARPS = 7
# Iterations of the solver.
_NUM_ITERATIONS = 30
_EPS = 1e-3
_DERIVATIVE = (1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12)
_LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def estimate_flow(ref: Tensor, supp: Tensor) -> Tensor:
    """Estimate the position in `supp` of each pixel of `ref`.

    Args:
        ref: Reference frames, (B, 3, H, W), RGB in [0, 1].
        supp: Supporting frames, (B, 3, H, W).

    Returns:
        Flow (B, 2, H, W), pixels, dx then dy, without gradients.
    """
    height, width = ref.shape[-2:]
    sizes = _pyramid_sizes(height, width)
    batch = ref.shape[0]
    flow = ref.new_zeros(batch, 2, *sizes[-1])
    for size in reversed(sizes):
        flow = _upsample_flow(flow, size)
        ref_features = _features(resample(ref, size))
        supp_features = _features(resample(supp, size))
        for _ in range(_NUM_WARPS):
            flow = flow + _flow_change(ref_features, supp_features, flow)
    return flow


def _pyramid_sizes(
    height: int,
    width: int,
) -> list[tuple[int, int]]:
    """List the heights and widths of the pyramid levels, from the largest to the smallest."""
    sizes = [(height, width)]
    while min(sizes[-1]) * _LEVEL_RATIO >= _MIN_PX:
        factor = _LEVEL_RATIO ** len(sizes)
        size = (round(height * factor), round(width * factor))
        sizes.append(size)
    return sizes


def _upsample_flow(
    flow: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Resize flow (B, 2, h, w) to a height and width, in size and in value."""
    old_height, old_width = flow.shape[-2:]
    height, width = size
    if (old_height, old_width) == (height, width):
        return flow
    resized = functional.interpolate(
        flow,
        size,
        mode="bilinear",
        align_corners=False,
    )
    # Flow is in pixels, of which there are more now.
    factors = [width / old_width, height / old_height]
    return resized * flow.new_tensor(factors).view(1, 2, 1, 1)


def _features(frame: Tensor) -> Tensor:
    """Compute luma, its two derivatives and two color differences, (B, 5, H, W)."""
    red = frame[:, :1]
    green = frame[:, 1:2]
    blue = frame[:, 2:]
    weight_red, weight_green, weight_blue = _LUMA
    luma = weight_red * red + weight_green * green + weight_blue * blue
    dx, dy = _derivatives(luma)
    return torch.cat([luma, dx, dy, green - red, green - blue], 1)


def _derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate (B, C, H, W) along x and along y."""
    batch, channels, height, width = x.shape
    planes = x.reshape(batch * channels, 1, height, width)
    planes = functional.pad(planes, [2] * 4, mode="replicate")
    taps = x.new_tensor(_DERIVATIVE)
    row_kernel = taps.view(1, 1, 1, 5)
    column_kernel = taps.view(1, 1, 5, 1)
    dx = functional.conv2d(planes[:, :, 2:-2], row_kernel)
    dy = functional.conv2d(planes[..., 2:-2], column_kernel)
    return dx.view_as(x), dy.view_as(x)


def _flow_change(
    ref: Tensor,
    supp: Tensor,
    flow: Tensor,
) -> Tensor:
    """Linearize the energy around the flow, and solve for the change that minimizes it.

    Args:
        ref: Features of the reference frames, (B, 5, H, W).
        supp: Features of the supporting frames, (B, 5, H, W).
        flow: Current estimate, (B, 2, H, W).

    Returns:
        Change of the flow, (B, 2, H, W).
    """
    warped = backward_warp(supp, flow, padding="border")
    dx, dy = _derivatives(0.4 * ref + 0.6 * warped)
    # Pixels whose flow leaves the image give no information.
    dt = (warped - ref) * _ends_inside(flow)

    # Data term: entries of the structure tensor (B, 1, H, W), weighted by ψ' and averaged over the
    # features.
    robust = 0.5 * (dt.square() + _EPS**2).rsqrt()

    def average(product: Tensor) -> Tensor:
        return (robust * product).mean(1, keepdim=True)

    xx = average(dx * dx)
    xy = average(dx * dy)
    yy = average(dy * dy)
    xt = average(dx * dt)
    yt = average(dy * dt)

    # Smoothness term: α ψ'(|∇u|² + |∇v|²), (B, 1, H, W)
    horizontal, vertical = _forward_differences(flow)
    gradient_x = functional.pad(horizontal, (0, 1))
    gradient_y = functional.pad(vertical, (0, 0, 0, 1))
    square = gradient_x.square().sum(1, keepdim=True)
    square = square + gradient_y.square().sum(1, keepdim=True)
    stiffness = _SMOOTHNESS * 0.5 * (square + _EPS**2).rsqrt()

    def system(change: Tensor) -> Tensor:
        """Apply the matrix of the linear system to a change of the flow."""
        u = change[:, :1]
        v = change[:, 1:]
        data_u = xx * u + xy * v
        data_v = xy * u + yy * v
        data = torch.cat([data_u, data_v], 1)
        return data + _smoothness_gradient(change, stiffness)

    right_side = -torch.cat([xt, yt], 1)
    right_side = right_side - _smoothness_gradient(flow, stiffness)
    return _solve(system, right_side)


def _ends_inside(flow: Tensor) -> Tensor:
    """Return a mask (B, 1, H, W) of the pixels whose flow ends inside the image."""
    height, width = flow.shape[-2:]
    columns = torch.arange(width, device=flow.device)
    rows = torch.arange(height, device=flow.device)
    x = columns + flow[:, :1]
    y = rows[:, None] + flow[:, 1:]
    inside_x = (x >= 0) & (x <= width - 1)
    inside_y = (y >= 0) & (y <= height - 1)
    return inside_x & inside_y


def _forward_differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract (B, C, H, W) from its next columns (B, C, H, W − 1) and rows (B, C, H − 1, W)."""
    horizontal = x[..., 1:] - x[..., :-1]
    vertical = x[..., 1:, :] - x[..., :-1, :]
    return horizontal, vertical


def _smoothness_gradient(x: Tensor, stiffness: Tensor) -> Tensor:
    """Differentiate the weighted smoothness of x (B, 2, H, W): differences to the neighbors."""
    horizontal, vertical = _forward_differences(x)
    horizontal = horizontal * stiffness[..., :-1]
    vertical = vertical * stiffness[..., :-1, :]
    # Each difference counts for both of its pixels, with opposite signs.
    to_left = functional.pad(horizontal, (1, 0))
    to_right = functional.pad(horizontal, (0, 1))
    to_top = functional.pad(vertical, (0, 0, 1, 0))
    to_bottom = functional.pad(vertical, (0, 0, 0, 1))
    return to_left - to_right + to_top - to_bottom


def _solve(
    system: Callable[[Tensor], Tensor],
    right_side: Tensor,
) -> Tensor:
    """Solve a linear system by conjugate gradients, independently for each item of the batch.

    Args:
        system: Symmetric positive semidefinite linear map, (B, 2, H, W) → (B, 2, H, W).
        right_side: (B, 2, H, W).

    Returns:
        x (B, 2, H, W), so that system(x) ≈ right_side.

    Source: Hestenes and Stiefel, 1952.
    """
    x = torch.zeros_like(right_side)
    residual = right_side
    direction = right_side
    norm = _dot(residual, residual)
    for _ in range(_NUM_ITERATIONS):
        image = system(direction)
        step = norm / _dot(direction, image).clamp_min(1e-20)
        x = x + step * direction
        residual = residual - step * image
        previous_norm = norm
        norm = _dot(residual, residual)
        direction = residual + norm / previous_norm.clamp_min(1e-20) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute the inner products of (B, 2, H, W), (B, 1, 1, 1)."""
    products = a * b
    return products.sum((1, 2, 3), keepdim=True)
