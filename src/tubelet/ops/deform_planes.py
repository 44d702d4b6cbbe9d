"""Deformable convolution on planes: sampled by PyTorch's own bilinear sampler, and its gradient.

    offset (2·G·K, H', W') ── grid of a strip of lines, or of one tap
    image (C, H, W) ── sampled at the grid, groups as a batch ── columns (C·K, n)
    out (O, n) = weight · columns + bias

For images in planes (PyTorch's default layout) with few channels per group this is faster than
gathering rows of a table: nothing is transposed. The sampler also has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops.deform_rows import multiply
from tubelet.ops.row_sampler import Taps

__all__ = ["MAX_CHANNELS", "STRIP_SAMPLES", "Gradients", "convolve_planes", "gradients"]

MAX_CHANNELS = 8
"""Channels of a group up to which planes are faster than rows."""
STRIP_SAMPLES = 1 << 19
"""Samples (pixels · groups · taps) of a strip."""


def convolve_planes(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
) -> Tensor:
    """Compute the same as `deform_rows.convolve`, for tensors whose channels are planes.

    Args:
        x: (B, C, H, W).
        offset: (B, 2·G·K, H', W').
        mask: (B, G·K, H', W'); None: no factors.
        weight: (O, C, kh, kw).
        bias: (O,).
        taps: Geometry of the kernel.

    Returns:
        (B, O, H', W').
    """
    batch = len(x)
    out_channels = len(weight)
    out_h, out_w = offset.shape[2:]
    out = x.new_empty(batch, out_channels, out_h * out_w)
    for image in range(batch):
        planes = _Planes(x[image], taps)
        image_mask = None if mask is None else mask[image]
        for pixels, columns in planes.strips(offset[image], image_mask):
            multiply(
                weight.flatten(1),
                columns,
                None if bias is None else bias[:, None],
                out[image, :, pixels],
            )
    return out.view(batch, out_channels, out_h, out_w)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of a deformable convolution, in the shapes of its inputs."""

    x: Tensor
    offset: Tensor
    mask: Tensor | None
    weight: Tensor


def gradients(
    upstream: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    taps: Taps,
) -> Gradients:
    """Differentiate a deformable convolution, one tap at a time.

    Args:
        upstream: Gradient of its result, (B, O, H', W').
        x: (B, C, H, W).
        offset: (B, 2·G·K, H', W').
        mask: (B, G·K, H', W'); None: no factors.
        weight: (O, C, kh, kw).
        taps: Geometry of the kernel.
    """
    upstream = upstream.contiguous()
    offset = offset.contiguous()
    mask = None if mask is None else mask.contiguous()
    x_grad = torch.zeros_like(x, memory_format=torch.contiguous_format)
    offset_grad = torch.empty_like(offset)
    mask_grad = None if mask is None else torch.empty_like(mask)
    weight_grad = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    for image in range(len(x)):
        planes = _Planes(x[image], taps)
        # (O, H'·W')
        out_grad = upstream[image].flatten(1)
        for tap in range(taps.num):
            sample = planes.sample(planes.of_tap(offset[image], tap), tap)
            # (O, C) → (C, O), then (G, C/G, H', W').
            tap_weight = weight.flatten(2)[..., tap]
            samples_grad = (tap_weight.t() @ out_grad).view_as(sample.values)

            if mask is not None and mask_grad is not None:
                # (G, H', W')
                factors = planes.of_tap(mask[image], tap)[:, 0]
                factors_grad = planes.of_tap(mask_grad[image], tap)[:, 0]
                factors_grad.copy_((samples_grad * sample.values).sum(1))
                # From here on, the samples times the mask, and the gradient of the plain samples.
                sample.values.mul_(factors[:, None])
                samples_grad.mul_(factors[:, None])

            # (C, H'·W')
            tap_columns = sample.values.flatten(0, 1).flatten(1)
            weight_grad.flatten(2)[..., tap].add_(out_grad @ tap_columns.t())
            image_grad, tap_offset_grad = planes.scatter(sample, samples_grad)
            x_grad[image] += image_grad
            planes.of_tap(offset_grad[image], tap).copy_(tap_offset_grad)
    return Gradients(x_grad, offset_grad, mask_grad, weight_grad)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Samples of one tap."""

    grid: Tensor
    """(G, H', W', 2), x and y, -1 to 1 from the first pixel of the padded image to the last."""
    values: Tensor
    """(G, C/G, H', W')."""
    inside: Tensor | None
    """(G, H', W'): True where the sample counts; None: everywhere."""
    free: Tensor | None
    """(G, 2, H', W'): True where y, x follow their offsets; None: everywhere."""


class _Planes:
    """One image as planes of pixels, sampled by PyTorch's own sampler.

    The sampler's positions are -1 to 1. The image is padded with zeros until that is a power of two
    times a pixel: integer positions remain exact, and others are as exact as in pixels.
    """

    def __init__(self, image: Tensor, taps: Taps) -> None:
        self.taps = taps
        _, self.height, self.width = image.shape
        # Distance in pixels from the first pixel to the last of the padded image.
        span_y = _power_of_two_from(self.height - 1)
        span_x = _power_of_two_from(self.width - 1)
        missing_lines = span_y + 1 - self.height
        missing_columns = span_x + 1 - self.width
        image = functional.pad(image, (0, missing_columns, 0, missing_lines))
        # (G, C/G, H + missing lines, W + missing columns)
        self.pixels = image.contiguous().view(taps.groups, -1, span_y + 1, span_x + 1)
        # Grid units of a pixel, y and x: (2, 1, 1).
        self.step = image.new_tensor([2 / span_y, 2 / span_x]).view(2, 1, 1)
        self.lines = taps.lines(image)
        self.columns = taps.columns(image)

    def strips(self, offset: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Sample all taps, a strip of output lines at a time.

        Args:
            offset: (2·G·K, H', W').
            mask: (G·K, H', W'); None: no factors.

        Yields:
            A range of n output pixels and their columns (C·K, n).
        """
        taps = self.taps
        out_h, out_w = offset.shape[1:]
        samples_per_line = taps.groups * taps.num * out_w
        num_lines = max(1, min(STRIP_SAMPLES // samples_per_line, out_h))
        moved = offset.view(taps.groups, taps.num, 2, out_h, out_w)

        # Positions of the taps before they are moved, in pixels: (K, H') and (K, W').
        stride_y, stride_x = taps.stride
        out_y = torch.arange(out_h, dtype=offset.dtype) * stride_y
        out_x = torch.arange(out_w, dtype=offset.dtype) * stride_x
        y = self.lines[:, None] + out_y
        x = self.columns[:, None] + out_x
        # In grid units, which begin at -1: (K, H', W') and (K, 1, W').
        padded_h, padded_w = self.pixels.shape[2:]
        step_y = 2 / (padded_h - 1)
        step_x = 2 / (padded_w - 1)
        y = y[:, :, None].mul(step_y).sub_(1)
        y = y.expand(-1, -1, out_w)
        x = x[:, None].mul(step_x).sub_(1)

        # x and y of the samples of a strip.
        buffer = offset.new_empty(2, taps.groups, taps.num, num_lines, out_w)
        for start in range(0, out_h, num_lines):
            stop = min(start + num_lines, out_h)
            lines = slice(start, stop)
            grid = buffer[:, :, :, : stop - start]
            # Any position outside samples zero, so clamping infinite ones changes nothing.
            torch.add(x, moved[:, :, 1, lines], alpha=step_x, out=grid[0])
            grid[0].clamp_(-3, 3)
            torch.add(y[:, lines], moved[:, :, 0, lines], alpha=step_y, out=grid[1])
            grid[1].clamp_(-3, 3)
            # (G, C/G, K·lines, W')
            columns = functional.grid_sample(
                self.pixels,
                grid.flatten(2, 3).permute(1, 2, 3, 0),
                align_corners=True,
            )
            if mask is not None:
                columns = columns.view(taps.groups, -1, taps.num, stop - start, out_w)
                factors = mask.view(taps.groups, 1, taps.num, out_h, out_w)
                columns.mul_(factors[:, :, :, lines])
            pixels = slice(start * out_w, stop * out_w)
            yield pixels, columns.view(-1, (stop - start) * out_w)

    def of_tap(self, planes: Tensor, tap: int) -> Tensor:
        """View the planes of a tap: (G·K·n, H', W') → (G, n, H', W')."""
        size = planes.shape[1:]
        by_group_and_tap = planes.view(self.taps.groups, self.taps.num, -1, *size)
        return by_group_and_tap[:, tap]

    def sample(self, moved: Tensor, tap: int) -> _Sample:
        """Sample the image at a tap that is moved by offsets (G, 2, H', W')."""
        out_h, out_w = moved.shape[-2:]
        stride_y, stride_x = self.taps.stride
        out_y = torch.arange(out_h, dtype=moved.dtype, device=moved.device)
        out_x = torch.arange(out_w, dtype=moved.dtype, device=moved.device)
        # Positions of the tap before it is moved: (H',) and (W',).
        line = out_y * stride_y + self.lines[tap]
        column = out_x * stride_x + self.columns[tap]
        # Positions in pixels: (G, H', W').
        y = moved[:, 0] + line[:, None]
        x = moved[:, 1] + column

        inside: Tensor | None = None
        free: Tensor | None = None
        if self.taps.border == "original":
            inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
            # Beyond the last pixel, it is repeated: the offset has no influence.
            free = torch.stack([y < self.height - 1, x < self.width - 1], 1)
            y.clamp_(0, self.height - 1)
            x.clamp_(0, self.width - 1)
        else:
            # Further out all is zero.
            y.clamp_(-2, self.height + 1)
            x.clamp_(-2, self.width + 1)

        # From pixels to grid units: (2, G, H', W'), x and y.
        grid = torch.stack([x, y])
        step_xy = self.step.flip(0)[:, None]
        grid.mul_(step_xy).sub_(1)
        # (G, H', W', 2)
        grid = grid.permute(1, 2, 3, 0)
        values = functional.grid_sample(self.pixels, grid, align_corners=True)
        if inside is not None:
            values.mul_(inside[:, None])
        return _Sample(grid, values, inside, free)

    def scatter(self, sample: _Sample, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate the gradient of samples to the image and to the offsets.

        Args:
            sample: Result of `sample`.
            upstream: (G, C/G, H', W'), gradient of its values; overwritten.

        Returns:
            Gradients of the image (C, H, W) and of the offsets (G, 2, H', W').
        """
        if sample.inside is not None:
            upstream.mul_(sample.inside[:, None])
        bilinear = 0
        zeros_outside = 0
        pixels_grad, grid_grad = cast(
            tuple[Tensor, Tensor],
            torch.ops.aten.grid_sampler_2d_backward(
                upstream,
                self.pixels,
                sample.grid,
                bilinear,
                zeros_outside,
                True,  # align_corners
                [True, True],  # gradients of both
            ),
        )
        # (G, H', W', 2), x and y → (G, 2, H', W'), y and x.
        offset_grad = grid_grad.permute(0, 3, 1, 2).flip(1) * self.step
        if sample.free is not None:
            offset_grad *= sample.free
        # Without the padding.
        image_grad = pixels_grad[..., : self.height, : self.width].flatten(0, 1)
        return image_grad, offset_grad


def _power_of_two_from(value: int) -> int:
    """Return the smallest power of two that is not below `value`, at least 1."""
    return 1 << max(value - 1, 0).bit_length()
