"""Adaptive attention of DAT: attention beside a convolution, each of which weights the other.

    tokens (B, N, C) of an image of `size` (H, W), N = H·W

    qkv ─┬─ q, k, v ── attention ──────────────────────── a
         └─ v ── depth-wise 3×3 convolution, BN, GELU ─── c

    channel map(y)   sigmoid(1×1 ─ BN ─ GELU ─ 1×1) of the mean of y over the image    (B, C, 1, 1)
    pixel map(y)     sigmoid(1×1 ─ BN ─ GELU ─ 1×1) of y                               (B, 1, H, W)

    spatial   proj(a · channel map(c) + c · pixel map(a))       a attends to pixels of its window
    channel   proj(a · pixel map(c) + c · channel map(a))       a attends to channels of its head

Spatial attention divides the image into windows of h×w pixels for the first half of the channels,
and of w×h pixels for the second half. Queries, keys and values are extended by zeros to multiples
of the longer side; the zeros take part in the attention.

Source: Chen et al. (DAT), ICCV 2023; position bias: Wang et al., CrossFormer, ICLR 2022; channel
attention: Zamir et al., Restormer, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.layers.attention import attend, relative_position_bias
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.windows import WindowBlock, zero_padded_blocks
from tubelet.ops.sizes import round_up

__all__ = ["AdaptiveChannelAttention", "AdaptiveSpatialAttention"]

# Channels divided by the inner width of the maps.
_CHANNEL_MAP_REDUCTION = 8
_PIXEL_MAP_REDUCTION = 16
# Inner width of the position network: half of the channels, a quarter of it, a quarter of that.
_POSITION_REDUCTIONS = (2, 4, 4)
# Smallest length by which queries and keys are divided, as in `functional.normalize`.
_MIN_LENGTH = 1e-12
# Tokens whose queries and keys are computed at a time, to stay in the CPU cache.
_STRIP_TOKENS = 2048


class PositionBias(nn.Module):
    """Network that maps the offset between two tokens of a window to a bias for every head.

    Args:
        channels: Number of channels of the tokens, C.
        heads: Number of heads.
        window: Height and width of a window.
    """

    def __init__(self, channels: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        width = channels
        for reduction in _POSITION_REDUCTIONS:
            width //= reduction
        self.window = window
        self.is_constant = width == 1
        """Whether the bias is the same for all offsets: layer normalization of a single number is
        its learned shift. Such a bias changes no softmax, so it need not be computed."""
        self.pos_proj = nn.Linear(2, width)
        self.pos1 = _position_stage(width, width)
        self.pos2 = _position_stage(width, width)
        self.pos3 = _position_stage(width, heads)

    def table(self) -> Tensor:
        """Compute the biases of all offsets in a window, as `relative_position_bias` takes them.

        Returns:
            ((2h − 1)·(2w − 1), heads).
        """
        weight = self.pos_proj.weight
        axes: list[Tensor] = []
        for side in self.window:
            axes.append(torch.arange(1 - side, side, device=weight.device, dtype=weight.dtype))
        rows, columns = torch.meshgrid(axes, indexing="ij")
        offsets = torch.stack([rows, columns], -1).flatten(0, 1)
        x = self.pos1(self.pos_proj(offsets))
        return self.pos3(self.pos2(x))


def _position_stage(width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out_width))


class ConvNorm(nn.Module):
    """Convolution that keeps the size, batch normalization, GELU.

    In evaluation, the normalization multiplies and shifts each channel by a constant, which the
    weights of the convolution take in.

    Args:
        in_channels: C of the input.
        out_channels: C' of the result.
        kernel_px: Side of the kernel, odd.
        groups: Groups of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_px: int, *, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_px // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_px, padding=padding, groups=groups)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        if self.norm.training:
            return functional.gelu(self.norm(self.conv(x)))
        mean = cast(Tensor, self.norm.running_mean)
        variance = cast(Tensor, self.norm.running_var)
        factor = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        bias = self.norm.bias - mean * factor
        if self.conv.bias is not None:
            bias = bias + self.conv.bias * factor
        y = functional.conv2d(
            x,
            self.conv.weight * factor.view(-1, 1, 1, 1),
            bias,
            padding=self.conv.padding[0],
            groups=self.conv.groups,
        )
        return functional.gelu(y)


class InteractionMap(nn.Module):
    """Weights from 0 to 1 by which one branch scales the other.

    Args:
        channels: C of the input.
        hidden: Inner width.
        out_channels: C to weight channels, 1 to weight pixels.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        return self.expand(self.reduce(x)).sigmoid()


class AdaptiveInteraction(nn.Module):
    """Convolution of the values that interacts with the attention: AIM.

    Args:
        channels: Number of channels of a token, C.
        attention: Kind of the attention. It is weighted along the dimension that it lacks: spatial
            attention by channel, channel attention by pixel, and the convolution the other way.
    """

    def __init__(self, channels: int, attention: Literal["spatial", "channel"]) -> None:
        super().__init__()
        self.attention: Literal["spatial", "channel"] = attention
        self.local = ConvNorm(channels, channels, 3, groups=channels)
        self.channel_map = InteractionMap(channels, channels // _CHANNEL_MAP_REDUCTION, channels)
        self.pixel_map = InteractionMap(channels, channels // _PIXEL_MAP_REDUCTION, 1)

    def forward(self, attended: Tensor, v: Tensor) -> Tensor:
        """Add the attention and the convolution of the values, each weighted by the other.

        Args:
            attended: Result of the attention, (B, H, W, C).
            v: Values of the attention, (B, H, W, C).

        Returns:
            (B, H, W, C).
        """
        attended = attended.permute(0, 3, 1, 2)  # (B, C, H, W)
        local = self.local(v.permute(0, 3, 1, 2))  # (B, C, H, W)
        if self.attention == "spatial":
            attention_weight = self._weight_channels(local)
            local_weight = self.pixel_map(attended)
        else:
            attention_weight = self.pixel_map(local)
            local_weight = self._weight_channels(attended)
        y = torch.addcmul(attended * attention_weight, local, local_weight)
        return y.permute(0, 2, 3, 1)

    def _weight_channels(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a weight for each channel, (B, C, 1, 1)."""
        return self.channel_map(x.mean((2, 3), keepdim=True))


def _project(qkv: nn.Linear, x: Tensor, *ranges: slice) -> Tensor:
    """Compute some of the 3·C channels of queries, keys and values, in this order.

    Args:
        qkv: Layer that computes all of them.
        x: (..., C).
        ranges: Ranges of these channels, one after the other in the result.

    Returns:
        (..., number of channels).
    """
    weight = torch.cat([qkv.weight[rows] for rows in ranges])
    bias = cast("Tensor | None", qkv.bias)
    if bias is not None:
        bias = torch.cat([bias[rows] for rows in ranges])
    return functional.linear(x, weight, bias)


class AdaptiveSpatialAttention(SwitchableLayer):
    """Attention within windows of two orientations, beside a convolution: AS-SA.

    Args:
        channels: Number of channels of a token, C.
        heads: Number of heads, half of them for each orientation.
        split_size: Height and width of the windows of the first orientation, pixels.
        is_shifted: Shift the windows by half of their size.
        qkv_bias: Add learned biases to queries, keys and values.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        split_size: tuple[int, int],
        is_shifted: bool,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.is_shifted = is_shifted
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.interaction = AdaptiveInteraction(channels, "spatial")
        self.proj = nn.Linear(channels, channels)
        height, width = split_size
        self.windows = ((height, width), (width, height))
        self.position_bias = nn.ModuleList()
        for window in self.windows:
            self.position_bias.append(PositionBias(channels, heads // 2, window))

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Attend among the tokens of each window.

        Args:
            tokens: Tokens of an image, (B, N, C).
            size: Height and width of the image, N = H·W.

        Returns:
            (B, N, C).
        """
        batch, _, channels = tokens.shape
        x = tokens.reshape(batch, *size, channels)  # (B, H, W, C)
        v = _project(self.qkv, x, slice(2 * channels, 3 * channels))  # (B, H, W, C)
        attended = torch.empty_like(v)
        for orientation in (0, 1):
            self._attend(x, v, attended, orientation)
        return self.proj(self.interaction(attended, v).flatten(1, 2))

    def _attend(self, x: Tensor, v: Tensor, out: Tensor, orientation: int) -> None:
        """Attend within the windows of one orientation, for half of the channels.

        Args:
            x: Normalized features, (B, H, W, C).
            v: Values, (B, H, W, C).
            out: Tensor like `v`, of which half of the channels are written.
            orientation: 0 or 1.
        """
        channels = x.shape[-1]
        heads = self.heads // 2
        half = channels // 2
        first = orientation * half
        queries = slice(first, first + half)
        keys = slice(channels + first, channels + first + half)
        window = self.windows[orientation]
        shift = (window[0] // 2, window[1] // 2) if self.is_shifted else (0, 0)
        padded = [round_up(length, max(window)) for length in x.shape[1:3]]
        biases = _WindowBiases(cast(PositionBias, self.position_bias[orientation]))
        for block in zero_padded_blocks(
            x, window=window, shift=shift, backend=self.backend, padded=padded
        ):
            qk = self._project_windows(block, x, queries, keys)  # (n, N, C)
            qk = qk.view(*qk.shape[:2], 2, heads, -1)
            q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)  # (n, heads/2, N, d) each
            values = block.split(v[block.index][..., queries])  # (n, N, C/2)
            values = values.view(*values.shape[:2], heads, -1).transpose(1, 2)
            attended = attend(q, k, values, biases.of(block.size))  # (n, N, C/2)
            block.write(attended, out[..., queries])

    def _project_windows(self, block: WindowBlock, x: Tensor, *ranges: slice) -> Tensor:
        """Compute `_project` for the windows of a block of x (B, H, W, C): (n, N, channels)."""
        values = x[block.index]
        if not block.has_zeros(values):
            return _project(self.qkv, block.split(values), *ranges)
        # The projections are extended: a zero of x would be projected to the bias.
        return block.split(_project(self.qkv, values, *ranges))


class _WindowBiases:
    """Position biases of windows, each size of which is looked up once.

    Args:
        network: Network that computes the biases.
    """

    def __init__(self, network: PositionBias) -> None:
        self._network = network
        self._table = None if network.is_constant else network.table()
        self._by_size: dict[tuple[int, ...], Tensor] = {}

    def of(self, size: tuple[int, ...]) -> Tensor | None:
        """Return the biases of windows of a size, (heads, N, N); None if they are constant."""
        if self._table is None:
            return None
        if size not in self._by_size:
            bias = relative_position_bias(self._table, self._network.window, size)
            self._by_size[size] = bias
        return self._by_size[size]


class AdaptiveChannelAttention(SwitchableLayer):
    """Attention between the channels of each head, beside a convolution: AC-SA.

    Args:
        channels: Number of channels of a token, C.
        heads: Number of heads.
        qkv_bias: Add learned biases to queries, keys and values.
    """

    def __init__(self, channels: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.interaction = AdaptiveInteraction(channels, "channel")
        self.proj = nn.Linear(channels, channels)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Attend among the channels of each head.

        Args:
            tokens: Tokens of an image, (B, N, C).
            size: Height and width of the image, N = H·W.

        Returns:
            (B, N, C).
        """
        batch, num_tokens, channels = tokens.shape
        image_shape = (batch, *size, channels)
        attention = self._attention(tokens)  # (B, heads, d, d)
        v = _project(self.qkv, tokens, slice(2 * channels, 3 * channels))  # (B, N, C)
        heads = v.view(batch, num_tokens, self.heads, -1).transpose(1, 2)  # (B, heads, N, d)
        attended = (heads @ attention.mT).transpose(1, 2)  # (B, N, heads, d)
        y = self.interaction(attended.reshape(image_shape), v.view(image_shape))
        return self.proj(y.flatten(1, 2))

    def _attention(self, tokens: Tensor) -> Tensor:
        """Compute the weight of every channel for every other one of its head: (B, heads, d, d)."""
        batch, num_tokens, channels = tokens.shape
        in_strips = self.is_prepared and tokens.device.type == "cpu"
        strip_tokens = _STRIP_TOKENS if in_strips else num_tokens
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        products: list[Tensor] = []
        squares: list[Tensor] = []
        for strip in torch.split(tokens, strip_tokens, 1):
            qk = _project(self.qkv, strip, slice(0, 2 * channels))  # (B, n, 2·C)
            # Under autocast, qk has 16 bits, which are too few for the sums.
            squares.append(qk.to(dtype).square().sum(1))
            qk = qk.view(*qk.shape[:2], 2, self.heads, -1)
            q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, n, d) each
            products.append((q.mT @ k).to(dtype))  # (B, heads, d, d)
        # Cosine similarity over all pixels: products are divided by the lengths of q and k.
        lengths = torch.stack(squares).sum(0).sqrt().clamp_min(_MIN_LENGTH)
        q_length, k_length = lengths.view(batch, 2, self.heads, -1).unbind(1)  # (B, heads, d)
        scores = torch.stack(products).sum(0)
        scores = scores / (q_length.unsqueeze(-1) * k_length.unsqueeze(-2))
        return (scores * self.temperature).softmax(-1)
