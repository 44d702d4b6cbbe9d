"""Deformable convolution on rows: samples are weighted sums of rows of a table, in strips that stay in the cache.

    x (B, C, H, W) ── table of pixels and groups (H·W·G, C/G), a frame of zeros around the image
    strip of n output pixels:
      positions y, x (n, G·K) ── 4 rows and 4 weights (bilinear · mask) of each sample
      columns (n, G·K·C/G) = embedding_bag(table, rows, weights)       one pass, nothing of it is stored four times
      out (n, O) = columns · weight + bias

Scratch memory is made once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Border", "Reader", "Strip", "Taps", "convolve", "multiply", "read_plainly", "rows_of"]

Border = Literal["zeros", "original"]
_STRIP_SAMPLES = 1 << 17
"""Samples (pixels · groups · taps) of a strip: some megabytes of scratch, and enough for each thread."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Where the taps of a kernel lie before they are moved."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    """Groups of channels with offsets of their own."""
    border: Border

    @property
    def num(self) -> int:
        """Taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def lines(self, like: Tensor) -> Tensor:
        """Vertical place of each tap (K,), relative to the output pixel times the stride."""
        line = torch.arange(self.kernel[0], dtype=like.dtype, device=like.device)
        return (line * self.dilation[0] - self.padding[0]).repeat_interleave(self.kernel[1])

    def columns(self, like: Tensor) -> Tensor:
        """Horizontal place of each tap (K,)."""
        column = torch.arange(self.kernel[1], dtype=like.dtype, device=like.device)
        return (column * self.dilation[1] - self.padding[1]).repeat(self.kernel[0])


@dataclass(frozen=True, slots=True)
class Strip:
    """What moves the samples of n output pixels; the groups fall into F equal parts with an origin each."""

    offset: Tensor
    """(n, 2·G·K), dy and dx of each sample."""
    gain: float
    """Factor of the offsets."""
    origin_y: Tensor | None
    """(n, F), added to the place of the output pixel; None is zero."""
    origin_x: Tensor | None
    mask: Tensor | None
    """(n, G·K), factors of the samples; None is one."""


Reader = Callable[[int, slice], Strip]
"""Reads the strip of an image of the batch and of a range of its output pixels."""


def rows_of(plane: Tensor, pixels: slice, scratch: Tensor | None = None) -> Tensor:
    """Read pixels of an image (C, H, W) as rows (n, C), values of a pixel side by side."""
    rows = plane.permute(1, 2, 0).flatten(0, 1)[pixels]
    if rows.stride(1) == 1:
        return rows
    return rows.contiguous() if scratch is None else scratch[: len(rows)].copy_(rows)


def read_plainly(offset: Tensor, mask: Tensor | None) -> Reader:
    """Read offsets (B, 2·G·K, H', W') and mask (B, G·K, H', W') as they are."""

    def read(image: int, pixels: slice) -> Strip:
        factors = None if mask is None else rows_of(mask[image], pixels)
        return Strip(rows_of(offset[image], pixels), 1.0, None, None, factors)

    return read


def convolve(
    x: Tensor,
    read: Reader,
    out_size: tuple[int, int],
    weight: Tensor,
    bias: Tensor | None,
    taps: Taps,
) -> Tensor:
    """Convolve x (B, C, H, W) with weight (O, C, kh, kw): (B, O, H', W') in the layout of x."""
    batch, channels, _, _ = x.shape
    last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)
    num_pixels, depth = out_size[0] * out_size[1], channels // taps.groups
    matrix = (
        weight.view(-1, taps.groups, depth, taps.num).permute(1, 3, 2, 0).reshape(-1, len(weight))
    )
    out = x.new_empty(
        (batch, num_pixels, len(weight)) if last else (batch, len(weight), num_pixels)
    )
    sampler = _Sampler(x, taps, out_size)
    for image in range(batch):
        sampler.fill(x[image])
        for pixels in sampler.strips():
            columns = sampler.sample(read(image, pixels), pixels)
            if last:
                multiply(columns, matrix, bias, out[image, pixels])
            else:
                multiply(
                    matrix.t(),
                    columns.t(),
                    bias if bias is None else bias[:, None],
                    out[image, :, pixels],
                )
    if last:
        return out.view(batch, *out_size, -1).permute(0, 3, 1, 2)
    return out.view(batch, -1, *out_size)


def multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write a · b + bias."""
    if bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


class _Sampler:
    """Samples of one image after the other, in scratch memory that is made once.

    Positions count from the frame of zeros around the image: pixel (0, 0) lies at (1, 1).
    """

    def __init__(self, x: Tensor, taps: Taps, out_size: tuple[int, int]) -> None:
        _, channels, self.height, self.width = x.shape
        self.taps, self.out_size = taps, out_size
        self.depth, samples = channels // taps.groups, taps.groups * taps.num
        self.table = x.new_zeros(
            self.height + 3, self.width + 3, channels
        )  # positions reach H + 1, their pairs H + 2
        self.num_pixels = max(1, min(_STRIP_SAMPLES // samples, out_size[0] * out_size[1]))
        shape = (self.num_pixels, samples)
        self.floats = [x.new_empty(shape) for _ in range(4)]
        self.ints = [torch.empty(shape, dtype=torch.int32, device=x.device) for _ in range(4)]
        self.rows = torch.empty(*shape, 4, dtype=torch.int32, device=x.device)
        self.weights = x.new_empty(*shape, 4)
        self.bags = torch.arange(0, self.rows.numel() + 1, 4, dtype=torch.int32, device=x.device)
        self.group = torch.arange(
            taps.groups, dtype=torch.int32, device=x.device
        ).repeat_interleave(taps.num)
        self.lines = taps.lines(x).repeat(taps.groups) + 1
        self.columns = taps.columns(x).repeat(taps.groups) + 1
        pixels_y = torch.arange(out_size[0], dtype=x.dtype, device=x.device) * taps.stride[0]
        pixels_x = torch.arange(out_size[1], dtype=x.dtype, device=x.device) * taps.stride[1]
        self.pixels_y = pixels_y.repeat_interleave(out_size[1])[:, None]
        self.pixels_x = pixels_x.repeat(out_size[0])[:, None]

    def fill(self, image: Tensor) -> None:
        """Take the next image (C, H, W)."""
        self.table[1 : self.height + 1, 1 : self.width + 1].copy_(image.permute(1, 2, 0))

    def strips(self) -> Iterator[slice]:
        """Yield ranges of output pixels."""
        end = self.out_size[0] * self.out_size[1]
        for start in range(0, end, self.num_pixels):
            yield slice(start, min(start + self.num_pixels, end))

    def sample(self, strip: Strip, pixels: slice) -> Tensor:
        """Return the columns (n, G·K·C/G) of a strip."""
        num = len(strip.offset)
        y, x = self._place(strip, pixels)
        mask = strip.mask
        if self.taps.border == "original":
            mask = self._cut(y, x, mask)
        self._find_rows(y, x)
        self._weigh(y, x, mask)
        samples = num * y.shape[1]
        sampled, _, _, _ = torch.embedding_bag(
            self.table.view(-1, self.depth),
            self.rows[:num].view(-1),
            self.bags[: samples + 1],
            False,
            0,  # sum
            False,
            self.weights[:num].view(-1),
            True,  # the last bag's end is among the offsets
        )
        return sampled.view(num, -1)

    def _place(self, strip: Strip, pixels: slice) -> tuple[Tensor, Tensor]:
        """Return the positions y, x (n, G·K) of the samples, none further out than the frame."""
        num = len(strip.offset)
        placed: list[Tensor] = []
        moved = strip.offset.view(num, -1, 2)
        for i, (origin, pixel, tap, size) in enumerate(
            (
                (strip.origin_y, self.pixels_y, self.lines, self.height),
                (strip.origin_x, self.pixels_x, self.columns, self.width),
            )
        ):
            origin = pixel[pixels] if origin is None else origin + pixel[pixels]  # (n, F)
            position = self.floats[i][:num]
            parts = origin.shape[1]
            torch.add(origin[:, :, None], tap.view(parts, -1), out=position.view(num, parts, -1))
            position.add_(moved[..., i], alpha=strip.gain)
            placed.append(
                position if self.taps.border == "original" else position.clamp_(0, size + 1)
            )
        return placed[0], placed[1]

    def _cut(self, y: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Move positions (n, G·K) into the image, in place; return factors that are zero where they were outside."""
        inside = (y >= 1) & (y < self.height + 1) & (x >= 1) & (x < self.width + 1)
        y.clamp_(1, self.height)
        x.clamp_(1, self.width)
        return inside.to(y.dtype) if mask is None else inside * mask

    def _find_rows(self, y: Tensor, x: Tensor) -> None:
        """Write the four rows of the table around each position (n, G·K); positions become their fractions."""
        line, row, below, below_right = (buffer[: len(y)] for buffer in self.ints)
        right_step, line_step = self.taps.groups, (self.width + 3) * self.taps.groups
        line.copy_(y)  # cuts the fraction off: positions are not negative
        row.copy_(x)
        y.frac_()
        x.frac_()
        torch.add(self.group, row, alpha=right_step, out=row)
        row.add_(line, alpha=line_step)
        row.clamp_(
            0, (self.height + 1) * line_step + (self.width + 2) * right_step - 1
        )  # of NaN, too
        right = torch.add(row, right_step, out=line)
        torch.add(row, line_step, out=below)
        torch.add(below, right_step, out=below_right)
        real = torch.float32  # only moved
        corners = [corner.view(real) for corner in (row, right, below, below_right)]
        _interleave(corners, self.rows[: len(y)].view(real))

    def _weigh(self, y: Tensor, x: Tensor, mask: Tensor | None) -> None:
        """Write the four weights of each sample from the fractions of its position (n, G·K), which are overwritten."""
        _, _, lower, upper = (buffer[: len(y)] for buffer in self.floats)
        if mask is None:
            lower.copy_(y)
            torch.sub(1, y, out=upper)
        else:
            torch.mul(y, mask, out=lower)
            torch.sub(mask, lower, out=upper)
        upper_right = torch.mul(upper, x, out=y)
        upper_left = upper.sub_(upper_right)
        lower_right = torch.mul(lower, x, out=x)
        lower_left = lower.sub_(lower_right)
        _interleave([upper_left, upper_right, lower_left, lower_right], self.weights[: len(y)])


def _interleave(corners: list[Tensor], out: Tensor) -> None:
    """Write four (n, m) side by side into (n, m, 4).

    As pairs: complex numbers are stored in half as many strided steps, three times as fast.
    """
    pairs = torch.view_as_complex(out.view(*out.shape[:2], 2, 2))
    torch.complex(corners[0], corners[1], out=pairs[..., 0])
    torch.complex(corners[2], corners[3], out=pairs[..., 1])
