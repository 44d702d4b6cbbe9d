"""Transformer that computes the state of a sweep from a frame and two aligned states.

    current, newer, older (B, C, H, W), stacked along the time in the order of `StackOrder`
      LN (patch_norm) ─┬─ TemporalGroup × G ─ LN (norm) ─ conv_after_body ─(+)─ state (B, C, H, W)
                       │                              current ─────────────┘
                       └─ past, the same for all blocks

    TemporalGroup    x + conv(blocks(x, past)), frame by frame
    TemporalBlock    x + attention(LN [past, x]), then x + MLP(LN x); the windows of every second
                     block are shifted by half a window

    block    x, which it changes    past                 attention
      MFSAB  all three frames       none                 every token to all tokens of its window
      IIAB   current                the two past states  queries of current, keys of all three

    x     (B, D, H, W, C), channels last, D = 3 or 1 frames
    past  two maps (B, 1, H, W, C), or none

Sides that are no multiple of the window are extended by zeros behind the first norm of each block,
and the zeros take part in the attention.

Source: Shi et al. (PSRT), NeurIPS 2022, Sec. 4; Zhou et al. (MIA-VSR), CVPR 2024, Sec. 3.2;
residual groups: Liang et al. (SwinIR), ICCVW 2021, Eqs. 8 and 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from tubelet.layers.attention import Mlp, QueryFrameAttention, WindowAttention
from tubelet.layers.convolution import ConvAdd
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.windows import map_windows
from tubelet.ops.sizes import round_up

__all__ = [
    "NUM_FRAMES",
    "BlockConfig",
    "StackOrder",
    "SweepConfig",
    "SweepTransformer",
    "TemporalBlock",
    "TemporalGroup",
    "build_iiab",
    "build_mfsab",
    "pad_tokens",
]

NUM_FRAMES = 3
"""Frames in a window: the current one and two aligned states."""

StackOrder = Literal["current-last", "current-middle"]
"""Order along the time, which matters for the position biases.

current-last: older, newer, current.
current-middle: newer, current, older.
"""


class SweepConfig(Protocol):
    """Fields of the configuration of a network that its sweeps depend on."""

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        ...

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each group."""
        ...

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Number of attention heads of each group."""
        ...

    @property
    def window(self) -> int:
        """Side of a window, pixels."""
        ...

    @property
    def mlp_ratio(self) -> float:
        """Hidden width of the MLPs divided by C."""
        ...

    @property
    def drop_path(self) -> float:
        """Probability of the last block, see `BlockConfig`; it rises linearly from 0."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """Configuration of a block."""

    channels: int
    """Number of channels of a token, C."""
    heads: int
    """Number of attention heads."""
    window: int
    """Side of a full window, pixels."""
    shift: int = 0
    """Shift of the windows, pixels."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLP divided by C."""
    drop_path: float = 0.0
    """Probability with which training drops a branch for an element of the batch."""


class TemporalBlock(SwitchableLayer):
    """Attention within windows of all frames, then an MLP, each normalized first and added.

    Args:
        config: Configuration of the block.
        attention: Maps the tokens of all frames in n windows, (n, 3·N, C), and the size (D, h, w)
            of the windows of x, N = h·w, to (n, D·N, C).
        num_frames: Number of frames that the block changes, D.
        mlp: Layers of the second branch, see `feed_forward`; None: an `Mlp`.
    """

    def __init__(
        self,
        config: BlockConfig,
        attention: nn.Module,
        num_frames: int,
        *,
        mlp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        c = config.channels
        self.window = (num_frames, config.window, config.window)
        self.shift = (0, config.shift, config.shift)
        self.drop_path = config.drop_path
        self.norm1 = nn.LayerNorm(c)
        self.attn = attention
        self.norm2 = nn.LayerNorm(c)
        self.mlp = mlp or Mlp(c, round(c * config.mlp_ratio))

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, ...],
        inside: Tensor | None = None,
    ) -> Tensor:
        """Update the tokens of x.

        Args:
            x: (B, D, H, W, C).
            past: Further frames before x along the time, (B, 1, H, W, C) each.
            inside: 1 for the pixels of the image and 0 for its padding, (B, D, H, W, 1); None if
                there is no padding.

        Returns:
            (B, D, H, W, C).
        """
        factors = self._path_factors(x)

        def restore(windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            return windows[0] + self._window_residual(windows, size, len(past), factors)

        inputs = [x, *past] if inside is None else [x, *past, inside]
        return map_windows(
            restore,
            inputs,
            window=self.window,
            shift=self.shift,
            backend=self.backend,
        )

    def _window_residual(
        self,
        windows: tuple[Tensor, ...],
        size: tuple[int, ...],
        num_past: int,
        factors: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Compute what the block adds to the tokens x of windows of `size`, (n, D·N, C).

        Args:
            windows: Tokens of x and of the past frames, and the image mask if there is padding.
            size: (D, h, w), N = h·w.
            num_past: Number of past frames.
            factors: Factors of both branches, see `_path_factors`.
        """
        x = windows[0]
        past = windows[1 : 1 + num_past]
        attended = self.attn(self._normalized(windows, num_past), size).to(x.dtype)
        if factors is None:
            return attended + self.feed_forward(x + attended, past)

        attended = _scaled(attended, factors[0])
        return attended + _scaled(self.feed_forward(x + attended, past), factors[1])

    def _normalized(self, windows: tuple[Tensor, ...], num_past: int) -> Tensor:
        """Normalize the tokens of all frames, (n, 3·N, C), those of the padding to zero."""
        x = windows[0]
        past = windows[1 : 1 + num_past]
        tokens = self.norm1(torch.cat([*past, x], 1) if past else x)
        if len(windows) == 1 + num_past:
            return tokens
        inside = windows[-1]
        return tokens * inside.repeat(1, 1 + num_past, 1)

    def feed_forward(self, x: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """Return what the second branch adds to x.

        Args:
            x: Tokens after the attention, (n, D·N, C).
            past: Tokens of the past frames, (n, N, C) each.

        Returns:
            (n, D·N, C).
        """
        return self.mlp(self.norm2(x))

    def _path_factors(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Draw the factor of each branch for every element of the batch: 0, or 1 / (1 − p).

        Returns:
            Factors of the attention and of the MLP, (B,) each; None if nothing is dropped.
        """
        if not self.training or self.drop_path == 0:
            return None
        keep = 1 - self.drop_path
        drawn = torch.rand(2, x.shape[0], device=x.device) < keep
        attention, mlp = drawn.to(x.dtype) / keep
        return attention, mlp


def _scaled(branch: Tensor, factors: Tensor) -> Tensor:
    """Multiply windows (n, N, C), which are in the order of the batch, by a factor (B,) each."""
    windows_per_element = branch.shape[0] // factors.shape[0]
    return branch * factors.repeat_interleave(windows_per_element).view(-1, 1, 1)


def build_mfsab(config: BlockConfig) -> TemporalBlock:
    """Build PSRT's multi-frame self-attention block."""
    window = (NUM_FRAMES, config.window, config.window)
    attention = WindowAttention(config.channels, config.heads, window)
    return TemporalBlock(config, attention, NUM_FRAMES)


def build_iiab(config: BlockConfig) -> TemporalBlock:
    """Build MIA-VSR's intra- and inter-frame attention block."""
    attention = QueryFrameAttention(config.channels, config.heads, config.window, NUM_FRAMES)
    return TemporalBlock(config, attention, 1)


class TemporalGroup(nn.Module):
    """Blocks, a convolution of every frame, a skip.

    Args:
        channels: Number of channels, C.
        blocks: Blocks, called with x, past and inside, see `TemporalBlock`.
    """

    def __init__(self, channels: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = ConvAdd(channels, channels)

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, ...],
        inside: Tensor | None,
        size: tuple[int, int],
    ) -> Tensor:
        """Update the tokens of x.

        Args:
            x: (B, D, H, W, C); the padding holds any finite values.
            past: See `TemporalBlock`.
            inside: See `TemporalBlock`.
            size: Height and width of the image without padding.

        Returns:
            (B, D, H, W, C), the padding with any finite values.
        """
        y = x
        for block in self.blocks:
            y = block(y, past, inside)
        return self.merge(y, x, inside, size)

    def merge(
        self,
        y: Tensor,
        x: Tensor,
        inside: Tensor | None,
        size: tuple[int, int],
    ) -> Tensor:
        """Convolve tokens y that the blocks returned, and add the tokens x; see `forward`."""
        # The convolution sees zeros around the image, not the padding.
        height, width = size
        image = _as_images(y[:, :, :height, :width])
        skip = _as_images(x[:, :, :height, :width])
        out = self.conv(image, skip).permute(0, 2, 3, 1)  # (B·D, H, W, C)
        out = out.unflatten(0, x.shape[:2]).contiguous()
        return out if inside is None else pad_tokens(out, x.shape[2], x.shape[3])


class SweepTransformer(nn.Module):
    """Compute the state of a sweep; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
        build_block: Builds a block, such as `build_mfsab`.
        order: Order of the frames along the time.
        updates: Frames that the blocks change.
    """

    def __init__(
        self,
        config: SweepConfig,
        build_block: Callable[[BlockConfig], nn.Module],
        *,
        order: StackOrder,
        updates: Literal["current", "all"],
    ) -> None:
        super().__init__()
        c = config.channels
        self.window = config.window
        self.order: StackOrder = order
        self.updates = updates
        last_index = max(sum(config.depths) - 1, 1)
        # Index of the next block in the whole sweep.
        index = 0

        self.patch_norm = nn.LayerNorm(c)
        self.groups = nn.ModuleList()
        for depth, heads in zip(config.depths, config.num_heads, strict=True):
            blocks: list[nn.Module] = []
            for i in range(depth):
                block_config = BlockConfig(
                    channels=c,
                    heads=heads,
                    window=config.window,
                    # Every second block shifts its windows, so that information crosses borders.
                    shift=config.window // 2 if i % 2 else 0,
                    mlp_ratio=config.mlp_ratio,
                    drop_path=config.drop_path * index / last_index,
                )
                blocks.append(build_block(block_config))
                index += 1
            self.groups.append(TemporalGroup(c, blocks))
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = ConvAdd(c, c)
        self.apply(_init_linear)

    def forward(self, current: Tensor, newer: Tensor, older: Tensor) -> Tensor:
        """Compute the state of a frame.

        Args:
            current: Features of the frame, (B, C, H, W).
            newer: Aligned state of the frame that the sweep visited last, (B, C, H, W).
            older: Aligned state of the frame before that, (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        size = (current.shape[-2], current.shape[-1])
        x, past, inside = self.embed(current, newer, older)
        for group in self.groups:
            x = group(x, past, inside, size)
        return self.project(x, current)

    def embed(
        self,
        current: Tensor,
        newer: Tensor,
        older: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Make the tokens of all frames: x, past and inside, as `TemporalBlock` takes them."""
        height, width = current.shape[-2:]
        if self.order == "current-last":
            frames = [older, newer, current]
        else:
            frames = [newer, current, older]
        stack = [self._tokens(frame) for frame in frames]  # (B, 1, H, W, C) each

        x, past = stack[-1], tuple(stack[:-1])
        if self.updates == "all":
            x, past = torch.cat(stack, 1), ()
        return x, past, self._inside(x, height, width)

    def project(self, x: Tensor, current: Tensor) -> Tensor:
        """Compute the state (B, C, H, W) from the tokens x behind the groups."""
        height, width = current.shape[-2:]
        middle = NUM_FRAMES // 2
        index = middle if self.order == "current-middle" else -1
        y = self.norm(x[:, index, :height, :width]).permute(0, 3, 1, 2)
        return self.conv_after_body(y, current)

    def _tokens(self, frame: Tensor) -> Tensor:
        """Normalize a frame and pad it to whole windows: (B, C, H, W) → (B, 1, H', W', C)."""
        tokens = self.patch_norm(frame.permute(0, 2, 3, 1))[:, None]
        height, width = frame.shape[-2:]
        padded_height = round_up(height, self.window)
        padded_width = round_up(width, self.window)
        if (padded_height, padded_width) == (height, width):
            return tokens.contiguous()
        return pad_tokens(tokens, padded_height, padded_width)

    def _inside(self, x: Tensor, height: int, width: int) -> Tensor | None:
        """Mark the pixels of the image in the padded x, see `TemporalBlock`."""
        if x.shape[2:4] == (height, width):
            return None
        inside = x.new_zeros(*x.shape[:-1], 1)
        inside[:, :, :height, :width] = 1
        return inside


def _as_images(tokens: Tensor) -> Tensor:
    """View (B, D, H, W, C) as (B·D, C, H, W)."""
    return tokens.flatten(0, 1).permute(0, 3, 1, 2)


def pad_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Extend (B, D, H, W, C) to the right and below with zeros."""
    batch, num_frames, old_height, old_width, channels = tokens.shape
    padded = tokens.new_zeros(batch, num_frames, height, width, channels)
    padded[:, :, :old_height, :old_width] = tokens
    return padded


def _init_linear(module: nn.Module) -> None:
    """Initialize as the Swin Transformer does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
