"""HAT: hybrid attention, which adds channel attention and overlapping windows to window attention.

    lq (B, T, 3, H, W), frame by frame; x = (lq − mean) · img_range, padded to whole windows
      conv_first ─┬─ LN ─ RHAG × G ─ LN ─ conv_after_body ─(+)─ upsampler ─ / img_range + mean ─ sr
                  └────────────────────────────────────────┘   features (B, H, W, C), channels last

    RHAG        x + conv(OCAB(D HABs(x)))                                                 Sec. 3.1
    HAB         n = LN x;  x + attention(n) + α · CAB(n), then x + MLP(LN x)          Eqs. 2 to 4
    CAB         channel attention                                                         Sec. 3.2
    OCAB        the queries of a window see the keys and values of a larger window        Sec. 3.3
                around it; then x + MLP(LN x)
    upsampler   conv, then (conv ─ shuffle) up to ×s, conv

Published configurations, 6 blocks a group, 6 heads, windows of 16, overlap 0.5, α 0.01, ×2 ×3 ×4:
    HAT, Real-HAT     180 channels, 6 groups, compression 3, squeeze 30
    HAT-S             144 channels, 6 groups, compression 24, squeeze 24
    HAT-L             180 channels, 12 groups, compression 3, squeeze 30

Source: Chen et al., Activating More Pixels in Image Super-Resolution Transformer, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.attention import Mlp, TokenLayer, TokenMap, WindowAttention, attend
from tubelet.layers.convolution import ConvAct
from tubelet.layers.frames import stack_frames
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.upsampling import shuffle_and_convolve, shuffle_stages
from tubelet.layers.windows import (
    WindowFunction,
    join_windows,
    map_windows,
    pad_to_windows,
    split_windows,
    window_blocks,
)
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import (
    check_attention_groups,
    check_choice,
    check_min,
    check_positive,
)
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    input_channels,
    is_bias_table,
    rename,
    shuffle_scale,
    without,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "HAT", "HATConfig", "overlapping_position_bias"]

_UPSAMPLE_FACTORS: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (3,),
    4: (2, 2),
    8: (2, 2, 2),
}
"""Factors of the successive pixel shuffles of each scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_HALO_PX = 32
"""Overlap of tiles in the authors' own option files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HATConfig:
    """Configuration of a `HAT`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "embed_dim": "channels",
        "num_feat": "upsample_channels",
        "window_size": "window",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"heads": "num_heads"}

    scale: int = 4
    """Upscaling factor: 2, 3, 4 or 8."""
    channels: int = 180
    """Width of the features."""
    depths: tuple[int, ...] = (6,) * 6
    """Number of hybrid attention blocks in each group."""
    num_heads: tuple[int, ...] = (6,) * 6
    """Number of attention heads in each group."""
    window: int = 16
    """Side of a window, lq pixels."""
    compress_ratio: int = 3
    """`channels` divided by the inner width of the convolutions of the CAB."""
    squeeze_factor: int = 30
    """`channels` divided by the inner width of the channel attention."""
    conv_scale: float = 0.01
    """Weight α of the CAB. Checkpoints do not store it: `infer` takes 0.01, as published."""
    overlap_ratio: float = 0.5
    """Size by which the windows of keys exceed those of queries, in units of the latter."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLPs divided by `channels`."""
    resi_connection: Literal["1conv", "identity"] = "1conv"
    """End of a group: one convolution or nothing."""
    img_range: float = 1.0
    """Inner value of a full-scale pixel. Checkpoints do not store it: `infer` takes 1."""
    upsample_channels: int = 64
    """Width of the upsampler."""
    qkv_bias: bool = True
    """Add biases to queries, keys and values."""
    patch_norm: bool = True
    """Normalize the features before the first group."""

    @property
    def key_window(self) -> int:
        """Side of the windows of keys, lq pixels."""
        # The small summand undoes rounding: an overlap_ratio inferred as (k − w) / w gives k again.
        return self.window + int(self.window * self.overlap_ratio + 1e-6)

    def __post_init__(self) -> None:
        check_choice(self, "scale", _UPSAMPLE_FACTORS)
        check_positive(self, "img_range")
        check_positive(self, "mlp_ratio")
        check_attention_groups(self)
        for field in ("compress_ratio", "squeeze_factor"):
            ratio = getattr(self, field)
            if not 1 <= ratio <= self.channels:
                raise ConfigError(
                    f"HATConfig: {field}={ratio} must be from 1 to channels={self.channels}"
                )
        check_min(self, "window", 1)
        margin_px = self.key_window - self.window
        if margin_px < 0 or margin_px % 2:
            raise ConfigError(
                f"HATConfig: overlap_ratio={self.overlap_ratio} makes windows of keys of "
                f"{self.key_window} px around windows of {self.window} px; "
                "they must be larger by an even number of pixels"
            )


def overlapping_position_bias(
    table: Tensor,
    window: int,
    key_window: int,
) -> Tensor:
    """Look up the bias of each query in a window and each key in the larger window around it.

    The published index of a pair, key − query + window − key_window + 1 for its row and its column,
    is negative for half of the pairs and then counts from the end of the table: here the table is
    rolled instead.

    Args:
        table: Biases by relative position, ((window + key_window − 1)², heads).
        window: Side of the window of queries.
        key_window: Side of the window of keys.

    Returns:
        (heads, window², key_window²).
    """
    heads = table.shape[1]
    side = window + key_window - 1
    # Roll the table so that a pair has the row and column key − query + window − 1.
    shift = (key_window - 2) * (side + 1)
    rolled = table.roll(shift, 0)
    rolled = rolled.view(side, side, heads)
    # Cut out the keys of each query: (window, window, heads, key_window, key_window). The last
    # query has the first entries, so both axes of queries are flipped.
    bias = rolled.unfold(0, key_window, 1)
    bias = bias.unfold(1, key_window, 1)
    bias = bias.flip((0, 1))
    bias = bias.movedim(2, 0)  # (heads, window, window, key_window, key_window)
    return bias.reshape(heads, window**2, key_window**2)


class CAB(nn.Module):
    """Channel attention block: two convolutions, then a weight for each channel (Sec. 3.2).

    Args:
        config: Configuration of the network.
    """

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        c = config.channels
        compressed = c // config.compress_ratio
        squeezed = c // config.squeeze_factor
        self.compress = ConvAct(c, compressed)
        self.expand = ConvAct(compressed, c)
        self.squeeze = nn.Conv2d(c, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = self.compress(x.permute(0, 3, 1, 2))  # (B, C / compress_ratio, H, W)
        y = self.expand(functional.gelu(y))
        # Weight the channels by a function of their means: (B, C, 1, 1).
        weights = self.squeeze(y.mean((2, 3), keepdim=True))
        weights = self.excite(functional.relu(weights))
        weights = weights.sigmoid()
        return (y * weights).permute(0, 2, 3, 1)


class HAB(SwitchableLayer):
    """Hybrid attention block: window and channel attention in parallel, then an MLP (Eqs. 2 to 4).

    All data pass through `attn`, `cab` and `mlp`, which keep the shape of their input.
    `attn(tokens, size)` gets the tokens (n, N, C) of n windows of `size`, N = ∏ size, `mlp(tokens)`
    the same tokens, and `cab(x)` the features (B, H, W, C). For adapters, `add_attention` and
    `add_mlp` compute the two sums one by one. The block itself does not modify its input.

    Args:
        config: Configuration of the network.
        heads: Number of attention heads.
        shift: Shift of the windows, lq pixels.
    """

    def __init__(
        self,
        config: HATConfig,
        heads: int,
        shift: int,
    ) -> None:
        super().__init__()
        c = config.channels
        self.window = (config.window, config.window)
        self.shift = (shift, shift)
        self.conv_scale = config.conv_scale
        self.norm1 = nn.LayerNorm(c)
        self.attn = WindowAttention(c, heads, self.window, qkv_bias=config.qkv_bias)
        self.cab = CAB(config)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c, round(c * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        normed = self.norm1(x)  # Eq. 2
        # Eq. 3, channel attention; the window attention is added window by window.
        x = torch.add(x, self.cab(normed), alpha=self.conv_scale)
        return self._map_windows(self._restore_windows, x, normed)

    def add_attention(self, x: Tensor, attention: TokenLayer) -> Tensor:
        """Compute the first sum of the block, of both attentions, with another window attention.

        Args:
            x: (B, H, W, C).
            attention: Called in place of `attn`.

        Returns:
            (B, H, W, C), to the bit what `forward` would add up.
        """
        normed = self.norm1(x)
        x = torch.add(x, self.cab(normed), alpha=self.conv_scale)

        def add(windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            x, normed = windows
            return x + attention(normed, size)

        return self._map_windows(add, x, normed)

    def add_mlp(self, x: Tensor, beside: TokenMap | None = None) -> Tensor:
        """Compute the second sum of the block, x + mlp(LN x) + beside(LN x).

        The windows are those of the attention, so that the result is that of `forward` to the bit.
        """

        def add(windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            (x,) = windows
            normed = self.norm2(x)
            x = x + self.mlp(normed)
            return x if beside is None else x + beside(normed)

        return self._map_windows(add, x)

    def _map_windows(self, apply: WindowFunction, *inputs: Tensor) -> Tensor:
        return map_windows(
            apply,
            inputs,
            window=self.window,
            shift=self.shift,
            backend=self.backend,
        )

    def _restore_windows(
        self,
        windows: tuple[Tensor, ...],
        size: tuple[int, ...],
    ) -> Tensor:
        """Map the tokens of windows of `size`, plain and normalized, (n, N, C), to (n, N, C)."""
        x, normed = windows
        x = x + self.attn(normed, size)  # Eq. 3, window attention
        return x + self.mlp(self.norm2(x))  # Eq. 4


class OCAB(SwitchableLayer):
    """Overlapping cross-attention block: queries see keys beyond their window (Sec. 3.3, Fig. 4).

    Published files name the parts of the attention and the MLP at the same level, so the attention
    has no module. All data pass through `proj` and `mlp`; the block itself, (B, H, W, C) to the
    same shape, can be wrapped as well.

    Args:
        config: Configuration of the network.
        heads: Number of attention heads.
    """

    def __init__(
        self,
        config: HATConfig,
        heads: int,
    ) -> None:
        super().__init__()
        c = config.channels
        self.window = config.window
        self.key_window = config.key_window
        self.heads = heads
        entries = (self.window + self.key_window - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(entries, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.norm1 = nn.LayerNorm(c)
        self.qkv = nn.Linear(c, 3 * c, bias=config.qkv_bias)
        self.proj = nn.Linear(c, c)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c, round(c * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        keys_values = self._padded_keys_values(x)
        bias = overlapping_position_bias(
            self.relative_position_bias_table,
            self.window,
            self.key_window,
        )
        out = torch.empty_like(x)
        for size, index in self._window_blocks(x):
            tokens = split_windows(x[index], size)  # (n, N, C)
            q = self._project(self.norm1(tokens), 0, 1)
            q = q.view(*q.shape[:2], self.heads, -1)  # (n, N, heads, d)
            q = q.transpose(1, 2)  # (n, heads, N, d)
            _, rows, columns = index
            k, v = self._keys_values_around(keys_values, rows, columns)
            tokens = tokens + self.proj(attend(q, k, v, bias))
            tokens = tokens + self.mlp(self.norm2(tokens))
            join_windows(tokens, size, out[index])
        return out

    def _window_blocks(
        self,
        x: Tensor,
    ) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        window = (self.window, self.window)
        return window_blocks(x, window, (0, 0), self.backend)

    def _project(
        self,
        x: Tensor,
        start: int,
        stop: int,
    ) -> Tensor:
        """Compute a range of queries (0), keys (1) and values (2).

        Args:
            x: Normalized features, (..., C).
            start: First of the range.
            stop: End of the range, exclusive.

        Returns:
            (..., (stop − start)·C).
        """
        channels = x.shape[-1]
        rows = slice(start * channels, stop * channels)
        bias = cast("Tensor | None", self.qkv.bias)
        if bias is not None:
            bias = bias[rows]
        return functional.linear(x, self.qkv.weight[rows], bias)

    def _padded_keys_values(self, x: Tensor) -> Tensor:
        """Compute keys and values of (B, H, W, C), zero-padded: (B, H + 2p, W + 2p, 2C)."""
        batch, height, width, channels = x.shape
        pad = (self.key_window - self.window) // 2
        padded = x.new_zeros(
            batch,
            height + 2 * pad,
            width + 2 * pad,
            2 * channels,
        )
        inside = padded[:, pad : pad + height, pad : pad + width]
        for _, index in self._window_blocks(x):
            inside[index] = self._project(self.norm1(x[index]), 1, 3)
        return padded

    def _keys_values_around(
        self,
        keys_values: Tensor,
        rows: slice,
        columns: slice,
    ) -> tuple[Tensor, Tensor]:
        """Cut out the keys and values around a block of windows.

        Args:
            keys_values: Padded keys and values, (B, H + 2p, W + 2p, 2C).
            rows: Rows of the windows in the features without padding.
            columns: Columns of the windows in the features without padding.

        Returns:
            Keys and values, (n, heads, M, d) each, M = key_window².
        """
        side = self.key_window
        margin = side - self.window
        block = keys_values[
            :,
            rows.start : rows.stop + margin,
            columns.start : columns.stop + margin,
        ]
        # One window of keys for every `window` pixels: (B, rows, columns, 2C, side, side).
        windows = block.unfold(1, side, self.window)
        windows = windows.unfold(2, side, self.window)
        windows = windows.permute(0, 1, 2, 4, 5, 3)  # (B, rows, columns, side, side, 2C)
        head_channels = windows.shape[-1] // (2 * self.heads)
        tokens = windows.reshape(-1, side**2, 2, self.heads, head_channels)  # (n, M, 2, heads, d)
        tokens = tokens.permute(2, 0, 3, 1, 4)  # (2, n, heads, M, d)
        k, v = tokens.unbind(0)
        return k, v


def _residual_conv(config: HATConfig) -> nn.Module:
    if config.resi_connection == "identity":
        return nn.Identity()
    return nn.Conv2d(config.channels, config.channels, 3, padding=1)


class RHAG(nn.Module):
    """Residual hybrid attention group: HABs, one OCAB, a convolution, a skip (Sec. 3.1).

    Args:
        config: Configuration of the network.
        depth: Number of HABs.
        heads: Number of attention heads.
    """

    def __init__(
        self,
        config: HATConfig,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for i in range(depth):
            # Every second block shifts its windows, so that information crosses their borders.
            shift = config.window // 2 if i % 2 else 0
            self.blocks.append(HAB(config, heads, shift))
        self.overlap = OCAB(config, heads)
        self.conv = _residual_conv(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = x
        for block in self.blocks:
            y = block(y)
        y = self.overlap(y)
        # The convolution works in (B, C, H, W).
        y = self.conv(y.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1) + x


class HAT(nn.Module):
    """HAT, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    mean: Tensor

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        f = config.upsample_channels
        mean = torch.tensor(_DIV2K_MEAN).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.patch_norm = nn.LayerNorm(c) if config.patch_norm else nn.Identity()
        self.layers = nn.ModuleList()
        for depth, heads in zip(config.depths, config.num_heads, strict=True):
            self.layers.append(RHAG(config, depth, heads))
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = _residual_conv(config)
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(c, f, 3, padding=1),
            nn.LeakyReLU(inplace=True),
        )
        self.upsample = shuffle_stages(f, _UPSAMPLE_FACTORS[config.scale])
        self.conv_last = ConvAct(f, 3)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip, one frame after the other.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].
        """
        frames = lq.unbind(1)
        return stack_frames(map(self._upscale, frames), len(frames))

    def _upscale(self, frame: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 3, sH, sW)."""
        height, width = frame.shape[-2:]
        x = pad_to_windows(frame, self.config.window)
        x = (x - self.mean) * self.config.img_range
        x = x.contiguous(memory_format=torch.channels_last)
        x = self._extract_features(x)
        x = self.conv_before_upsample(x)
        sr = shuffle_and_convolve(x, self.upsample, self.conv_last)

        # Cut off the padding.
        scale = self.config.scale
        sr = sr[..., : scale * height, : scale * width]
        return (sr / self.config.img_range).add_(self.mean)

    def _extract_features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to features (B, C, H, W), channels last in memory."""
        shallow = self.conv_first(x)
        deep = shallow.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        deep = self.patch_norm(deep)
        for group in self.layers:
            deep = group(deep)
        deep = self.norm(deep).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.conv_after_body(deep).add_(shallow)


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"\.residual_group\.", "."),
    (r"patch_embed\.norm\.", "patch_norm."),
    (r"\.conv_block\.cab\.0\.", ".cab.compress."),
    (r"\.conv_block\.cab\.2\.", ".cab.expand."),
    (r"\.conv_block\.cab\.3\.attention\.1\.", ".cab.squeeze."),
    (r"\.conv_block\.cab\.3\.attention\.3\.", ".cab.excite."),
    (r"\.overlap_attn\.", ".overlap."),
)
_DERIVED_NAMES = "relative_position_index_(SA|OCA)"
"""Tensors of published files that follow from the sizes of the windows."""
_FIRST_BLOCK = "layers.0.blocks.0."
_BIAS_TABLE = f"{_FIRST_BLOCK}attn.relative_position_bias_table"
_OVERLAP_BIAS_TABLE = "layers.0.overlap.relative_position_bias_table"
_REQUIRED_NAMES = {
    # SwinIR has no overlapping attention.
    _OVERLAP_BIAS_TABLE,
    "conv_before_upsample.0.weight",
    f"{_FIRST_BLOCK}cab.compress.weight",
    f"{_FIRST_BLOCK}cab.squeeze.weight",
    f"{_FIRST_BLOCK}attn.qkv.weight",
    f"{_FIRST_BLOCK}mlp.fc1.weight",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors to ours; None if the state dict belongs to another network."""
    if "conv_first.weight" not in state:
        return None
    own = rename(without(state, _DERIVED_NAMES), _AUTHORS_RULES)
    if not own.keys() >= _REQUIRED_NAMES:
        return None
    if shuffle_scale(own, "upsample") not in _UPSAMPLE_FACTORS:
        return None
    if input_channels(own, "conv_first") != 3:
        return None
    for table in (_BIAS_TABLE, _OVERLAP_BIAS_TABLE):
        if not is_bias_table(own, table):
            return None
    return own


def _infer(state: State) -> HATConfig:
    channels = state["conv_first.weight"].shape[0]
    depths: list[int] = []
    num_heads: list[int] = []
    for i in range(count_names(state, r"layers\.\d+\.overlap\.norm1\.weight")):
        depths.append(count_names(state, rf"layers\.{i}\.blocks\.\d+\.norm1\.weight"))
        table = state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"]
        num_heads.append(table.shape[1])

    # The tables of relative positions have (2 · window − 1)² entries in a hybrid block and
    # (window + key_window − 1)² in an overlapping one.
    entries = len(state[_BIAS_TABLE])
    window = (math.isqrt(entries) + 1) // 2
    overlap_entries = len(state[_OVERLAP_BIAS_TABLE])
    key_window = math.isqrt(overlap_entries) + 1 - window
    return HATConfig(
        scale=shuffle_scale(state, "upsample"),
        channels=channels,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window=window,
        compress_ratio=channels // state[f"{_FIRST_BLOCK}cab.compress.weight"].shape[0],
        squeeze_factor=channels // state[f"{_FIRST_BLOCK}cab.squeeze.weight"].shape[0],
        overlap_ratio=(key_window - window) / window,
        mlp_ratio=state[f"{_FIRST_BLOCK}mlp.fc1.weight"].shape[0] / channels,
        resi_connection="1conv" if "layers.0.conv.weight" in state else "identity",
        upsample_channels=state["conv_before_upsample.0.weight"].shape[0],
        qkv_bias=f"{_FIRST_BLOCK}attn.qkv.bias" in state,
        patch_norm="patch_norm.weight" in state,
    )


def _contract(config: HATConfig) -> Contract:
    window = config.window
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        # Deviation: the channel attention sees the whole image, and 36 blocks nearly all of it. The
        # authors' tiles have the same overlap, and each tile has its own channel attention.
        halo_px=math.ceil(_HALO_PX / window) * window,
        size_multiple=window,
        # The smallest size that mirroring can extend to a whole window.
        min_size_px=window // 2 + 1,
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name=HAT.__name__,
    config=HATConfig,
    build=HAT,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2205.04437",
)
