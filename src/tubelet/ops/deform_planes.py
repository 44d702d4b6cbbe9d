"""Deformable convolution on planes: sampled by PyTorch's own bilinear sampler, and its gradient.

    offset (2·G·K, H', W') ── grid of a strip of lines, or of one tap
    image (C, H, W) ── sampled at the grid, groups as a batch ── columns (C·K, n)
    out (O, n) = weight · columns + bias

Where the channels lie in planes (PyTorch's default layout) and a group has few of them this is faster than rows of a
table: nothing is transposed. And the sampler has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.ops.deform_rows import Taps, multiply

__all__ = ["MAX_CHANNELS", "Gradients", "convolve_planes", "gradients"]

MAX_CHANNELS = 8
"""Channels of a group up to which planes are faster than rows."""
_STRIP_SAMPLES = 1 << 19
"""Samples (pixels · groups · taps) of a strip."""


def convolve_planes(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, taps: Taps
) -> Tensor:
    """Compute the same as `convolve`, for tensors whose channels are planes: (B, O, H', W')."""
    out = x.new_empty(len(x), len(weight), offset.shape[2] * offset.shape[3])
    for image in range(len(x)):
        factors = None if mask is None else mask[image]
        for pixels, columns in _Planes(x[image], taps).strips(offset[image], factors):
            multiply(
                weight.flatten(1),
                columns,
                bias if bias is None else bias[:, None],
                out[image, :, pixels],
            )
    return out.view(len(x), len(weight), *offset.shape[2:])


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of a deformable convolution, in the shapes of its inputs."""

    x: Tensor
    offset: Tensor
    mask: Tensor | None
    weight: Tensor


def gradients(
    upstream: Tensor, x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, taps: Taps
) -> Gradients:
    """Differentiate `convolve`; upstream (B, O, H', W') is the gradient of its result."""
    upstream, offset = upstream.contiguous(), offset.contiguous()
    x_grad = torch.zeros_like(x, memory_format=torch.contiguous_format)
    offset_grad = torch.empty_like(offset)
    mask = None if mask is None else mask.contiguous()
    mask_grad = None if mask is None else torch.empty_like(mask)
    weight_grad = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    for image in range(len(x)):
        planes = _Planes(x[image], taps)
        flat = upstream[image].flatten(1)  # (O, H'·W')
        for tap in range(taps.num):
            sample = planes.sample(planes.of_tap(offset[image], tap), tap)
            pulled = (weight.flatten(2)[..., tap].t() @ flat).view_as(
                sample.values
            )  # gradient of the samples
            if mask is not None and mask_grad is not None:
                (factors,) = planes.of_tap(mask[image], tap).unbind(1)
                planes.of_tap(mask_grad[image], tap)[:, 0] = (pulled * sample.values).sum(1)
                sample.values.mul_(factors[:, None])
                pulled.mul_(factors[:, None])
            weight_grad.flatten(2)[..., tap].add_(flat @ sample.values.flatten(0, 1).flatten(1).t())
            pixels_grad, moved_grad = planes.scatter(sample, pulled)
            x_grad[image] += pixels_grad
            planes.of_tap(offset_grad[image], tap).copy_(moved_grad)
    return Gradients(x_grad, offset_grad, mask_grad, weight_grad)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Samples of one tap."""

    grid: Tensor
    """(G, H', W', 2), x and y, -1 to 1 from the first pixel of the padded image to the last."""
    values: Tensor
    """(G, C/G, H', W')."""
    inside: Tensor | None
    """(G, H', W'): whether the sample counts; None is everywhere."""
    free: Tensor | None
    """(G, 2, H', W'): whether y, x follow their offsets; None is everywhere."""


class _Planes:
    """One image as planes of pixels, sampled a tap at a time by PyTorch's own sampler.

    The image is padded with zeros until positions between -1 and 1 are pixels times a power of two: whole pixels stay
    whole, and other positions are as exact as in pixels.
    """

    def __init__(self, image: Tensor, taps: Taps) -> None:
        self.taps = taps
        _, self.height, self.width = image.shape
        high, wide = (1 << max(size - 2, 0).bit_length() for size in (self.height, self.width))
        image = functional.pad(image, (0, wide + 1 - self.width, 0, high + 1 - self.height))
        self.pixels = image.contiguous().view(taps.groups, -1, high + 1, wide + 1)
        self.step = image.new_tensor([2 / high, 2 / wide]).view(2, 1, 1)
        self.lines, self.columns = taps.lines(image), taps.columns(image)

    def strips(self, offset: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of output pixels and their columns (C·K, n); offset (2·G·K, H', W'), mask (G·K, H', W')."""
        taps, (out_h, out_w) = self.taps, offset.shape[1:]
        num_lines = max(1, min(_STRIP_SAMPLES // (taps.groups * taps.num * out_w), out_h))
        moved = offset.view(taps.groups, taps.num, 2, out_h, out_w)
        step_y, step_x = (2 / (size - 1) for size in self.pixels.shape[2:])
        y = (
            self.lines[:, None] + torch.arange(out_h, dtype=offset.dtype) * taps.stride[0]
        )  # (K, H')
        x = self.columns[:, None] + torch.arange(out_w, dtype=offset.dtype) * taps.stride[1]
        y, x = (
            y[:, :, None].mul(step_y).sub_(1).expand(-1, -1, out_w),
            x[:, None].mul(step_x).sub_(1),
        )
        buffer = offset.new_empty(2, taps.groups, taps.num, num_lines, out_w)
        for start in range(0, out_h, num_lines):
            lines = slice(start, min(start + num_lines, out_h))
            grid = buffer[:, :, :, : lines.stop - start]  # x, y
            torch.add(x, moved[:, :, 1, lines], alpha=step_x, out=grid[0]).clamp_(
                -3, 3
            )  # far is as good as infinite
            torch.add(y[:, lines], moved[:, :, 0, lines], alpha=step_y, out=grid[1]).clamp_(-3, 3)
            columns = functional.grid_sample(
                self.pixels, grid.flatten(2, 3).permute(1, 2, 3, 0), align_corners=True
            )  # (G, C/G, K·lines, W')
            if mask is not None:
                columns = columns.view(taps.groups, -1, taps.num, lines.stop - start, out_w)
                columns.mul_(mask.view(taps.groups, 1, taps.num, out_h, out_w)[:, :, :, lines])
            yield (
                slice(start * out_w, lines.stop * out_w),
                columns.view(-1, (lines.stop - start) * out_w),
            )

    def of_tap(self, planes: Tensor, tap: int) -> Tensor:
        """View what belongs to a tap: (G·K·n, H', W') → (G, n, H', W')."""
        return planes.view(self.taps.groups, self.taps.num, -1, *planes.shape[1:])[:, tap]

    def sample(self, moved: Tensor, tap: int) -> _Sample:
        """Sample where a tap lies, moved by (G, 2, H', W')."""
        out_h, out_w = moved.shape[-2:]
        line = (
            torch.arange(out_h, dtype=moved.dtype, device=moved.device) * self.taps.stride[0]
            + self.lines[tap]
        )
        column = (
            torch.arange(out_w, dtype=moved.dtype, device=moved.device) * self.taps.stride[1]
            + self.columns[tap]
        )
        y, x = moved[:, 0] + line[:, None], moved[:, 1] + column  # (G, H', W')
        inside: Tensor | None = None
        free: Tensor | None = None
        if self.taps.border == "original":
            inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
            free = torch.stack(
                [y < self.height - 1, x < self.width - 1], 1
            )  # beyond, the last pixel is repeated
            y, x = y.clamp_(0, self.height - 1), x.clamp_(0, self.width - 1)
        else:  # further out all is zero
            y, x = y.clamp_(-2, self.height + 1), x.clamp_(-2, self.width + 1)
        grid = torch.stack([x, y]).mul_(self.step.flip(0)[:, None]).sub_(1).permute(1, 2, 3, 0)
        values = functional.grid_sample(self.pixels, grid, align_corners=True)
        return _Sample(
            grid, values if inside is None else values.mul_(inside[:, None]), inside, free
        )

    def scatter(self, sample: _Sample, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the image (C, H, W) and of the offsets (G, 2, H', W').

        Args:
            sample: as `sample` returned it.
            upstream: (G, C/G, H', W'), gradient of its values; overwritten.
        """
        if sample.inside is not None:
            upstream.mul_(sample.inside[:, None])
        pixels_grad, grid_grad = cast(
            tuple[Tensor, Tensor],
            torch.ops.aten.grid_sampler_2d_backward(
                upstream, self.pixels, sample.grid, 0, 0, True, [True, True]
            ),
        )
        moved_grad = grid_grad.permute(0, 3, 1, 2).flip(1) * self.step
        if sample.free is not None:
            moved_grad *= sample.free
        return pixels_grad[..., : self.height, : self.width].flatten(0, 1), moved_grad
