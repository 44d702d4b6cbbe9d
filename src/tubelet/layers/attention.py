"""Attention within windows, with a learned bias for every relative position.

    x        (n, N, C)            N tokens of each of n windows
    q, k, v  (n, heads, N, d)     d = C / heads
    bias     (heads, N, N)        looked up by the relative position of query and key, in a table
                                  with (2w − 1)² entries for each head and a w × w window
    result   (n, N, C)            softmax(q kᵀ / √d + bias) v, then a linear layer

Source: Liu et al., Swin Transformer, ICCV 2021, Eq. 4; the MLP: Dosovitskiy et al., ViT, ICLR 2021;
the gated MLP: Shazeer, GLU Variants Improve Transformer, 2020, Eq. 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AttentionFunction",
    "GatedMlp",
    "Mlp",
    "ProjectedAttention",
    "QueryFrameAttention",
    "TokenLayer",
    "TokenMap",
    "WindowAttention",
    "attend",
    "attend_within",
    "relative_position_bias",
]

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps q (n, heads, N, d), k and v (n, heads, M, d), and the bias of every query and key
(heads, N, M), to the result (n, N, heads·d)."""


TokenMap = Callable[[Tensor], Tensor]
"""Maps each of the tokens (..., C) by itself to the same shape."""

TokenLayer = Callable[[Tensor, Sequence[int]], Tensor]
"""Maps the tokens (n, N, C) of n windows, or images, and their size along each axis, N = ∏ size, to
the same shape."""


def relative_position_bias(table: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """Look up the bias of every pair of tokens of a window.

    Args:
        table: (∏ (2·window − 1), heads). Along each axis, the index of an entry is
            query position − key position + window − 1. The last axis changes fastest.
        window: Size of a full window along each axis, which determines the size of the table.
        size: Size of the given window along each axis, at most `window`.

    Returns:
        (heads, N, N), query by key, N = ∏ size.
    """
    heads = table.shape[-1]
    axes = range(1, len(window) + 1)
    table_shape = [2 * side - 1 for side in window]
    # (heads, 2·w₁ − 1, 2·w₂ − 1, …)
    bias = table.T.reshape(heads, *table_shape)
    # From here on, the distance (query − key) descends along each axis, from w − 1 to 1 − w.
    bias = bias.flip(list(axes))
    for axis, max_side, side in zip(axes, window, size, strict=True):
        # Keep the distances that occur in this window: side − 1 to 1 − side.
        bias = bias.narrow(axis, max_side - side, 2 * side - 1)
        # Unfolding adds an axis j at the end: entry [i, j] is entry i + j of before. Its distance,
        # side − 1 − i − j, is that of the query at side − 1 − i and the key at j.
        bias = bias.unfold(axis, side, 1)
    # The query at side − 1 − i has index i: reverse the queries. (heads, *queries, *keys)
    bias = bias.flip(list(axes))
    num_tokens = prod(size)
    return bias.reshape(heads, num_tokens, num_tokens)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend from every query to the keys of its window (Eq. 4).

    Args:
        q: Queries, (n, heads, N, d).
        k: Keys, (n, heads, M, d).
        v: Values, (n, heads, M, d).
        bias: (heads, N, M), added to the scores before the softmax; None: nothing is added.

    Returns:
        (n, N, heads·d).
    """
    mask = None if bias is None else bias.to(q.dtype)[None]
    out = functional.scaled_dot_product_attention(q, k, v, mask)
    return out.transpose(1, 2).flatten(2)


class ProjectedAttention(Protocol):
    """An attention layer with the usual projections."""

    qkv: nn.Linear
    """Queries, keys and values, one after the other: C → 3C."""
    proj: nn.Linear
    """Projection of the result: C → C."""
    heads: int
    """Number of heads."""


def attend_within(x: Tensor, attention: ProjectedAttention, bias: Tensor | None = None) -> Tensor:
    """Attend among the tokens of each of n sets, with the projections of a layer.

    Args:
        x: Tokens, (n, N, C).
        attention: The layer.
        bias: (heads, N, N), added to the scores before the softmax; None: nothing is added.

    Returns:
        (n, N, C).
    """
    # (n, N, 3, heads, d) → (3, n, heads, N, d)
    qkv = attention.qkv(x).unflatten(-1, (3, attention.heads, -1))
    qkv = qkv.permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return attention.proj(attend(q, k, v, bias))


class WindowAttention(nn.Module):
    """Multi-head self-attention among the tokens of each window: (n, N, C) → the same shape.

    Args:
        channels: Number of channels of a token, C.
        heads: Number of heads, a divisor of `channels`.
        window: Size of a full window along each axis.
        qkv_bias: Add learned biases to queries, keys and values.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int],
        *,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window = tuple(window)
        num_positions = prod([2 * side - 1 for side in window])
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_positions, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def position_bias(self, size: Sequence[int]) -> Tensor:
        """Look up the biases of windows of a size: (heads, N, N), N = ∏ size."""
        return relative_position_bias(self.relative_position_bias_table, self.window, size)

    def forward(self, x: Tensor, size: Sequence[int], bias: Tensor | None = None) -> Tensor:
        """Attend among the tokens of each window.

        Args:
            x: Tokens of n windows, (n, N, C).
            size: Size of these windows along each axis, N = ∏ size. It is smaller than `window` at
                the borders of a shifted partition.
            bias: `position_bias(size)`, which a caller with many blocks looks up once; for large
                windows, that takes a tenth of the time of a block. None: looked up here.

        Returns:
            (n, N, C).
        """
        if bias is None:
            bias = self.position_bias(size)
        return attend_within(x, self, bias)


class QueryFrameAttention(nn.Module):
    """Attention from the tokens of the last frame to those of all frames in each window.

    The table of biases has an entry for every distance along height and width, as that of
    `WindowAttention`, and for every frame: `frames − 1 −` the index of the frame of the key.

    Args:
        channels: Number of channels of a token, C.
        heads: Number of heads, a divisor of `channels`.
        window: Side of a full window.
        frames: Number of frames, D.
        attend: Computes the result of all heads, as the function `attend` does.

    Source: Zhou et al., MIA-VSR, CVPR 2024, Sec. 3.2.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        frames: int,
        *,
        attend: AttentionFunction = attend,
    ) -> None:
        super().__init__()
        self.attend = attend
        self.heads = heads
        self.window = window
        self.frames = frames
        num_positions = frames * (2 * window - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_positions, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Attend from the last frame to all frames.

        Args:
            tokens: Tokens of all frames in n windows, (n, D·N, C), those of the last frame last.
            size: Size (1, h, w) of the windows of a frame, N = h·w, at most `window` each.

        Returns:
            (n, N, C).
        """
        return self.proj(self.attend_heads(tokens, size))

    def attend_heads(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Attend like `forward`, but without `proj`, which maps every token by itself."""
        bias = self._position_bias(size)
        _, num_queries, num_keys = bias.shape
        head_channels = tokens.shape[-1] // self.heads
        queries = self._project(tokens[:, -num_queries:], 0, 1)
        q = queries.view(-1, num_queries, self.heads, head_channels)
        q = q.transpose(1, 2)  # (n, heads, N, d)
        keys_values = self._project(tokens, 1, 3)
        keys_values = keys_values.view(-1, num_keys, 2, self.heads, head_channels)
        k, v = keys_values.permute(2, 0, 3, 1, 4).unbind(0)  # (n, heads, D·N, d) each
        return self.attend(q, k, v, bias)

    def _project(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Compute a range of queries (0), keys (1) and values (2).

        Args:
            tokens: (..., C).
            start: First of the range.
            stop: End of the range, exclusive.

        Returns:
            (..., (stop − start)·C).
        """
        channels = tokens.shape[-1]
        rows = slice(start * channels, stop * channels)
        return functional.linear(tokens, self.qkv.weight[rows], self.qkv.bias[rows])

    def _position_bias(self, size: Sequence[int]) -> Tensor:
        """Look up the bias of every query and key in a window: (heads, N, D·N)."""
        window = (self.window, self.window)
        tables = self.relative_position_bias_table.chunk(self.frames)
        # The first table is that of the last frame.
        biases = [relative_position_bias(table, window, size[1:]) for table in reversed(tables)]
        return torch.cat(biases, -1)


class Mlp(nn.Module):
    """Two linear layers for each token, with GELU (exact, not its tanh approximation) between.

    Args:
        channels: Number of channels of a token.
        hidden: Number of channels between the layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return self.fc2(functional.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """Two linear layers for each token; GELU of one projection gates the other (GEGLU).

    Args:
        channels: Number of channels of a token.
        hidden: Number of channels between the layers.
        out_channels: Number of channels of the result; None: `channels`.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.fc11 = nn.Linear(channels, hidden)
        self.fc12 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, out_channels or channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C')."""
        return self.fc2(functional.gelu(self.fc11(x)) * self.fc12(x))
