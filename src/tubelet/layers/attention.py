"""Attention within windows, with a learned bias for every relative position.

    x (n, N, C) tokens of n windows ─ q, k, v (n, heads, N, C / heads)
    softmax(q kᵀ / √d + bias) v
    bias (heads, N, N) is read from a table of (2w − 1)² relative positions

Source: Liu et al., Swin Transformer, ICCV 2021, Eq. 4; the MLP: Dosovitskiy et al., ViT, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Mlp", "WindowAttention", "attend", "relative_position_bias"]


def relative_position_bias(table: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """Look up the bias of every pair of tokens of a window.

    Args:
        table: (∏ (2·window − 1), heads); the last axis of the window changes fastest, and an entry
            belongs to the position of the query minus that of the key, plus window − 1.
        window: Window size that the table was made for.
        size: Size of the actual window, at most `window` along each axis.

    Returns:
        (heads, N, N), query by key, N = ∏ size.
    """
    heads = table.shape[-1]
    axes = range(1, len(window) + 1)
    table_shape = [2 * side - 1 for side in window]
    # (heads, 2·w₁ − 1, 2·w₂ − 1, …), with distances descending along each axis.
    bias = table.T.reshape(heads, *table_shape)
    bias = bias.flip(list(axes))
    for axis, max_side, side in zip(axes, window, size, strict=True):
        distances = bias.narrow(axis, max_side - side, 2 * side - 1)
        # Entry [i, j] is that of the distance side - 1 - i - j: of query side - 1 - i and key j.
        bias = distances.unfold(axis, side, 1)
    # (heads, *queries, *keys); undo the reversed order of the queries.
    bias = bias.flip(list(axes))
    num_tokens = prod(size)
    return bias.reshape(heads, num_tokens, num_tokens)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
) -> Tensor:
    """Attend from every query to the keys of its window (Eq. 4).

    Args:
        q: Queries, (n, heads, N, d).
        k: Keys, (n, heads, M, d).
        v: Values, (n, heads, M, d).
        bias: (heads, N, M), added to the scores.

    Returns:
        (n, N, heads·d).
    """
    out = functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)[None])
    return out.transpose(1, 2).flatten(2)


class WindowAttention(nn.Module):
    """Self-attention of the tokens of each window: (n, N, C) → the same shape.

    Args:
        channels: Width of the tokens.
        heads: Number of heads, a divisor of `channels`.
        window: Size of a full window along each axis.
        qkv_bias: Give queries, keys and values learned biases.
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

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Attend among the tokens of each window.

        Args:
            x: Tokens of n windows, (n, N, C).
            size: Size of these windows along each axis, N = ∏ size; less than `window` where a
                shift cuts them.

        Returns:
            (n, N, C).
        """
        bias = relative_position_bias(self.relative_position_bias_table, self.window, size)
        # (n, N, 3, heads, d) → (3, n, heads, N, d)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(attend(q, k, v, bias))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them, token by token.

    Args:
        channels: Width of the tokens.
        hidden: Width between the layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return self.fc2(functional.gelu(self.fc1(x)))
