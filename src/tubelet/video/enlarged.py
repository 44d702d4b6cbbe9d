"""Frames that are enlarged when they are read, a few rows at a time.

    base (3, h, w) ── interpolation ──┐
    detail of a network ──────────────┴(+)── rgb (3, H, W)

Interpolation and the conversion to Y'CbCr are both linear, so their order can change. If the detail
is the same in R, G and B, it is a detail of the luma. Then the small base is converted instead of
the large image, and chroma is interpolated directly to its own size in the pixel format.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from tubelet.ops.resize import AxisWeights, Kernel, axis_weights, weigh
from tubelet.types import Frame
from tubelet.video.chroma import Siting, Subsampling, downsample

__all__ = ["EnlargedFrame", "Rows", "YccRows"]

Rows = Callable[[int, int], Tensor]
"""Maps the first row and the row after the last to these rows, (C, rows, W)."""
YccRows = Callable[[int, int], tuple[Tensor, Tensor | None]]
"""Maps the first row and the row after the last to their luma (rows, W), and to their chroma at its
own size (2, rows, W), or None for gray formats. Both in codes without the offsets."""


class EnlargedFrame(Frame):
    """The sum of a frame enlarged by interpolation and a detail; computed when it is read.

    `rgb` is computed anew each time, and cannot be assigned. Copies are plain frames.

    Args:
        source: Frame to enlarge; its time is the time of the result.
        size: Height and width of the result, pixels.
        kernel: Interpolation, as in `tubelet.ops.resize.resample`.
        detail_rows: Detail; None: there is none.
        detail_channels: Channels of the detail: 1 if it is the same for R, G and B, otherwise 3.
        alpha: Transparency of the result, see `Frame`.
    """

    def __new__(cls, *arguments: Any, **fields: Any) -> Frame:
        """Create the frame; `dataclasses.replace` calls it with the fields of a `Frame`."""
        if "rgb" in fields:
            return Frame(**fields)
        return super().__new__(cls)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a plain `Frame`."""
        fields = (self.rgb, self.pts, self.time_base, self.duration, self.index, self.alpha)
        return Frame, fields

    def __init__(
        self,
        source: Frame,
        size: tuple[int, int],
        kernel: Kernel,
        *,
        detail_rows: Rows | None = None,
        detail_channels: Literal[1, 3] = 3,
        alpha: Tensor | None = None,
    ) -> None:
        self.pts = source.pts
        self.time_base = source.time_base
        self.duration = source.duration
        self.index = source.index
        self.alpha = alpha
        self._base = source.rgb.detach().to("cpu", torch.float32)
        self._size = size
        self._kernel: Kernel = kernel
        self._detail_rows = detail_rows
        self._detail_channels = detail_channels

    @property
    def rgb(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The whole image, computed anew each time."""
        return self.rows(0, self._size[0])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self._size

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows of the image, (3, stop - start, W)."""
        rgb = self._enlarge(self._base, start, stop)
        if self._detail_rows is not None:
            rgb.add_(self._detail_rows(start, stop))
        return rgb

    @torch.no_grad()
    def ycc_rows(
        self,
        encode: Tensor,
        luma_of_gray: float,
        subsampling: Subsampling | None,
    ) -> YccRows | None:
        """Return a function that computes rows in Y'CbCr without the large RGB image.

        Args:
            encode: Matrix from R'G'B' to codes, (3, 3).
            luma_of_gray: Luma code of R' = G' = B' = 1, without the offset; their chroma is 0.
            subsampling: How chroma is reduced; None if the format is gray.

        Returns:
            None if the detail has three channels.
        """
        if self._detail_rows is not None and self._detail_channels != 1:
            return None
        _, height, width = self._base.shape
        base = torch.mm(encode, self._base.reshape(3, -1)).view(3, height, width)
        return partial(self._compute_ycc_rows, base, luma_of_gray, subsampling)

    @torch.no_grad()
    def _compute_ycc_rows(
        self,
        base: Tensor,
        luma_of_gray: float,
        subsampling: Subsampling | None,
        start: int,
        stop: int,
    ) -> tuple[Tensor, Tensor | None]:
        luma = self._enlarge(base[:1], start, stop)
        if self._detail_rows is not None:
            luma.add_(self._detail_rows(start, stop), alpha=luma_of_gray)
        if subsampling is None:
            return luma[0], None
        shift_x, shift_y = subsampling.shifts
        siting_x, siting_y = subsampling.sitings
        # The end is rounded up.
        chroma_rows = range(start >> shift_y, -(-stop >> shift_y))
        _, height, width = base.shape
        out_height, out_width = self._size
        vertical = _weights(height, out_height, self._kernel, shift_y, siting_y)
        horizontal = _weights(width, out_width, self._kernel, shift_x, siting_x)
        return luma[0], weigh(base[1:], vertical, horizontal, chroma_rows)

    def _enlarge(self, base: Tensor, start: int, stop: int) -> Tensor:
        _, height, width = base.shape
        out_height, out_width = self._size
        vertical = _weights(height, out_height, self._kernel)
        horizontal = _weights(width, out_width, self._kernel)
        return weigh(base, vertical, horizontal, range(start, stop))


@lru_cache(maxsize=32)
def _weights(
    in_size: int,
    out_size: int,
    kernel: Kernel,
    shift: int = 0,
    siting: Siting = "center",
) -> AxisWeights:
    """Build the weights of an axis: interpolation, then the reduction of chroma `shift` times."""

    def reduce(full: Tensor) -> Tensor:
        for _ in range(shift):
            full = downsample(full, -2, siting)
        return full

    weights = axis_weights(in_size, out_size, kernel=kernel, then=reduce)
    return weights.to(torch.float32)
