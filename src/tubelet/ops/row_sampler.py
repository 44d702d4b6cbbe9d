"""Sample an image between its pixels: weighted sums of rows of a table, strip by strip.

    image (C, H, W) ── table of pixels and groups (H·W·G, C/G), with zeros around the image
    strip of n output pixels:
      positions y, x (n, G·K) ── 4 rows and 4 weights (bilinear · mask) of each sample
      samples (n, G·K, C/G) = embedding_bag(table, rows, weights)   one pass, nothing stored 4 times

K taps, G groups of channels with their own offsets. A strip stays in the cache. Scratch memory is
allocated once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["STRIP_SAMPLES", "Border", "RowSampler", "Strip", "Taps"]

Border = Literal["zeros", "original"]
STRIP_SAMPLES = 1 << 17
"""Samples (pixels · groups · taps) of a strip: some megabytes of scratch memory, and enough work
for each thread."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Geometry of a kernel before its taps are moved; pairs are (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    """Groups of channels that have their own offsets."""
    border: Border

    @property
    def num(self) -> int:
        """Number of taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def lines(self, like: Tensor) -> Tensor:
        """Vertical position of each tap (K,), relative to the output pixel times the stride."""
        kernel_h, kernel_w = self.kernel
        line = torch.arange(kernel_h, dtype=like.dtype, device=like.device)
        line = line * self.dilation[0] - self.padding[0]
        return line.repeat_interleave(kernel_w)

    def columns(self, like: Tensor) -> Tensor:
        """Horizontal position of each tap (K,), relative to the output pixel times the stride."""
        kernel_h, kernel_w = self.kernel
        column = torch.arange(kernel_w, dtype=like.dtype, device=like.device)
        column = column * self.dilation[1] - self.padding[1]
        return column.repeat(kernel_h)


@dataclass(frozen=True, slots=True)
class Strip:
    """Displacements and factors of the samples of n output pixels.

    The groups form F equal parts, each with an origin to which its offsets are relative.
    """

    offset: Tensor
    """(n, 2·G·K), dy and dx of each sample."""
    gain: float
    """Factor of the offsets."""
    origin_y: Tensor | None
    """(n, F), relative to the position of the output pixel; None: zero."""
    origin_x: Tensor | None
    mask: Tensor | None
    """(n, G·K), factors of the samples; None: no factors."""


class RowSampler:
    """Sampler of one image after the other, with scratch memory that is allocated once.

    Positions count from the zeros around the image: pixel (0, 0) has the position (1, 1).

    Args:
        image_size: (C, H, W).
        taps: Geometry of the kernel.
        out_size: (H', W'), output pixels.
        like: Tensor on the device of the images; they are sampled in its number format, or in
            float32 if that has fewer digits.
        strip_samples: Samples (pixels · groups · taps) of a strip; None: `STRIP_SAMPLES`.

    Attributes:
        pixels: The image to sample, (H, W, C), to be written into.
    """

    def __init__(
        self,
        image_size: tuple[int, int, int],
        taps: Taps,
        out_size: tuple[int, int],
        *,
        like: Tensor,
        strip_samples: int | None = None,
    ) -> None:
        channels, self.height, self.width = image_size
        self.taps = taps
        self.out_size = out_size
        self.group_channels = channels // taps.groups
        # A model for all tensors here, in float32 or better.
        like = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
        # Positions reach H + 1, and the second line of their pairs H + 2.
        self.table = like.new_zeros(self.height + 3, self.width + 3, channels)
        self.pixels = self.table[1 : self.height + 1, 1 : self.width + 1]

        # Scratch memory of a strip of n pixels, (n, G·K) each.
        num_samples = taps.groups * taps.num
        num_pixels = out_size[0] * out_size[1]
        strip_pixels = (strip_samples or STRIP_SAMPLES) // num_samples
        self.max_pixels = max(1, min(strip_pixels, num_pixels))
        shape = (self.max_pixels, num_samples)
        self.y = like.new_empty(shape)
        self.x = like.new_empty(shape)
        self.lower_weight = like.new_empty(shape)
        self.upper_weight = like.new_empty(shape)
        device = like.device
        self.line = torch.empty(shape, dtype=torch.int32, device=device)
        self.row = torch.empty(shape, dtype=torch.int32, device=device)
        self.row_below = torch.empty(shape, dtype=torch.int32, device=device)
        self.row_below_right = torch.empty(shape, dtype=torch.int32, device=device)

        # The four rows and weights of each sample.
        self.rows = torch.empty(*shape, 4, dtype=torch.int32, device=device)
        self.weights = like.new_empty(*shape, 4)

        # Group and position of each tap of each group: (G·K,).
        groups = torch.arange(taps.groups, dtype=torch.int32, device=device)
        self.group = groups.repeat_interleave(taps.num)
        self.tap_y = taps.lines(self.y).repeat(taps.groups) + 1
        self.tap_x = taps.columns(self.x).repeat(taps.groups) + 1
        # Position of each output pixel: (H'·W', 1).
        out_h, out_w = out_size
        out_y = torch.arange(out_h, dtype=like.dtype, device=device) * taps.stride[0]
        out_x = torch.arange(out_w, dtype=like.dtype, device=device) * taps.stride[1]
        self.out_y = out_y.repeat_interleave(out_w)[:, None]
        self.out_x = out_x.repeat(out_h)[:, None]

    def fill(self, image: Tensor) -> None:
        """Copy the next image (C, H, W) into the table."""
        self.pixels.copy_(image.permute(1, 2, 0))

    def strips(self) -> Iterator[slice]:
        """Yield ranges of output pixels."""
        num_pixels = self.out_size[0] * self.out_size[1]
        for start in range(0, num_pixels, self.max_pixels):
            yield slice(start, min(start + self.max_pixels, num_pixels))

    def sample(self, strip: Strip, pixels: slice) -> Tensor:
        """Return the samples of a strip, (n, G·K·C/G)."""
        rows, weights = self._locate(strip, pixels)
        num_rows = 4
        sampled = _sum_rows(
            self.table.view(-1, self.group_channels),
            rows,
            weights,
            num_rows,
        )
        return sampled.view(len(rows), -1)

    def sum_samples(self, strip: Strip, pixels: slice, factors: Tensor) -> Tensor:
        """Sum all samples of each pixel, times factors, without storing any of them.

        Args:
            strip: Displacements of the samples.
            pixels: Range of n output pixels.
            factors: (n, heads, G·K): the channels of each group are `heads` equal parts with
                factors of their own.

        Returns:
            (n, heads · C/G/heads), the sums over groups and taps.
        """
        rows, weights = self._locate(strip, pixels)
        num_pixels, heads, num_samples = factors.shape
        # A row of the table is `heads` shorter rows: (n, heads, G·K, 4).
        head = torch.arange(heads, dtype=rows.dtype, device=rows.device)
        head_rows = torch.add(head[:, None, None], rows[:, None], alpha=heads)
        head_weights = weights[:, None] * factors[..., None]
        sums = _sum_rows(
            self.table.view(-1, self.group_channels // heads),
            head_rows,
            head_weights,
            4 * num_samples,
        )
        return sums.view(num_pixels, -1)

    def _locate(self, strip: Strip, pixels: slice) -> tuple[Tensor, Tensor]:
        """Find the four rows of each sample, and their weights: (n, G·K, 4) each."""
        num_pixels = len(strip.offset)
        y, x = self._positions(strip, pixels)
        mask = strip.mask
        if self.taps.border == "original":
            mask = self._clamp_to_image(y, x, mask)
        self._write_rows(y, x)
        self._write_weights(y, x, mask)
        return self.rows[:num_pixels], self.weights[:num_pixels]

    def _positions(self, strip: Strip, pixels: slice) -> tuple[Tensor, Tensor]:
        """Compute the positions y, x (n, G·K) of the samples, within the zeros around the image."""
        num_pixels = len(strip.offset)
        y = self.y[:num_pixels]
        x = self.x[:num_pixels]
        # (n, G·K, 2), dy and dx.
        moved = strip.offset.view(num_pixels, -1, 2)

        out_y = self.out_y[pixels]
        origin_y = out_y if strip.origin_y is None else strip.origin_y + out_y
        _add_parts(origin_y, self.tap_y, out=y)
        y.add_(moved[..., 0], alpha=strip.gain)

        out_x = self.out_x[pixels]
        origin_x = out_x if strip.origin_x is None else strip.origin_x + out_x
        _add_parts(origin_x, self.tap_x, out=x)
        x.add_(moved[..., 1], alpha=strip.gain)

        # The original border needs to know which positions are outside.
        if self.taps.border != "original":
            y.clamp_(0, self.height + 1)
            x.clamp_(0, self.width + 1)
        return y, x

    def _clamp_to_image(self, y: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Move positions (n, G·K) into the image, in place.

        Returns:
            The mask, or ones, with zeros where the positions were outside: (n, G·K).
        """
        inside = (y >= 1) & (y < self.height + 1) & (x >= 1) & (x < self.width + 1)
        y.clamp_(1, self.height)
        x.clamp_(1, self.width)
        return inside.to(y.dtype) if mask is None else inside * mask

    def _write_rows(self, y: Tensor, x: Tensor) -> None:
        """Write the four rows of the table around each position.

        The row of a pixel and group is (line · (W + 3) + column) · G + group.

        Args:
            y: (n, G·K), replaced by its fraction.
            x: (n, G·K), replaced by its fraction.
        """
        num_pixels = len(y)
        line = self.line[:num_pixels]
        row = self.row[:num_pixels]
        row_below = self.row_below[:num_pixels]
        row_below_right = self.row_below_right[:num_pixels]
        column_step = self.taps.groups
        line_step = (self.width + 3) * self.taps.groups

        # Conversion to integers truncates, which is floor: positions are not negative.
        line.copy_(y)
        row.copy_(x)
        y.frac_()
        x.frac_()

        torch.add(self.group, row, alpha=column_step, out=row)
        row.add_(line, alpha=line_step)
        # NaN becomes an arbitrary integer: keep all four rows within the table.
        max_row = (self.height + 1) * line_step + (self.width + 2) * column_step - 1
        row.clamp_(0, max_row)
        # `line` is free again.
        row_right = torch.add(row, column_step, out=line)
        torch.add(row, line_step, out=row_below)
        torch.add(row_below, column_step, out=row_below_right)

        # Integers viewed as floats, for which `_interleave` is written; they are only copied.
        as_float = torch.float32
        _interleave(
            row.view(as_float),
            row_right.view(as_float),
            row_below.view(as_float),
            row_below_right.view(as_float),
            out=self.rows[:num_pixels].view(as_float),
        )

    def _write_weights(self, y: Tensor, x: Tensor, mask: Tensor | None) -> None:
        """Write the four weights of each sample.

        Args:
            y: (n, G·K), fraction of the position; overwritten.
            x: (n, G·K), fraction of the position; overwritten.
            mask: (n, G·K), factors of the samples; None: no factors.
        """
        num_pixels = len(y)
        lower = self.lower_weight[:num_pixels]
        upper = self.upper_weight[:num_pixels]
        # mask · y and mask · (1 - y)
        if mask is None:
            lower.copy_(y)
            torch.sub(1, y, out=upper)
        else:
            torch.mul(y, mask, out=lower)
            torch.sub(mask, lower, out=upper)
        # Each times x and 1 - x, in buffers that are free again.
        upper_right = torch.mul(upper, x, out=y)
        upper_left = upper.sub_(upper_right)
        lower_right = torch.mul(lower, x, out=x)
        lower_left = lower.sub_(lower_right)
        _interleave(
            upper_left,
            upper_right,
            lower_left,
            lower_right,
            out=self.weights[:num_pixels],
        )


def _sum_rows(table: Tensor, rows: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """Sum weighted rows of a table.

    Args:
        table: (number of rows, C').
        rows: Indexes of rows, int32.
        weights: Weights of the rows, in the shape of `rows`.
        num_rows: Number of adjacent rows of each sum.

    Returns:
        (number of sums, C').
    """
    # Where the rows of each sum begin, and where those of the last end.
    bags = torch.arange(
        0,
        rows.numel() + 1,
        num_rows,
        dtype=rows.dtype,
        device=rows.device,
    )
    sum_mode = 0
    sums, _, _, _ = torch.embedding_bag(
        table,
        rows.view(-1),
        bags,
        False,  # scale_grad_by_freq
        sum_mode,
        False,  # sparse
        weights.view(-1),
        True,  # include_last_offset: `bags` has the end of the last bag, too
    )
    return sums


def _add_parts(origin: Tensor, tap: Tensor, out: Tensor) -> None:
    """Write the position of each tap plus the origin of its part of the groups.

    Args:
        origin: (n, F).
        tap: (G·K,), F equal parts.
        out: (n, G·K).
    """
    num_parts = origin.shape[1]
    torch.add(
        origin[:, :, None],
        tap.view(num_parts, -1),
        out=out.view(len(out), num_parts, -1),
    )


def _interleave(
    first: Tensor,
    second: Tensor,
    third: Tensor,
    fourth: Tensor,
    out: Tensor,
) -> None:
    """Write four tensors (n, m) next to each other into (n, m, 4).

    As pairs: complex numbers are stored in half as many strided steps, three times as fast.
    """
    pairs = torch.view_as_complex(out.view(*out.shape[:2], 2, 2))
    torch.complex(first, second, out=pairs[..., 0])
    torch.complex(third, fourth, out=pairs[..., 1])
