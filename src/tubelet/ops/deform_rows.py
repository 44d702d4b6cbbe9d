"""Deformable convolution on rows: samples are weighted sums of rows of a table, strip by strip.

    x (B, C, H, W) ── table of pixels and groups (H·W·G, C/G), with zeros around the image
    strip of n output pixels:
      positions y, x (n, G·K) ── 4 rows and 4 weights (bilinear · mask) of each sample
      columns (n, G·K·C/G) = embedding_bag(table, rows, weights)   one pass, nothing stored 4 times
      out (n, O) = columns · weight + bias

A strip stays in the cache. Scratch memory is allocated once per call. Features in bfloat16 are
sampled in float32, and multiplied in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "STRIP_SAMPLES",
    "Border",
    "Reader",
    "Strip",
    "Taps",
    "convolve",
    "multiply",
    "read_offsets",
    "rows_of",
]

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


Reader = Callable[[int, slice], Strip]
"""Reads the strip of an image of the batch and of a range of its output pixels."""


def rows_of(plane: Tensor, pixels: slice, scratch: Tensor | None = None) -> Tensor:
    """Read pixels of an image as rows.

    Args:
        plane: (C, H, W).
        pixels: Range of n pixels.
        scratch: (at least n, C), memory for rows that must be copied; None allocates.

    Returns:
        (n, C), the values of a pixel adjacent in memory.
    """
    rows = plane.permute(1, 2, 0).flatten(0, 1)[pixels]
    if rows.stride(1) == 1:
        return rows
    if scratch is None:
        return rows.contiguous()
    return scratch[: len(rows)].copy_(rows)


def read_offsets(offset: Tensor, mask: Tensor | None) -> Reader:
    """Return a reader of offsets (B, 2·G·K, H', W') and a mask (B, G·K, H', W')."""

    def read(image: int, pixels: slice) -> Strip:
        strip_mask = None if mask is None else rows_of(mask[image], pixels)
        return Strip(
            offset=rows_of(offset[image], pixels),
            gain=1.0,
            origin_y=None,
            origin_x=None,
            mask=strip_mask,
        )

    return read


def convolve(
    x: Tensor,
    read: Reader,
    out_size: tuple[int, int],
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
) -> Tensor:
    """Convolve with moved taps.

    Args:
        x: (B, C, H, W), float32 or bfloat16.
        read: Reader of the offsets and masks, float32.
        out_size: (H', W').
        weight: (O, C, kh, kw).
        bias: (O,).
        taps: Geometry of the kernel.

    Returns:
        (B, O, H', W') in the layout and number format of `x`.
    """
    batch, channels, _, _ = x.shape
    out_channels = len(weight)
    num_pixels = out_size[0] * out_size[1]
    group_channels = channels // taps.groups
    channels_last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)

    # (O, G, C/G, K) → (G·K·C/G, O), in the order of the columns.
    matrix = weight.view(-1, taps.groups, group_channels, taps.num)
    matrix = matrix.permute(1, 3, 2, 0).reshape(-1, out_channels).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if channels_last:
        out = x.new_empty((batch, num_pixels, out_channels))
    else:
        out = x.new_empty((batch, out_channels, num_pixels))

    sampler = _Sampler(x, taps, out_size)
    for image in range(batch):
        sampler.fill(x[image])
        for pixels in sampler.strips():
            columns = sampler.sample(read(image, pixels), pixels).to(x.dtype)
            if channels_last:
                multiply(columns, matrix, bias, out[image, pixels])
            else:
                multiply(
                    matrix.t(),
                    columns.t(),
                    None if bias is None else bias[:, None],
                    out[image, :, pixels],
                )

    if channels_last:
        return out.view(batch, *out_size, -1).permute(0, 3, 1, 2)
    return out.view(batch, -1, *out_size)


def multiply(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """Write a · b + bias into `out`."""
    if bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


class _Sampler:
    """Sampler of one image after the other, with scratch memory that is allocated once.

    Positions count from the zeros around the image: pixel (0, 0) has the position (1, 1).
    """

    def __init__(self, x: Tensor, taps: Taps, out_size: tuple[int, int]) -> None:
        _, channels, self.height, self.width = x.shape
        self.taps = taps
        self.out_size = out_size
        self.group_channels = channels // taps.groups
        # Positions reach H + 1, and the second line of their pairs H + 2.
        # A model for all tensors here, in float32 or better.
        like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        self.table = like.new_zeros(self.height + 3, self.width + 3, channels)

        # Scratch memory of a strip of n pixels, (n, G·K) each.
        num_samples = taps.groups * taps.num
        num_pixels = out_size[0] * out_size[1]
        self.max_pixels = max(1, min(STRIP_SAMPLES // num_samples, num_pixels))
        shape = (self.max_pixels, num_samples)
        self.y = like.new_empty(shape)
        self.x = like.new_empty(shape)
        self.lower_weight = like.new_empty(shape)
        self.upper_weight = like.new_empty(shape)
        self.line = torch.empty(shape, dtype=torch.int32, device=x.device)
        self.row = torch.empty(shape, dtype=torch.int32, device=x.device)
        self.row_below = torch.empty(shape, dtype=torch.int32, device=x.device)
        self.row_below_right = torch.empty(shape, dtype=torch.int32, device=x.device)

        # The four rows and weights of each sample, and where those of a sample begin.
        self.rows = torch.empty(*shape, 4, dtype=torch.int32, device=x.device)
        self.weights = like.new_empty(*shape, 4)
        self.bags = torch.arange(
            0,
            self.rows.numel() + 1,
            4,
            dtype=torch.int32,
            device=x.device,
        )

        # Group and position of each tap of each group: (G·K,).
        groups = torch.arange(taps.groups, dtype=torch.int32, device=x.device)
        self.group = groups.repeat_interleave(taps.num)
        self.tap_y = taps.lines(self.y).repeat(taps.groups) + 1
        self.tap_x = taps.columns(self.x).repeat(taps.groups) + 1
        # Position of each output pixel: (H'·W', 1).
        out_h, out_w = out_size
        out_y = torch.arange(out_h, dtype=like.dtype, device=like.device) * taps.stride[0]
        out_x = torch.arange(out_w, dtype=like.dtype, device=like.device) * taps.stride[1]
        self.out_y = out_y.repeat_interleave(out_w)[:, None]
        self.out_x = out_x.repeat(out_h)[:, None]

    def fill(self, image: Tensor) -> None:
        """Copy the next image (C, H, W) into the table."""
        inner = self.table[1 : self.height + 1, 1 : self.width + 1]
        inner.copy_(image.permute(1, 2, 0))

    def strips(self) -> Iterator[slice]:
        """Yield ranges of output pixels."""
        num_pixels = self.out_size[0] * self.out_size[1]
        for start in range(0, num_pixels, self.max_pixels):
            yield slice(start, min(start + self.max_pixels, num_pixels))

    def sample(self, strip: Strip, pixels: slice) -> Tensor:
        """Return the columns (n, G·K·C/G) of a strip."""
        num_pixels = len(strip.offset)
        y, x = self._positions(strip, pixels)
        mask = strip.mask
        if self.taps.border == "original":
            mask = self._clamp_to_image(y, x, mask)
        self._write_rows(y, x)
        self._write_weights(y, x, mask)

        num_samples = num_pixels * y.shape[1]
        sum_mode = 0
        sampled, _, _, _ = torch.embedding_bag(
            self.table.view(-1, self.group_channels),
            self.rows[:num_pixels].view(-1),
            self.bags[: num_samples + 1],
            False,  # scale_grad_by_freq
            sum_mode,
            False,  # sparse
            self.weights[:num_pixels].view(-1),
            True,  # include_last_offset: `bags` has the end of the last bag, too
        )
        return sampled.view(num_pixels, -1)

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
