"""HAT: window attention beside channel attention, and windows that look over their borders.

    lq (B, T, 3, H, W), frame by frame; x = (lq − mean) · img_range, mirrored to whole windows
      conv_first ─┬─ norm ─ group × G ─ norm ─ conv_after_body ─(+)─ upsampler ─ / img_range + mean → sr
                  └─────────────────────────────────────────────┘       features (B, H, W, C), channels last
    group (RHAG)    ┬─ block × D ─ overlapping attention ─ conv ─(+)
    block (HAB)     n = norm x;  x + attention(n) + α · channel attention(n), then x + MLP(norm x)   Eqs. 2 to 4
    overlapping     queries of a window, keys and values of a larger one around it; then x + MLP(norm x)
    upsampler       conv, then (conv ─ shuffle) up to ×s, conv

Published, 6 heads, windows of 16, overlap 0.5, α 0.01, blocks in groups of 6, ×2 ×3 ×4:
    HAT, Real-HAT     180 channels, 6 groups, compression 3, squeeze 30
    HAT-S             144 channels, 6 groups, compression 24, squeeze 24
    HAT-L             180 channels, 12 groups, compression 3, squeeze 30

Source: Chen et al., Activating More Pixels in Image Super-Resolution Transformer, CVPR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.attention import Mlp, WindowAttention, attend
from tubelet.layers.convolution import ConvAct
from tubelet.layers.frames import stack_frames
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.windows import (
    join_windows,
    map_windows,
    pad_to_windows,
    split_windows,
    window_blocks,
)
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    is_bias_table,
    rename,
    shape_of,
    shuffle_scale,
    without,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "HAT", "HATConfig", "overlapping_position_bias"]

_STEPS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""Factors of the pixel shuffles that make a scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_HALO_PX = 32
"""Overlap of tiles in the authors' own option files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HATConfig:
    """Shape of a `HAT`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "embed_dim": "channels",
        "num_feat": "upsample_channels",
        "window_size": "window",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"heads": "num_heads"}

    scale: int = 4
    """Factor of the output size: 2, 3, 4 or 8."""
    channels: int = 180
    """Width of the features."""
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    """Hybrid blocks of each group."""
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    """Heads of the attention in each group."""
    window: int = 16
    """Side of a window, lq pixels."""
    compress_ratio: int = 3
    """`channels` over the inner width of the convolutions beside the attention."""
    squeeze_factor: int = 30
    """`channels` over the inner width of the channel attention."""
    conv_scale: float = 0.01
    """Weight α of the channel attention. No file tells it: `infer` takes 0.01, as published."""
    overlap_ratio: float = 0.5
    """How much larger the windows of keys are than those of queries."""
    mlp_ratio: float = 2.0
    """Inner width of the MLPs over `channels`."""
    resi_connection: Literal["1conv", "identity"] = "1conv"
    """What ends a group."""
    img_range: float = 1.0
    """What one stands for inside. No file tells it: `infer` takes 1, as published."""
    upsample_channels: int = 64
    """Width behind the groups."""
    qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    patch_norm: bool = True
    """Whether features are normalized before the first group."""

    @property
    def key_window(self) -> int:
        """Side of the windows of keys, lq pixels."""
        return self.window + int(
            self.window * self.overlap_ratio + 1e-6
        )  # so that k/w times w is k

    def __post_init__(self) -> None:
        if self.scale not in _STEPS or self.img_range <= 0 or self.mlp_ratio <= 0:
            raise ConfigError(
                f"{self} is out of range: scale 2, 3, 4 or 8; img_range, mlp_ratio > 0"
            )
        if len(self.depths) != len(self.num_heads) or not self.depths or min(self.depths) < 1:
            raise ConfigError(
                f"HAT: depths {self.depths} and heads {self.num_heads} must be of the same length, ≥ 1"
            )
        if any(heads < 1 or self.channels % heads for heads in self.num_heads):
            raise ConfigError(
                f"HAT: heads {self.num_heads} must divide the {self.channels} channels"
            )
        if not (
            1 <= self.compress_ratio <= self.channels and 1 <= self.squeeze_factor <= self.channels
        ):
            raise ConfigError(
                f"HAT: compress_ratio and squeeze_factor must be 1 to {self.channels}, the channels"
            )
        if self.window < 1 or self.key_window < self.window or (self.key_window - self.window) % 2:
            raise ConfigError(
                f"HAT: overlap_ratio {self.overlap_ratio} makes windows of {self.key_window} around {self.window}; "
                "they must be larger by an even number of pixels"
            )


def overlapping_position_bias(table: Tensor, window: int, key_window: int) -> Tensor:
    """Look up the bias of every query of a window and every key of the larger window around it.

    The published index of a pair, with key − query + window − key_window + 1 for its row and its column, is negative
    for half of the pairs and then counts from the end of the table: here the table is rolled.

    Args:
        table: ((window + key_window − 1)², heads).
        window: side of the window of queries.
        key_window: side of the window of keys.

    Returns:
        (heads, window², key_window²).
    """
    side = window + key_window - 1
    bias = table.roll((key_window - 2) * (side + 1), 0).view(
        side, side, -1
    )  # now at key − query + window − 1
    bias = (
        bias.unfold(0, key_window, 1).unfold(1, key_window, 1).flip((0, 1))
    )  # (w, w, heads, k, k)
    return bias.movedim(2, 0).reshape(table.shape[1], window**2, key_window**2)


class CAB(nn.Module):
    """Channel attention: two convolutions over fewer channels, and a weight for each channel of the result (Sec. 3.2).

    Args:
        config: shape of the network.
    """

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        c = config.channels
        inner, few = c // config.compress_ratio, c // config.squeeze_factor
        self.compress = ConvAct(c, inner)
        self.expand = ConvAct(inner, c)
        self.squeeze = nn.Conv2d(c, few, 1)
        self.excite = nn.Conv2d(few, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = self.expand(functional.gelu(self.compress(x.permute(0, 3, 1, 2))))
        weights = self.excite(
            functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))
        )  # (B, C, 1, 1)
        return (y * weights.sigmoid()).permute(0, 2, 3, 1)


class HAB(SwitchableLayer):
    """Hybrid attention block: window and channel attention side by side, then an MLP (Eqs. 2 to 4).

    Everything passes through `attn`, `cab` and `mlp`, so that an adapter can replace or wrap them;
    each keeps the shape of its input. `attn(tokens, size)` gets the tokens (n, N, C) of n windows
    of this size, N = ∏ size, `mlp(tokens)` the same tokens, and `cab(x)` the whole (B, H, W, C).
    The block itself can be wrapped as well: it leaves its input as it is.

    Args:
        config: shape of the network.
        heads: of the window attention.
        shift: of the windows, lq pixels.
    """

    def __init__(self, config: HATConfig, heads: int, shift: int) -> None:
        super().__init__()
        c = config.channels
        self.window, self.shift, self.conv_scale = (
            (config.window, config.window),
            (shift, shift),
            config.conv_scale,
        )
        self.norm1 = nn.LayerNorm(c)
        self.attn = WindowAttention(c, heads, self.window, qkv_bias=config.qkv_bias)
        self.cab = CAB(config)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c, round(c * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        normed = self.norm1(x)
        x = torch.add(x, self.cab(normed), alpha=self.conv_scale)  # Eq. 3, first half
        return map_windows(
            self._restore_windows,
            [x, normed],
            window=self.window,
            shift=self.shift,
            backend=self.backend,
        )

    def _restore_windows(self, windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
        """Map the tokens of windows, (n, N, C), and the same normalized, to (n, N, C)."""
        x, normed = windows
        x = x + self.attn(normed, size)  # Eq. 3, second half
        return x + self.mlp(self.norm2(x))  # Eq. 4


class OCAB(SwitchableLayer):
    """Overlapping cross-attention: the queries of a window see the keys of a larger one (Sec. 3.3, Fig. 4).

    Published files name the parts of the attention beside the MLP, so the attention is no module of its own. Everything
    passes through `proj` and `mlp`; the block itself, (B, H, W, C) to the same shape, can be wrapped as well.

    Args:
        config: shape of the network.
        heads: of the attention.
    """

    def __init__(self, config: HATConfig, heads: int) -> None:
        super().__init__()
        c = config.channels
        self.window, self.key_window, self.heads = config.window, config.key_window, heads
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
        keys_values = self._keys_values(x)
        bias = overlapping_position_bias(
            self.relative_position_bias_table, self.window, self.key_window
        )
        out = torch.empty_like(x)
        for size, place in window_blocks(x, (self.window, self.window), (0, 0), self.backend):
            tokens = split_windows(x[place], size)  # (n, N, C)
            q = self._project(self.norm1(tokens), 0, 1)
            q = q.view(*q.shape[:2], self.heads, -1).transpose(1, 2)
            k, v = self._around(keys_values, *place[1:])
            tokens = tokens + self.proj(attend(q, k, v, bias))
            tokens = tokens + self.mlp(self.norm2(tokens))
            join_windows(tokens, size, out[place])
        return out

    def _project(self, x: Tensor, first: int, last: int) -> Tensor:
        """Make some of queries (0), keys (1) and values (2): (..., C) → (..., (last − first)·C)."""
        rows = slice(first * x.shape[-1], last * x.shape[-1])
        bias = cast("Tensor | None", self.qkv.bias)
        return functional.linear(x, self.qkv.weight[rows], None if bias is None else bias[rows])

    def _keys_values(self, x: Tensor) -> Tensor:
        """Make keys and values of (B, H, W, C), and zeros around them: (B, H + 2p, W + 2p, 2C)."""
        batch, height, width, channels = x.shape
        pad = (self.key_window - self.window) // 2
        padded = x.new_zeros(batch, height + 2 * pad, width + 2 * pad, 2 * channels)
        inside = padded[:, pad : pad + height, pad : pad + width]
        for _, place in window_blocks(x, (self.window, self.window), (0, 0), self.backend):
            inside[place] = self._project(self.norm1(x[place]), 1, 3)
        return padded

    def _around(self, keys_values: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Cut the keys and values around some windows: (n, heads, M, d) each, M = key_window²."""
        more = self.key_window - self.window
        block = keys_values[:, rows.start : rows.stop + more, columns.start : columns.stop + more]
        block = block.unfold(1, self.key_window, self.window).unfold(
            2, self.key_window, self.window
        )
        block = block.permute(0, 1, 2, 4, 5, 3)  # (B, count, count, k, k, 2C)
        tokens = block.reshape(
            -1, self.key_window**2, 2, self.heads, block.shape[-1] // (2 * self.heads)
        )
        k, v = tokens.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v


class RHAG(nn.Module):
    """Residual hybrid attention group: hybrid blocks, one overlapping attention, a convolution, a skip (Sec. 3.1).

    Args:
        config: shape of the network.
        depth: number of hybrid blocks.
        heads: of their attention.
    """

    def __init__(self, config: HATConfig, depth: int, heads: int) -> None:
        super().__init__()
        half = config.window // 2
        self.blocks = nn.ModuleList(HAB(config, heads, half if i % 2 else 0) for i in range(depth))
        self.overlap = OCAB(config, heads)
        c = config.channels
        self.conv = (
            nn.Conv2d(c, c, 3, padding=1) if config.resi_connection == "1conv" else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = x
        for block in self.blocks:
            y = block(y)
        return self.conv(self.overlap(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x


class HAT(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    mean: Tensor

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        self.config = config
        c, f = config.channels, config.upsample_channels
        self.register_buffer("mean", torch.tensor(_DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.patch_norm = nn.LayerNorm(c) if config.patch_norm else nn.Identity()
        self.layers = nn.ModuleList(
            RHAG(config, *group) for group in zip(config.depths, config.num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = (
            nn.Conv2d(c, c, 3, padding=1) if config.resi_connection == "1conv" else nn.Identity()
        )
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(c, f, 3, padding=1), nn.LeakyReLU(inplace=True)
        )
        self.upsample = nn.Sequential()
        for step in _STEPS[config.scale]:
            self.upsample.extend([nn.Conv2d(f, f * step**2, 3, padding=1), nn.PixelShuffle(step)])
        self.conv_last = nn.Conv2d(f, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W), one frame after the other: (B, T, 3, sH, sW); values can overshoot [0, 1]."""
        return stack_frames((self._enlarge(frame) for frame in lq.unbind(1)), lq.shape[1])

    def _enlarge(self, frame: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 3, sH, sW)."""
        height, width = (self.config.scale * side for side in frame.shape[-2:])
        x = (pad_to_windows(frame, self.config.window) - self.mean) * self.config.img_range
        features = self._features(x.contiguous(memory_format=torch.channels_last))
        sr = self.conv_last(self.upsample(self.conv_before_upsample(features)))
        return (sr[..., :height, :width] / self.config.img_range).add_(self.mean)

    def _features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to features (B, C, H, W), channels last."""
        shallow = self.conv_first(x)
        deep = self.patch_norm(shallow.permute(0, 2, 3, 1).contiguous())  # (B, H, W, C)
        for group in self.layers:
            deep = group(deep)
        return self.conv_after_body(self.norm(deep).permute(0, 3, 1, 2)).add_(shallow)


_AUTHORS: tuple[Rule, ...] = (
    (r"\.residual_group\.", "."),
    (r"patch_embed\.norm\.", "patch_norm."),
    (r"\.conv_block\.cab\.0\.", ".cab.compress."),
    (r"\.conv_block\.cab\.2\.", ".cab.expand."),
    (r"\.conv_block\.cab\.3\.attention\.1\.", ".cab.squeeze."),
    (r"\.conv_block\.cab\.3\.attention\.3\.", ".cab.excite."),
    (r"\.overlap_attn\.", ".overlap."),
)
_DERIVED = "relative_position_index_(SA|OCA)"
"""Of the published files: what follows from the size of the windows."""
_FIRST = "layers.0.blocks.0."
_TABLE = f"{_FIRST}attn.relative_position_bias_table"
_OVERLAP_TABLE = "layers.0.overlap.relative_position_bias_table"
_NEEDED = {
    "conv_before_upsample.0.weight",
    f"{_FIRST}cab.compress.weight",
    f"{_FIRST}cab.squeeze.weight",
    f"{_FIRST}attn.qkv.weight",
    f"{_FIRST}mlp.fc1.weight",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors; None where they are of another network."""
    if "conv_first.weight" not in state or not any(".overlap" in name for name in state):
        return None
    own = rename(without(state, _DERIVED), _AUTHORS)
    if not own.keys() >= _NEEDED or shuffle_scale(own, "upsample") not in _STEPS:
        return None
    first = shape_of(own, "conv_first.weight")
    if len(first) != 4 or first[1] != 3:
        return None
    return own if is_bias_table(own, _TABLE) and is_bias_table(own, _OVERLAP_TABLE) else None


def _infer(state: State) -> HATConfig:
    channels = state["conv_first.weight"].shape[0]
    groups = range(count_names(state, r"layers\.\d+\.overlap\.norm1\.weight"))
    window = (math.isqrt(len(state[_TABLE])) + 1) // 2
    key_window = math.isqrt(len(state[_OVERLAP_TABLE])) + 1 - window
    return HATConfig(
        scale=shuffle_scale(state, "upsample"),
        channels=channels,
        depths=tuple(
            count_names(state, rf"layers\.{i}\.blocks\.\d+\.norm1\.weight") for i in groups
        ),
        num_heads=tuple(
            state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"].shape[1] for i in groups
        ),
        window=window,
        compress_ratio=channels // state[f"{_FIRST}cab.compress.weight"].shape[0],
        squeeze_factor=channels // state[f"{_FIRST}cab.squeeze.weight"].shape[0],
        overlap_ratio=(key_window - window) / window,
        mlp_ratio=state[f"{_FIRST}mlp.fc1.weight"].shape[0] / channels,
        resi_connection="1conv" if "layers.0.conv.weight" in state else "identity",
        upsample_channels=state["conv_before_upsample.0.weight"].shape[0],
        qkv_bias=f"{_FIRST}attn.qkv.bias" in state,
        patch_norm="patch_norm.weight" in state,
    )


def _contract(config: HATConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        # Deviation: the channel attention sees the whole image, and 36 blocks nearly so; the authors' tiles overlap
        # by as much, and each has a channel attention of its own.
        halo_px=math.ceil(_HALO_PX / config.window) * config.window,
        size_multiple=config.window,
        min_size_px=config.window // 2 + 1,  # which mirroring can make a whole window of
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
