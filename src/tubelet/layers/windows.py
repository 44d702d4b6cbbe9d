"""Partition of an image or clip into shifted attention windows, without rolls and masks.

    x        (B, *grid, C), channels last; grid is (H, W) or (T, H, W)
    windows  (n, N, C): n windows of `size` positions along each axis, N = ∏ size tokens each
    span     adjacent windows of equal size along one axis
    block    adjacent windows of equal size along all axes, processed in one call

Swin rolls the image by its shift, which joins positions of opposite borders in one window, and then
masks the attention between them. Without the masked pairs, that is a plain partition whose first
and last windows are smaller. For a length that is a multiple of `window` they have `shift` and
`window − shift` positions:

    length 12, window 4, shift 2      ▏0 1▕▏2 3 4 5▕▏6 7 8 9▕▏10 11▕

Networks for video extend the normalized features by zeros to such a multiple (0 below). The zeros
take part in the attention, and their results are dropped:

    length 9, window 4, shift 2       ▏0 1▕▏2 3 4 5▕▏6 7 8 0▕

Source: Liu et al., Swin Transformer, ICCV 2021, Sec. 3.2 and Fig. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.layers.inference import Backend
from tubelet.ops.sizes import pad_to, round_up

__all__ = [
    "WindowBlock",
    "WindowFunction",
    "WindowSpan",
    "fit_windows",
    "join_windows",
    "map_windows",
    "pad_to_windows",
    "split_windows",
    "window_blocks",
    "window_spans",
    "zero_padded_blocks",
]

# Maximum number of tokens of a block on a CPU: with 180 channels, its intermediate results stay in
# the L2 caches of two cores. Half or twice as many took the same time within 3 %, a single block
# for all windows up to 25 % more (docs/log/2026-11-21.md).
_MAX_BLOCK_TOKENS = 2048


class WindowSpan(NamedTuple):
    """Adjacent windows of equal size along one axis."""

    start: int
    """First position of the first window."""
    size: int
    """Number of positions of each window."""
    num_windows: int
    """Number of windows."""


@dataclass(frozen=True, slots=True)
class WindowBlock:
    """A block of a grid that is extended by zeros to whole windows.

    Attributes:
        index: Index of the block in (B, *grid, C), without the zeros.
        sides: Length of the block along each axis, with the zeros.
        size: Size of its windows along each axis.
        offset: Position of its windows in a full window along each axis. It is not 0 for the
            smaller windows at the start of a shifted partition, which are the ends of full windows.
    """

    index: tuple[slice, ...]
    sides: tuple[int, ...]
    size: tuple[int, ...]
    offset: tuple[int, ...]

    def has_zeros(self, values: Tensor) -> bool:
        """Return whether zeros extend the values at `index`, (B, *lengths, C)."""
        return tuple(values.shape[1:-1]) != self.sides

    def split(self, values: Tensor) -> Tensor:
        """Extend the values of the block by zeros, and cut them into windows.

        Args:
            values: Values at `index`, (B, *lengths, C).

        Returns:
            (n, N, C), N = ∏ size.
        """
        # From the last axis to the first, as torch lists them; no zeros along the channels.
        padding = [0, 0]
        lengths = values.shape[1:-1]
        for length, side in zip(reversed(lengths), reversed(self.sides), strict=True):
            padding += [0, side - length]
        if any(padding):
            values = functional.pad(values, padding)
        return split_windows(values, self.size)

    def join(self, windows: Tensor, like: Tensor) -> Tensor:
        """Put windows (n, N, C) together, and drop the results of zeros: the inverse of `split`.

        Args:
            windows: Windows of the block, (n, N, C).
            like: Values at `index`, (B, *lengths, C).

        Returns:
            (B, *lengths, C).
        """
        batch, *lengths, channels = like.shape
        block = windows.new_empty(batch, *self.sides, channels)
        join_windows(windows, self.size, block)
        for axis, length in enumerate(lengths, start=1):
            block = block.narrow(axis, 0, length)
        return block

    def write(self, windows: Tensor, out: Tensor) -> None:
        """Put windows (n, N, C) together as `join` does, at `index` of `out`, (B, *grid, C)."""
        target = out[self.index]
        if self.has_zeros(target):
            target.copy_(self.join(windows, like=target))
        else:
            join_windows(windows, self.size, target)


def window_spans(length: int, window: int, shift: int) -> list[WindowSpan]:
    """Partition an axis into windows, grouped into spans of equal size.

    Args:
        length: Length of the axis, at least 1.
        window: Size of a full window.
        shift: Size of the smaller window at the start, 0 (no such window) to window − 1.

    Returns:
        One to three spans that cover the axis, in order: the smaller window at the start, the full
        windows, and the rest at the end.
    """
    first_size = min(shift, length)
    num_full, last_size = divmod(length - first_size, window)
    last_start = first_size + num_full * window
    spans = [
        WindowSpan(0, first_size, 1),
        WindowSpan(first_size, window, num_full),
        WindowSpan(last_start, last_size, 1),
    ]
    return [span for span in spans if span.size and span.num_windows]


def pad_to_windows(image: Tensor, window: int) -> Tensor:
    """Extend (B, C, H, W) to the right and below to multiples of the window size.

    The image is mirrored, or its last row and column repeated where it is too small to mirror.
    """
    height, width = image.shape[-2:]
    return pad_to(image, round_up(height, window), round_up(width, window))


def split_windows(block: Tensor, size: Sequence[int]) -> Tensor:
    """Cut a block into its windows.

    Args:
        block: (B, *grid, C); each side of the grid is a multiple of the window size.
        size: Size of a window along each axis.

    Returns:
        (n, N, C), N = ∏ size; windows and their tokens are in row-major order.
    """
    # (B, *counts, *size, C)
    view = _view_as_windows(block, size)
    channels = block.shape[-1]
    return view.reshape(-1, prod(size), channels)


def join_windows(windows: Tensor, size: Sequence[int], block: Tensor) -> None:
    """Write windows (n, N, C) into `block` (B, *grid, C): the inverse of `split_windows`."""
    view = _view_as_windows(block, size)
    view.copy_(windows.view(view.shape))


def _view_as_windows(block: Tensor, size: Sequence[int]) -> Tensor:
    """View (B, *grid, C) as (B, *counts, *size, C), where `counts` are windows along each axis."""
    batch, *grid, channels = block.shape
    shape = [batch]
    for length, side in zip(grid, size, strict=True):
        shape += [length // side, side]
    # (B, count₁, size₁, count₂, size₂, …, C)
    split = block.view(*shape, channels)

    # Move the counts before the sizes.
    num_axes = len(size)
    count_axes = range(1, 2 * num_axes, 2)
    size_axes = range(2, 2 * num_axes + 1, 2)
    return split.permute(0, *count_axes, *size_axes, 2 * num_axes + 1)


def fit_windows(
    grid: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the window and shift for a grid: an axis of one window or less is not shifted.

    Args:
        grid: Length of each axis.
        window: Size of a full window along each axis.
        shift: Shift of the partition along each axis.

    Returns:
        Window, not larger than the grid, and shift.
    """
    fitted_window: list[int] = []
    fitted_shift: list[int] = []
    for length, side, offset in zip(grid, window, shift, strict=True):
        fitted_window.append(min(length, side))
        fitted_shift.append(offset if length > side else 0)
    return tuple(fitted_window), tuple(fitted_shift)


def window_blocks(
    x: Tensor,
    window: Sequence[int],
    shift: Sequence[int],
    backend: Backend,
    grid: Sequence[int] | None = None,
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Iterate over the blocks of an image or clip.

    In the reference form, or on a GPU, a block is as large as possible. In the form for inference
    on a CPU it has a few windows, so that all its intermediate results stay in the CPU cache.

    Args:
        x: (B, *grid, C).
        window: Window size along each axis of the grid.
        shift: Shift of the partition along each axis, see `window_spans`.
        backend: Form of the calling layer.
        grid: Grid to partition, if it is not that of `x`.

    Yields:
        The size of the windows of a block along each axis, and the index of the block in
            (B, *grid, C).
    """
    grid = x.shape[1:-1] if grid is None else grid
    # Tokens of one image or clip of the batch: a block contains the whole batch.
    if x.device.type == "cpu" and backend != "reference":
        max_tokens = _MAX_BLOCK_TOKENS // x.shape[0]
    else:
        # No limit.
        max_tokens = prod(grid)

    spans_by_axis: list[list[WindowSpan]] = []
    for length, side, offset in zip(grid, window, shift, strict=True):
        spans_by_axis.append(window_spans(length, side, offset))

    # All windows in one span of each axis have the same size.
    for spans in product(*spans_by_axis):
        size = tuple(span.size for span in spans)
        for block in _cut_into_blocks(spans, max_tokens):
            yield size, (slice(None), *block)


def zero_padded_blocks(
    x: Tensor,
    *,
    window: Sequence[int],
    shift: Sequence[int],
    backend: Backend,
    padded: Sequence[int] | None = None,
) -> Iterator[WindowBlock]:
    """Iterate over the blocks of an image or clip that is extended by zeros to whole windows.

    A layer normalizes the values of a block first and cuts them into windows then, as in
    `block.split(norm(x[block.index]))`: the norm of zeros would not be zero.

    Args:
        x: (B, *grid, C).
        window: Window size along each axis of the grid.
        shift: Shift of the partition along each axis, see `window_spans`.
        backend: Form of the calling layer, see `window_blocks`.
        padded: Length of each axis with its zeros, a multiple of the window size; None: the
            smallest one.

    Yields:
        Blocks that cover the grid; windows of zeros alone are left out.
    """
    grid = x.shape[1:-1]
    if padded is None:
        padded = [round_up(length, side) for length, side in zip(grid, window, strict=True)]

    for size, (_, *spans) in window_blocks(x, window, shift, backend, padded):
        if any(span.start >= length for span, length in zip(spans, grid, strict=True)):
            continue
        index = [slice(None)]
        sides: list[int] = []
        offset: list[int] = []
        for axis, span in enumerate(spans):
            index.append(slice(span.start, min(span.stop, grid[axis])))
            sides.append(span.stop - span.start)
            offset.append((span.start - shift[axis]) % window[axis])
        yield WindowBlock(tuple(index), tuple(sides), size, tuple(offset))


WindowFunction = Callable[[tuple[Tensor, ...], tuple[int, ...]], Tensor]
"""Maps the same windows of each input, (n, N, C), and their size along each axis to (n, N, C)."""


def map_windows(
    apply: WindowFunction,
    inputs: Sequence[Tensor],
    *,
    window: Sequence[int],
    shift: Sequence[int],
    backend: Backend,
) -> Tensor:
    """Apply a function to every window of an image or clip.

    Args:
        apply: Called with the same windows of each input, (n, N, C), and their size along each
            axis, which is smaller than `window` at some borders. Returns (n, N, C), with the shape
            of the first. The result for a window must not depend on the other windows, because
            their number differs from call to call.
        inputs: Contiguous tensors (B, *grid, C) over the same grid; the first has the shape of
            the result.
        window: Window size along each axis of the grid.
        shift: Shift of the partition along each axis, see `window_spans`.
        backend: Form of the calling layer, see `window_blocks`.

    Returns:
        A new tensor, (B, *grid, C).
    """
    x = inputs[0]
    out = torch.empty_like(x)
    for size, block in window_blocks(x, window, shift, backend):
        windows = tuple(split_windows(tensor[block], size) for tensor in inputs)
        join_windows(apply(windows, size), size, out[block])
    return out


def _cut_into_blocks(spans: Sequence[WindowSpan], max_tokens: int) -> Iterator[tuple[slice, ...]]:
    """Cut the windows in one span of each axis into blocks of about equal size.

    A block has at most `max_tokens` tokens, but at least one window.
    """
    max_windows = max_tokens // prod([span.size for span in spans])
    slices_by_axis: list[list[slice]] = []
    # The last axis first, so that a block is long along the width, where memory is contiguous.
    for span in reversed(spans):
        windows_per_block = max(1, min(span.num_windows, max_windows))
        num_blocks = ceil(span.num_windows / windows_per_block)
        # Positions between the blocks along this axis.
        cuts: list[int] = []
        for i in range(num_blocks + 1):
            first_window = span.num_windows * i // num_blocks
            cuts.append(span.start + span.size * first_window)
        slices_by_axis.insert(0, [slice(start, stop) for start, stop in pairwise(cuts)])
        # Number of windows that a block may have along the remaining axes together.
        max_windows //= ceil(span.num_windows / num_blocks)
    return product(*slices_by_axis)
