"""DAT: spatial and channel attention in turn, each beside a convolution that it interacts with.

    lq (B, T, 3, H, W), frame by frame; x = lq − mean
      conv_first ─┬─ LN ─ residual group × G ─ LN ─ conv_after_body ─(+)─ upsampler ─ + mean ─ sr
                  └──────────────────────────────────────────────────┘
                    features (B, H, W, C), channels last

    residual group   x + conv(D blocks(x))
    block (DATB)     x + attention(LN x), then x + SGFN(LN x); the attention is spatial in
                     blocks 0, 2, …, and between channels in blocks 1, 3, …
    SGFN             [x1, x2] = GELU(fc1 x);  fc2(x1 · depth-wise 3×3(LN x2))

    upsampler            layers                                        published for
      pixelshuffle       conv, then (conv ─ shuffle) up to ×s, conv    DAT-S, DAT, DAT-2
      pixelshuffledirect conv ─ shuffle ×s                             DAT-light

Published configurations, 6 heads, ×2 ×3 ×4:
    DAT          180 channels, 6 groups of 6 blocks, windows of 8×32, MLP ratio 4
    DAT-2        as DAT, with MLP ratio 2
    DAT-S        as DAT, with windows of 8×16 and MLP ratio 2
    DAT-light     60 channels, 1 group of 18 blocks, windows of 8×32, MLP ratio 2,
                 3 convolutions a group

Source: Chen et al., Dual Aggregation Transformer for Image Super-Resolution, ICCV 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.errors import ConfigError
from tubelet.layers.attention import TokenLayer, TokenMap
from tubelet.layers.convolution import ConvAct
from tubelet.layers.frames import stack_frames
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.residual import ResidualConv, residual_conv
from tubelet.layers.upsampling import shuffle_and_convolve, shuffle_stages
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import (
    check_attention_groups,
    check_choice,
    check_min,
    check_positive,
)
from tubelet.models.dat_attention import AdaptiveChannelAttention, AdaptiveSpatialAttention
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    input_channels,
    rename,
    shape_of,
    shuffle_scale,
    without,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "DAT", "DATB", "PRESETS", "SGFN", "DATConfig", "DATUpsampler"]

DATUpsampler = Literal["pixelshuffle", "pixelshuffledirect"]

_UPSAMPLE_FACTORS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2)}
"""Factors of the successive pixel shuffles of each scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_HALO_PX = 32
"""Overlap of tiles, about one long side of a window."""
# Tokens of a strip of an SGFN on a CPU: its hidden features stay in the CPU cache.
_STRIP_TOKENS = 4096
# A lower strip is mostly halo.
_MIN_STRIP_ROWS = 8
_MIN_CHANNELS = 32
"""The networks of position biases have a width of 1/32 of the channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DATConfig:
    """Configuration of a `DAT`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "depth": "depths",
        "drop_path_rate": "drop_path",
        "embed_dim": "channels",
        "expansion_factor": "mlp_ratio",
        "num_feat": "upsample_channels",
        "upscale": "scale",
    }

    scale: int = 4
    """Upscaling factor: 2, 3 or 4."""
    channels: int = 180
    """Width of the features."""
    depths: tuple[int, ...] = (6,) * 6
    """Number of blocks in each group."""
    num_heads: tuple[int, ...] = (6,) * 6
    """Number of attention heads in each group, even."""
    split_size: tuple[int, int] = (8, 32)
    """Height and width of the windows for half of the heads, lq pixels; the other half has windows
    of this width and height. `infer` takes the default for a file without position indexes."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward networks divided by `channels`."""
    upsampler: DATUpsampler = "pixelshuffle"
    """Layers that turn features into an image."""
    resi_connection: ResidualConv = "1conv"
    """End of a group: one convolution, or three over a quarter of the channels."""
    upsample_channels: int = 64
    """Width of the upsampler, where it differs from `channels`."""
    qkv_bias: bool = True
    """Add biases to queries, keys and values."""
    drop_path: float = 0.1
    """Probability with which training drops a branch of the last block for an element of the batch;
    it rises linearly from 0 at the first block. Checkpoints do not store it."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _UPSAMPLE_FACTORS)
        check_min(self, "channels", _MIN_CHANNELS)
        check_attention_groups(self)
        check_positive(self, "mlp_ratio")
        if self.channels % 2 or any(heads % 2 for heads in self.num_heads):
            raise ConfigError(
                f"DATConfig: channels={self.channels} and each of num_heads={self.num_heads} must "
                "be even: half of them have windows of split_size, half have turned ones"
            )
        if len(self.split_size) != 2 or min(self.split_size) < 1:
            raise ConfigError(
                f"DATConfig: split_size={self.split_size} must be a height and a width, each at "
                "least 1"
            )
        hidden = round(self.channels * self.mlp_ratio)
        if hidden < 2 or hidden % 2:
            raise ConfigError(
                f"DATConfig: mlp_ratio={self.mlp_ratio} makes a hidden width of {hidden}; it must "
                "be even, because one half gates the other"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(
                f"DATConfig: drop_path={self.drop_path} must be at least 0 and below 1"
            )


PRESETS: Mapping[str, DATConfig] = {
    "light": DATConfig(
        channels=60,
        depths=(18,),
        num_heads=(6,),
        mlp_ratio=2.0,
        upsampler="pixelshuffledirect",
        resi_connection="3conv",
    ),
    "s": DATConfig(split_size=(8, 16), mlp_ratio=2.0),
    "base": DATConfig(),
    "2": DATConfig(mlp_ratio=2.0),
}
"""Published configurations by their names, ×4; those for ×2 and ×3 differ in `scale` alone."""


class SpatialGate(nn.Module):
    """Layers of the gate of an `SGFN`: normalization, then a depth-wise convolution.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = self.conv(self.norm(x).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


class SGFN(SwitchableLayer):
    """Spatial-gate feed-forward network: one half of the hidden channels gates the other.

    Args:
        channels: Number of channels of a token, C.
        hidden: Number of channels between the layers, even.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.gate = SpatialGate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, channels)

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Map the tokens of an image of `size` (H, W), (B, N, C), to the same shape."""
        batch, _, channels = tokens.shape
        height, width = size
        x = tokens.reshape(batch, height, width, channels)
        rows = height
        if self.is_prepared and x.device.type == "cpu":
            rows = max(_MIN_STRIP_ROWS, _STRIP_TOKENS // (batch * width))
        if rows >= height:
            return self._restore_rows(x, 0, height).flatten(1, 2)

        out = torch.empty_like(x)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            out[:, top:bottom] = self._restore_rows(x, top, bottom)
        return out.flatten(1, 2)

    def _restore_rows(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Compute the rows from `top` to `bottom` of the result for (B, H, W, C)."""
        height = x.shape[1]
        # The convolution of the gate sees one row more on each side, within the image.
        first = max(top - 1, 0)
        last = min(bottom + 1, height)
        half = self.fc2.in_features
        gate = self.gate(self._expand(x[:, first:last], slice(half, 2 * half)))
        y = self._expand(x[:, top:bottom], slice(half))
        return self.fc2(y * gate[:, top - first : bottom - first])

    def _expand(self, x: Tensor, channels: slice) -> Tensor:
        """Compute a range of the hidden channels: (B, H, W, C) to (B, H, W, C')."""
        y = functional.linear(x, self.fc1.weight[channels], self.fc1.bias[channels])
        return functional.gelu(y)


class DATB(nn.Module):
    """Dual aggregation transformer block: attention, then an SGFN, each normalized first and added.

    All data pass through `attn` and `ffn`: `attn(tokens, size)` and `ffn(tokens, size)` map the
    tokens (B, N, C) of an image of `size` (H, W), N = H·W, to the same shape. For adapters,
    `add_attention` and `add_mlp` compute the two sums one by one. The block itself, (B, H, W, C)
    to the same shape, does not modify its input.

    Args:
        config: Configuration of the network.
        attn: Spatial or channel attention.
        drop_path: Probability with which training drops a branch for an element of the batch.
    """

    def __init__(self, config: DATConfig, attn: nn.Module, drop_path: float) -> None:
        super().__init__()
        c = config.channels
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(c)
        self.attn = attn
        self.norm2 = nn.LayerNorm(c)
        self.ffn = SGFN(c, round(c * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        return self.add_mlp(self.add_attention(x, self.attn))

    def add_attention(self, x: Tensor, attention: TokenLayer) -> Tensor:
        """Compute the first sum of the block, x + attention(LN x), with this attention.

        Args:
            x: (B, H, W, C).
            attention: Called in place of `attn`, for the tokens of whole images.

        Returns:
            (B, H, W, C).
        """
        tokens = x.flatten(1, 2)  # (B, N, C)
        tokens = tokens + self._drop(attention(self.norm1(tokens), x.shape[1:3]))
        return tokens.view(x.shape)

    def add_mlp(self, x: Tensor, beside: TokenMap | None = None) -> Tensor:
        """Compute the second sum of the block, x + SGFN(LN x) + beside(LN x)."""
        tokens = x.flatten(1, 2)
        normed = self.norm2(tokens)
        tokens = tokens + self._drop(self.ffn(normed, x.shape[1:3]))
        if beside is not None:
            tokens = tokens + beside(normed)
        return tokens.view(x.shape)

    def _drop(self, branch: Tensor) -> Tensor:
        """In training, zero a branch (B, N, C) of random elements and scale the others up."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        drawn = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
        return branch * drawn / keep


class ResidualGroup(nn.Module):
    """Blocks with spatial and channel attention in turn, a convolution, a skip.

    Args:
        config: Configuration of the network.
        index: Number of the group in the network, from 0.
    """

    def __init__(self, config: DATConfig, index: int) -> None:
        super().__init__()
        first_block = sum(config.depths[:index])
        last_block = max(1, sum(config.depths) - 1)
        self.blocks = nn.ModuleList()
        for i in range(config.depths[index]):
            drop_path = config.drop_path * (first_block + i) / last_block
            self.blocks.append(DATB(config, _build_attention(config, index, i), drop_path))
        self.conv = residual_conv(config.channels, config.resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = x
        for block in self.blocks:
            y = block(y)
        # The convolution works in (B, C, H, W).
        y = self.conv(y.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1) + x


def _build_attention(config: DATConfig, group: int, block: int) -> nn.Module:
    """Build the attention of a block, both numbered from 0."""
    heads = config.num_heads[group]
    if block % 2:
        return AdaptiveChannelAttention(config.channels, heads, qkv_bias=config.qkv_bias)
    # Every second spatial attention shifts its windows, so that information crosses their borders.
    # The first one of a group does so in every second group.
    is_shifted = block // 2 % 2 != group % 2
    return AdaptiveSpatialAttention(
        config.channels,
        heads,
        split_size=config.split_size,
        is_shifted=is_shifted,
        qkv_bias=config.qkv_bias,
    )


class DAT(nn.Module):
    """DAT, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    mean: Tensor
    split_size: Tensor

    def __init__(self, config: DATConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        mean = torch.tensor(_DIV2K_MEAN).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        # No other tensor of a state dict has the size of the windows.
        self.register_buffer("split_size", torch.tensor(config.split_size))
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.patch_norm = nn.LayerNorm(c)
        self.layers = nn.ModuleList()
        for i in range(len(config.depths)):
            self.layers.append(ResidualGroup(config, i))
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = residual_conv(c, config.resi_connection)
        self._build_upsampler()

    def _build_upsampler(self) -> None:
        """Create the layers that `_upsample` applies, under their published names."""
        c = self.config.channels
        f = self.config.upsample_channels
        scale = self.config.scale
        match self.config.upsampler:
            case "pixelshuffledirect":
                self.upsample = nn.Sequential(
                    nn.Conv2d(c, 3 * scale**2, 3, padding=1),
                    nn.PixelShuffle(scale),
                )
            case "pixelshuffle":
                self.conv_before_upsample = nn.Sequential(
                    nn.Conv2d(c, f, 3, padding=1),
                    nn.LeakyReLU(inplace=True),
                )
                self.upsample = shuffle_stages(f, _UPSAMPLE_FACTORS[scale])
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
        x = frame - self.mean
        x = x.contiguous(memory_format=torch.channels_last)
        sr = self._upsample(self._extract_features(x))
        return sr.add_(self.mean)

    def _extract_features(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to features (B, C, H, W), channels last in memory."""
        shallow = self.conv_first(x)
        deep = shallow.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        deep = self.patch_norm(deep)
        for group in self.layers:
            deep = group(deep)
        deep = self.norm(deep).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.conv_after_body(deep).add_(shallow)

    def _upsample(self, features: Tensor) -> Tensor:
        """Turn features (B, C, H, W) into an image (B, 3, sH, sW) without the mean."""
        match self.config.upsampler:
            case "pixelshuffledirect":
                return self.upsample(features)
            case "pixelshuffle":
                features = self.conv_before_upsample(features)
                return shuffle_and_convolve(features, self.upsample, self.conv_last)


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"^before_RG\.1\.", "patch_norm."),
    (r"\.ffn\.sg\.", ".ffn.gate."),
    (r"\.attn\.attns\.(\d)\.pos\.", r".attn.position_bias.\1."),
    (r"\.attn\.dwconv\.0\.", ".attn.interaction.local.conv."),
    (r"\.attn\.dwconv\.1\.", ".attn.interaction.local.norm."),
    (r"\.attn\.channel_interaction\.1\.", ".attn.interaction.channel_map.reduce.conv."),
    (r"\.attn\.channel_interaction\.2\.", ".attn.interaction.channel_map.reduce.norm."),
    (r"\.attn\.channel_interaction\.4\.", ".attn.interaction.channel_map.expand."),
    (r"\.attn\.spatial_interaction\.0\.", ".attn.interaction.pixel_map.reduce.conv."),
    (r"\.attn\.spatial_interaction\.1\.", ".attn.interaction.pixel_map.reduce.norm."),
    (r"\.attn\.spatial_interaction\.3\.", ".attn.interaction.pixel_map.expand."),
)
_DERIVED_NAMES = r".*\.attn\.(attns\.\d\.(rpe_biases|relative_position_index)|attn_mask_\d)"
"""Tensors of published files that follow from the sizes of the windows and training images."""
_FIRST_WINDOW = "layers.0.blocks.0.attn.attns.0."
_TEMPERATURE = "layers.0.blocks.1.attn.temperature"
_GATE = "layers.0.blocks.0.ffn.gate.conv.weight"
_REQUIRED_NAMES = {
    "patch_norm.weight",
    "norm.weight",
    "layers.0.blocks.0.attn.qkv.weight",
    "layers.0.blocks.0.ffn.fc1.weight",
    # Neither SwinIR nor HAT has attention between channels, or a gate.
    _TEMPERATURE,
    _GATE,
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors to ours; None if the state dict belongs to another network."""
    own = rename(without(state, _DERIVED_NAMES), _AUTHORS_RULES)
    if not own.keys() >= _REQUIRED_NAMES:
        return None
    if input_channels(own, "conv_first") != 3:
        return None
    if _infer_scale(own) not in _UPSAMPLE_FACTORS:
        return None
    split_size = _published_split_size(state)
    if split_size is not None:
        own["split_size"] = split_size
    return own


def _published_split_size(state: State) -> Tensor | None:
    """Return height and width of the windows as a tensor (2,); None if a file does not tell."""
    # Offsets between tokens along both axes, of which the last are the largest.
    offsets = state.get(f"{_FIRST_WINDOW}rpe_biases")
    if offsets is not None and offsets.ndim == 2 and offsets.shape[1] == 2:
        return offsets[-1].long() + 1
    # Index of the offset of query 0 and every key. It descends by one within a row of keys, and
    # further from row to row.
    index = state.get(f"{_FIRST_WINDOW}relative_position_index")
    if index is None or index.ndim != 2 or index.shape[0] < 2:
        return None
    ends_row = index[0, :-1] - index[0, 1:] != 1
    # A window of a single row has no such end.
    ends_row = torch.cat([ends_row, ends_row.new_ones(1)])
    width = ends_row.long().argmax() + 1
    return torch.stack([index.shape[0] // width, width])


def _infer_upsampler(state: State) -> DATUpsampler:
    if "conv_before_upsample.0.weight" in state:
        return "pixelshuffle"
    return "pixelshuffledirect"


def _infer_scale(state: State) -> int:
    """Infer the scale from the convolutions of the upsampler; 0 if they fit no scale."""
    if _infer_upsampler(state) == "pixelshuffle":
        return shuffle_scale(state, "upsample")
    shape = shape_of(state, "upsample.0.weight")
    if len(shape) != 4:
        return 0
    return math.isqrt(shape[0] // 3)


def _infer(state: State) -> DATConfig:
    channels = state["conv_first.weight"].shape[0]
    depths: list[int] = []
    num_heads: list[int] = []
    for i in range(count_names(state, r"layers\.\d+\.blocks\.0\.norm1\.weight")):
        depths.append(count_names(state, rf"layers\.{i}\.blocks\.\d+\.norm1\.weight"))
        num_heads.append(state[f"layers.{i}.blocks.1.attn.temperature"].shape[0])

    split_size = DATConfig().split_size
    if "split_size" in state:
        height, width = state["split_size"]
        split_size = (int(height), int(width))
    conv_before = state.get("conv_before_upsample.0.weight")
    hidden = state["layers.0.blocks.0.ffn.fc1.weight"].shape[0]
    return DATConfig(
        scale=_infer_scale(state),
        channels=channels,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        split_size=split_size,
        mlp_ratio=hidden / channels,
        upsampler=_infer_upsampler(state),
        resi_connection="1conv" if "layers.0.conv.weight" in state else "3conv",
        upsample_channels=64 if conv_before is None else conv_before.shape[0],
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in state,
    )


def _contract(config: DATConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        # Channel attention and interaction maps depend on the whole image; the nearby pixels, which
        # spatial attention and convolutions see, matter by far the most.
        sees_whole_image=True,
        halo_px=_HALO_PX,
        # The windows of a tile are those of the image.
        tile_multiple=max(config.split_size),
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name=DAT.__name__,
    config=DATConfig,
    build=DAT,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    derived=("split_size",),
    source="https://arxiv.org/abs/2308.03364",
)
