"""Attention within windows, with a learned bias for every relative position.

    x (n, N, C) tokens of n windows ─ q, k, v (n, heads, N, C / heads)
    softmax(q kᵀ / √d + bias) v,    bias (heads, N, N) read from a table of (2w − 1)² relative positions

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
            belongs to the position of the query less that of the key, plus window − 1.
        window: the size that the table is for.
        size: of the window that is asked for, at most `window` along each axis.

    Returns:
        (heads, N, N), query by key, N = ∏ size.
    """
    axes = range(1, len(window) + 1)
    heads = table.shape[-1]
    bias = table.T.reshape(heads, *(2 * w - 1 for w in window)).flip(list(axes))
    for axis, w, s in zip(axes, window, size, strict=True):
        # Entry [i, j] is that of the distance size - 1 - i - j: of query size - 1 - i and key j.
        bias = bias.narrow(axis, w - s, 2 * s - 1).unfold(axis, s, 1)
    return bias.flip(list(axes)).reshape(heads, prod(size), prod(size))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Let every query look at the keys of its window (Eq. 4).

    Args:
        q: (n, heads, N, d).
        k: (n, heads, M, d).
        v: (n, heads, M, d).
        bias: (heads, N, M), added to the scores.

    Returns:
        (n, N, heads·d).
    """
    out = functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)[None])
    return out.transpose(1, 2).flatten(2)


class WindowAttention(nn.Module):
    """Self-attention of the tokens of each window: (n, N, C) → the same shape.

    Args:
        channels: width of the tokens.
        heads: of the attention; a divisor of `channels`.
        window: size of a whole window along each axis.
        qkv_bias: whether queries, keys and values have biases.
    """

    def __init__(
        self, channels: int, heads: int, window: Sequence[int], *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window = tuple(window)
        entries = prod(2 * w - 1 for w in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(entries, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Let the tokens of each window look at each other.

        Args:
            x: (n, N, C), the tokens of n windows.
            size: of these windows along each axis, N = ∏ size; less than `window` where a shift
                cuts them.

        Returns:
            (n, N, C).
        """
        bias = relative_position_bias(self.relative_position_bias_table, self.window, size)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v, bias))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them, token by token.

    Args:
        channels: width of the tokens.
        hidden: width between the layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return self.fc2(functional.gelu(self.fc1(x)))
