"""Temporal attention blocks of VRT: within windows of a clip, and between the two frames of a pair.

    x (B, T, H, W, C)
      self block      x + attention(LN x), then x + GatedMlp(LN x)                         Eq. 3
      mutual block    the same, with windows of two frames a and b, 8×8 pixels each:
                        own       attention among all tokens of both frames
                        mutual    row of frame a = attention(q_b, k_a, v_a),               Eq. 2
                                  row of frame b = attention(q_a, k_b, v_b)
                        proj [mutual, own]                                       2C → C

The features are normalized, and then extended by zeros to whole windows. A shifted mutual block
pairs the frames (1, 2), (3, 4), …; frame 0 and the last one make a pair as well:

    T = 6     not shifted  ▏0 1▕▏2 3▕▏4 5▕         shifted by one frame  ▏1 2▕▏3 4▕▏5 0▕
    T = 5     not shifted  ▏0 1▕▏2 3▕▏4 zeros▕     shifted by one frame  ▏1 2▕▏3 4▕▏zeros 0▕

In the pair with frame 0, own attention stays within each frame, as the mask of the published code
says. Its mutual attention does not: the two frames do attend to each other.

Source: Liang et al., VRT: A Video Restoration Transformer, IEEE TIP 2024, Sec. 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.layers.attention import GatedMlp, attend, relative_position_bias
from tubelet.layers.clip_swin import ClipSwinBlock
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.windows import fit_windows, zero_padded_blocks

__all__ = ["MutualAttention", "MutualBlock", "SelfBlock", "sine_position_code"]

_MLP_RATIO = 2
# Base of the wavelengths of the position code, as in Vaswani et al. (2017), Sec. 3.5.
_WAVELENGTH_BASE = 10_000.0


def sine_position_code(side: int, channels: int) -> Tensor:
    """Encode the positions of a square window by sines and cosines.

    Args:
        side: Side of the window.
        channels: C: half of them encode the row, the other half the column.

    Returns:
        (side, side, C). In each half, channel 2i is the sine and channel 2i + 1 the cosine of
        2π · position / side / 10000^(4i / C), with positions from 1 to the side.
    """
    half = channels // 2
    angle = 2 * math.pi * torch.arange(1, side + 1) / side
    pair = torch.arange(half) // 2
    wavelength = _WAVELENGTH_BASE ** (2 * pair / half)
    phase = angle[:, None] / wavelength  # (side, C/2)
    code = torch.empty_like(phase)
    code[:, 0::2] = phase[:, 0::2].sin()
    code[:, 1::2] = phase[:, 1::2].cos()
    rows = code[:, None].expand(side, side, half)
    columns = code[None].expand(side, side, half)
    return torch.cat([rows, columns], -1)


class MutualAttention(nn.Module):
    """Attention among the tokens of two frames, and from each frame to the other.

    Args:
        channels: Number of channels of a token, C.
        heads: Number of heads, a divisor of `channels`.
        window: Size of a full window along each axis; the first is 2, the others are equal.
    """

    position_code: Tensor

    def __init__(self, channels: int, heads: int, window: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        self.window = tuple(window)
        num_positions = math.prod([2 * side - 1 for side in window])
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_positions, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv_self = nn.Linear(channels, 3 * channels)
        self.qkv_mut = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(2 * channels, channels)
        code = sine_position_code(self.window[-1], channels)
        self.register_buffer("position_code", code, persistent=False)

    def forward(
        self,
        x: Tensor,
        size: Sequence[int],
        offset: Sequence[int] = (0, 0, 0),
        *,
        is_adjacent: bool = True,
    ) -> Tensor:
        """Attend among the tokens of each window.

        Args:
            x: Tokens of n windows, (n, N, C).
            size: Size of these windows along each axis, (2, h, w), N = 2·h·w.
            offset: Position of these windows in a full window along each axis.
            is_adjacent: Whether the two frames follow each other. Otherwise the tokens of one do
                not see those of the other, except through mutual attention.

        Returns:
            (n, N, C).
        """
        num_windows, num_tokens, channels = x.shape
        _, height, width = size
        frames = x.view(num_windows, 2, height * width, channels)

        # Frames that attend to themselves alone are windows of one frame each.
        own_size = (2, height, width) if is_adjacent else (1, height, width)
        own_tokens = x if is_adjacent else frames.flatten(0, 1)
        q, k, v = self._split_heads(self.qkv_self(own_tokens))
        bias = relative_position_bias(self.relative_position_bias_table, self.window, own_size)
        own = attend(q, k, v, bias).view(num_windows, num_tokens, channels)

        # Eq. 2: the queries of each frame, and the keys and values of the other.
        code = self._code_of_window(size, offset)
        q, k, v = self._split_heads(self.qkv_mut(frames + code).flatten(0, 1))
        q = q.view(num_windows, 2, *q.shape[1:]).flip(1).flatten(0, 1)
        mutual = attend(q, k, v).view(num_windows, num_tokens, channels)
        return self.proj(torch.cat([mutual, own], -1))

    def _code_of_window(self, size: Sequence[int], offset: Sequence[int]) -> Tensor:
        """Cut out the position code of windows, (h·w, C)."""
        _, height, width = size
        _, top, left = offset
        code = self.position_code[top : top + height, left : left + width]
        return code.flatten(0, 1)

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Turn (m, N, 3·C) into queries, keys and values, (m, heads, N, d) each."""
        by_head = qkv.view(*qkv.shape[:2], 3, self.heads, -1)  # (m, N, 3, heads, d)
        return by_head.permute(2, 0, 3, 1, 4).unbind(0)


class SelfBlock(ClipSwinBlock):
    """Attention within windows of a clip, then a gated MLP (Eq. 3 without mutual attention).

    Args:
        channels: Number of channels.
        heads: Number of attention heads.
        window: Size of a window along time, height and width.
        shift: Shift of the windows along each axis.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: Sequence[int],
        shift: Sequence[int],
    ) -> None:
        mlp = GatedMlp(channels, _MLP_RATIO * channels)
        super().__init__(channels, heads, window, shift, mlp)


class MutualBlock(SwitchableLayer):
    """Mutual and self-attention within pairs of frames, then a gated MLP (Eq. 3).

    Args:
        channels: Number of channels.
        heads: Number of attention heads.
        window: Height and width of a window.
        is_shifted: Shift the windows by half their size along all axes.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        *,
        is_shifted: bool,
    ) -> None:
        super().__init__()
        self.window = (2, window, window)
        self.is_shifted = is_shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = MutualAttention(channels, heads, self.window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = GatedMlp(channels, _MLP_RATIO * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to the same shape."""
        out = torch.empty_like(x)
        num_frames = x.shape[1]
        # Two frames fill a window, so they are not shifted.
        if not self.is_shifted or num_frames <= 2:
            self._restore_pairs(x, out, is_adjacent=True)
            return out

        # Frame 0 and the last one, if their number is even, are left over.
        stop = num_frames - 1 if num_frames % 2 == 0 else num_frames
        self._restore_pairs(x[:, 1:stop], out[:, 1:stop], is_adjacent=True)
        ends = [0] if stop == num_frames else [0, num_frames - 1]
        end_frames = x[:, ends]
        restored_ends = torch.empty_like(end_frames)
        self._restore_pairs(end_frames, restored_ends, is_adjacent=False)
        out[:, ends] = restored_ends
        return out

    def _restore_pairs(self, x: Tensor, out: Tensor, *, is_adjacent: bool) -> None:
        """Restore pairs of frames; zeros complete the last pair.

        Args:
            x: (B, T, H, W, C): the pairs one after the other.
            out: Same shape; receives the result.
            is_adjacent: Whether the frames of a pair follow each other.
        """
        frames, *sides = self.window
        half = [side // 2 if self.is_shifted else 0 for side in sides]
        window, shift = fit_windows(x.shape[2:-1], sides, half)
        blocks = zero_padded_blocks(
            x,
            window=(frames, *window),
            shift=(0, *shift),
            backend=self.backend,
        )
        for block in blocks:
            part = x[block.index]
            tokens = block.split(self.norm1(part))
            attended = self.attn(tokens, block.size, block.offset, is_adjacent=is_adjacent)
            part = part + block.join(attended, part)
            out[block.index] = part + self.mlp(self.norm2(part))
