"""Swin block of a clip: attention within windows of several frames, then an MLP.

    x (B, T, H, W, C)   x + attention(LN x), then x + MLP(LN x)

The normalized features are extended by zeros to whole windows; the zeros take part in the
attention. The windows are processed in blocks that fit into the cache of a CPU.

Source: Liu et al., Video Swin Transformer, CVPR 2022, as VRT and RVRT use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.layers.attention import WindowAttention
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.windows import fit_windows, zero_padded_blocks

__all__ = ["ClipSwinBlock"]


class ClipSwinBlock(SwitchableLayer):
    """Attention within windows of a clip, then an MLP.

    Args:
        channels: Number of channels.
        heads: Number of attention heads.
        window: Size of a window along time, height and width.
        shift: Shift of the windows along each axis.
        mlp: Maps each token, (..., C) to the same shape.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int],
        shift: Sequence[int],
        mlp: nn.Module,
    ) -> None:
        super().__init__()
        self.window = tuple(window)
        self.shift = tuple(shift)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, self.window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to the same shape."""
        window, shift = fit_windows(x.shape[1:-1], self.window, self.shift)
        biases: dict[tuple[int, ...], Tensor] = {}
        out = torch.empty_like(x)
        for block in zero_padded_blocks(x, window=window, shift=shift, backend=self.backend):
            if block.size not in biases:
                biases[block.size] = self.attn.position_bias(block.size)
            part = x[block.index]
            tokens = block.split(self.norm1(part))
            attended = self.attn(tokens, block.size, biases[block.size])
            part = part + block.join(attended, part)
            out[block.index] = part + self.mlp(self.norm2(part))
        return out
