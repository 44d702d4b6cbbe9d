"""Windows of an image or clip, without rolls and without masks.

    x        (B, *grid, C), channels last; grid is (H, W) or (T, H, W)
    windows  (n, *size, C), flattened by the caller to (n, N, C) tokens

Swin's cyclic shift joins tokens of opposite borders in one window and then masks their attention.
What is left is the same as a partition whose first and last windows are cut: `shift` and `window −
shift` long, all between them whole.

    length 12, window 4, shift 2      ▏0 1▕▏2 3 4 5▕▏6 7 8 9▕▏10 11▕

Source: Liu et al., Swin Transformer, ICCV 2021, Sec. 3.2 and Fig. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from tubelet.layers.inference import Backend
from tubelet.ops.sizes import pad_to, round_up

__all__ = [
    "WindowSpan",
    "join_windows",
    "map_windows",
    "pad_to_windows",
    "split_windows",
    "window_blocks",
    "window_spans",
]

_CACHED_TOKENS = 2048
"""Tokens at once on a CPU: of 180 channels, a block's intermediate results stay in the caches of
two cores. Half or twice as many took the same time within 3 %, all at once up to a quarter more
(docs/log/2026-11-21.md)."""


class WindowSpan(NamedTuple):
    """`windows` of `size` positions each, one behind the other from `start`, along one axis."""

    start: int
    size: int
    windows: int


def window_spans(length: int, window: int, shift: int) -> list[WindowSpan]:
    """Partition an axis into windows; those that a shift cuts stand alone.

    Args:
        length: of the axis, at least 1.
        window: size of a window.
        shift: how far the partition is moved, 0 to window − 1; the first cut is at `shift`.

    Returns:
        spans that cover the axis, in order.
    """
    first = min(shift, length)
    whole, last = divmod(length - first, window)
    spans = [
        WindowSpan(0, first, 1),
        WindowSpan(first, window, whole),
        WindowSpan(first + whole * window, last, 1),
    ]
    return [span for span in spans if span.size and span.windows]


def pad_to_windows(image: Tensor, window: int) -> Tensor:
    """Extend (B, C, H, W) to whole windows: mirrored, or repeated where it is too small."""
    height, width = image.shape[-2:]
    return pad_to(image, round_up(height, window), round_up(width, window))


def split_windows(block: Tensor, size: Sequence[int]) -> Tensor:
    """Cut (B, *grid, C), whose grid is whole windows, into (n, N, C), both in order."""
    return _parted(block, size).reshape(-1, prod(size), block.shape[-1])


def join_windows(windows: Tensor, size: Sequence[int], block: Tensor) -> None:
    """Write windows (n, N, C) to their places in `block` (B, *grid, C); see `split_windows`."""
    parted = _parted(block, size)
    parted.copy_(windows.view(parted.shape))


def _parted(block: Tensor, size: Sequence[int]) -> Tensor:
    """View (B, *grid, C) as (B, *counts, *size, C)."""
    dims = len(size)
    pairs = ((length // s, s) for length, s in zip(block.shape[1:-1], size, strict=True))
    parted = block.view(block.shape[0], *(side for pair in pairs for side in pair), block.shape[-1])
    return parted.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)


def window_blocks(
    x: Tensor, window: Sequence[int], shift: Sequence[int], backend: Backend
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Go through the windows of an image or clip, block by block.

    In the reference form a block holds all windows of the same size. In the form for inference, and
    on a CPU, it holds a few of them, so that everything computed of a block stays in the cache.

    Args:
        x: (B, *grid, C).
        window: size along each axis of the grid.
        shift: of the partition along each axis.
        backend: form of the calling layer.

    Yields:
        the size of these windows along each axis, and where they are: an index of (B, *grid, C) to
            a block of them.
    """
    few = x.device.type == "cpu" and backend != "reference"
    max_tokens = _CACHED_TOKENS // x.shape[0] if few else x.numel()
    axes = zip(x.shape[1:-1], window, shift, strict=True)
    for part in product(*(window_spans(*axis) for axis in axes)):
        size = tuple(span.size for span in part)
        for block in _blocks(part, max_tokens):
            yield size, (slice(None), *block)


def map_windows(
    apply: Callable[[tuple[Tensor, ...], tuple[int, ...]], Tensor],
    inputs: Sequence[Tensor],
    *,
    window: Sequence[int],
    shift: Sequence[int],
    backend: Backend,
) -> Tensor:
    """Apply a function to every window of an image or clip.

    Args:
        apply: gets the same windows of each input, (n, N, C), and their size along each axis (the
            window's, or less where a shift cuts it); returns (n, N, C) like the first. Windows do
            not see each other.
        inputs: (B, *grid, C), contiguous, the same grid; the first is like the output.
        window: size along each axis of the grid.
        shift: of the partition along each axis.
        backend: form of the calling layer; see `window_blocks`.

    Returns:
        (B, *grid, C), a tensor of its own.
    """
    x = inputs[0]
    out = torch.empty_like(x)
    for size, place in window_blocks(x, window, shift, backend):
        windows = tuple(split_windows(tensor[place], size) for tensor in inputs)
        join_windows(apply(windows, size), size, out[place])
    return out


def _blocks(part: Sequence[WindowSpan], max_tokens: int) -> Iterator[tuple[slice, ...]]:
    """Cut a product of spans into blocks of whole windows, of about the same number of tokens."""
    room = max_tokens // prod([span.size for span in part])  # windows
    axes: list[list[slice]] = []
    for span in reversed(part):  # along rows first
        pieces = ceil(span.windows / max(1, min(span.windows, room)))
        cuts = [span.start + span.size * (span.windows * i // pieces) for i in range(pieces + 1)]
        axes.insert(0, [slice(a, b) for a, b in pairwise(cuts)])
        room //= ceil(span.windows / pieces)
    return product(*axes)
