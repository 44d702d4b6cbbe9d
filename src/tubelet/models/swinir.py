"""SwinIR: window attention in residual groups, each of which ends with a convolution.

    lq (B, T, 3, H, W), frame by frame; x = (lq − mean) · img_range, padded to whole windows
      conv_first ─┬─ LN ─ RSTB × G ─ LN ─ conv_after_body ─(+)─ upsampler ─ / img_range + mean ─ sr
                  └────────────────────────────────────────┘   features (B, H, W, C), channels last

    RSTB         x + conv(D Swin blocks(x))                                          Eqs. 8 and 9
    Swin block   x + attention(LN x), then x + MLP(LN x);                            Eq. 10
                 the windows of every second block are shifted by half a window

    upsampler            layers                                        published for
      pixelshuffle       conv, then (conv ─ shuffle) up to ×s, conv    classical, ×2 ×3 ×4 ×8
      pixelshuffledirect conv ─ shuffle ×s                             lightweight
      nearest+conv       conv, then (nearest ×2 ─ conv), conv, conv    real-world, ×2 ×4
      none               conv, added to x                              denoising, JPEG

Published configurations, 6 blocks a group, windows of 8:
    classical, real-world M, denoising    180 channels, 6 groups, 6 heads
    lightweight                            60 channels, 4 groups, 6 heads
    real-world L                          240 channels, 9 groups, 8 heads, 3 convolutions a group
    JPEG                                  as classical, with windows of 7 and img_range 255

Source: Liang et al., SwinIR: Image Restoration Using Swin Transformer, ICCVW 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.attention import Mlp, TokenLayer, TokenMap, WindowAttention
from tubelet.layers.convolution import ConvAct, LeakyReLU, UpsampleConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.residual import ResidualConv, residual_conv
from tubelet.layers.upsampling import (
    repeat_and_convolve,
    shuffle_and_convolve,
    shuffle_stages,
)
from tubelet.layers.windows import WindowFunction, map_windows, pad_to_windows
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
    shape_of,
    shuffle_scale,
    without,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "SwinIR", "SwinIRConfig", "SwinIRUpsampler"]

SwinIRUpsampler = Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", "none"]

_SCALES: dict[SwinIRUpsampler, tuple[int, ...]] = {
    "pixelshuffle": (2, 3, 4, 8),
    "pixelshuffledirect": (1, 2, 3, 4, 5, 6, 7, 8),
    "nearest+conv": (2, 4),
    "none": (1,),
}
_UPSAMPLE_FACTORS: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (3,),
    4: (2, 2),
    8: (2, 2, 2),
}
"""Factors of the successive upsampling steps of each scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
# Slope of the activations after nearest-neighbor upsampling.
_NEAREST_CONV_SLOPE = 0.2
_JPEG_WINDOW = 7
"""Window of the published networks for JPEG (Sec. 4.1), which work in [0, 255]."""
_HALO_PX = 32
"""Overlap of tiles in the authors' own script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinIRConfig:
    """Configuration of a `SwinIR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "embed_dim": "channels",
        "num_feat": "upsample_channels",
        "window_size": "window",
        "in_chans": "image_channels",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"heads": "num_heads", "colours": "image_channels"}

    scale: int = 4
    """Upscaling factor; the upsampler limits the choice."""
    channels: int = 180
    """Width of the features."""
    depths: tuple[int, ...] = (6,) * 6
    """Number of Swin blocks in each group."""
    num_heads: tuple[int, ...] = (6,) * 6
    """Number of attention heads in each group."""
    window: int = 8
    """Side of a window, lq pixels."""
    mlp_ratio: float = 2.0
    """Hidden width of the MLPs divided by `channels`."""
    upsampler: SwinIRUpsampler = "pixelshuffle"
    """Layers that turn features into an image."""
    resi_connection: ResidualConv = "1conv"
    """End of a group: one convolution, or three over a quarter of the channels."""
    img_range: float = 1.0
    """Inner value of a full-scale pixel. Checkpoints do not store it: `infer` takes 255 for windows
    of 7 without upsampling, as published, otherwise 1."""
    image_channels: int = 3
    """3 for RGB; 1 for a network of gray images, which then restores R, G and B independently."""
    upsample_channels: int = 64
    """Width of the upsampler, where it differs from `channels`."""
    qkv_bias: bool = True
    """Add biases to queries, keys and values."""
    patch_norm: bool = True
    """Normalize the features before the first group."""

    def __post_init__(self) -> None:
        if self.scale not in _SCALES[self.upsampler]:
            scales = ", ".join(map(str, _SCALES[self.upsampler]))
            raise ConfigError(
                f"SwinIRConfig: scale={self.scale} does not go with upsampler={self.upsampler!r}, "
                f"which has scale {scales}"
            )
        check_attention_groups(self)
        check_min(self, "window", 1)
        check_choice(self, "image_channels", (1, 3))
        check_positive(self, "mlp_ratio")
        check_positive(self, "img_range")


class SwinBlock(SwitchableLayer):
    """Attention within windows, then an MLP, each normalized first and added to its input (Eq. 10).

    All data pass through `attn` and `mlp`. `attn(tokens, size)` gets the tokens (n, N, C) of n
    windows of `size`, N = ∏ size, and `mlp(tokens)` gets the same tokens; both keep the shape. For
    adapters, `add_attention` and `add_mlp` compute the two sums one by one. The block itself,
    (B, H, W, C) to the same shape, does not modify its input.

    Args:
        config: Configuration of the network.
        heads: Number of attention heads.
        shift: Shift of the windows, lq pixels.
    """

    def __init__(
        self,
        config: SwinIRConfig,
        heads: int,
        shift: int,
    ) -> None:
        super().__init__()
        c = config.channels
        self.window = (config.window, config.window)
        self.shift = (shift, shift)
        self.norm1 = nn.LayerNorm(c)
        self.attn = WindowAttention(c, heads, self.window, qkv_bias=config.qkv_bias)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c, round(c * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        return self._map_windows(self._restore_windows, x)

    def add_attention(self, x: Tensor, attention: TokenLayer) -> Tensor:
        """Compute the first sum of the block, x + attention(LN x), with this attention.

        Args:
            x: (B, H, W, C).
            attention: Called in place of `attn`.

        Returns:
            (B, H, W, C), to the bit what `forward` would add up.
        """

        def add(windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
            (x,) = windows
            return x + attention(self.norm1(x), size)

        return self._map_windows(add, x)

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

    def _map_windows(self, apply: WindowFunction, x: Tensor) -> Tensor:
        return map_windows(
            apply,
            [x],
            window=self.window,
            shift=self.shift,
            backend=self.backend,
        )

    def _restore_windows(
        self,
        windows: tuple[Tensor, ...],
        size: tuple[int, ...],
    ) -> Tensor:
        """Map the tokens of windows of `size`, (n, N, C), to the same shape."""
        (x,) = windows
        # Eq. 10
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x))


class RSTB(nn.Module):
    """Residual Swin Transformer block: Swin blocks, a convolution, a skip (Eqs. 8 and 9).

    Args:
        config: Configuration of the network.
        depth: Number of Swin blocks.
        heads: Number of attention heads.
    """

    def __init__(
        self,
        config: SwinIRConfig,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for i in range(depth):
            # Every second block shifts its windows, so that information crosses their borders.
            shift = config.window // 2 if i % 2 else 0
            self.blocks.append(SwinBlock(config, heads, shift))
        self.conv = residual_conv(config.channels, config.resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        # Eq. 8
        y = x
        for block in self.blocks:
            y = block(y)
        # Eq. 9, with the convolution in (B, C, H, W)
        y = self.conv(y.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1) + x


class SwinIR(nn.Module):
    """SwinIR, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    mean: Tensor

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        colors = config.image_channels
        mean = torch.tensor(_DIV2K_MEAN if colors == 3 else (0.0,))
        mean = mean.view(1, colors, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(colors, c, 3, padding=1)
        self.patch_norm = nn.LayerNorm(c) if config.patch_norm else nn.Identity()
        self.layers = nn.ModuleList()
        for depth, heads in zip(config.depths, config.num_heads, strict=True):
            self.layers.append(RSTB(config, depth, heads))
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = residual_conv(c, config.resi_connection)
        self._build_upsampler()

    def _build_upsampler(self) -> None:
        """Create the layers that `_upsample` applies, under their published names."""
        c = self.config.channels
        colors = self.config.image_channels
        scale = self.config.scale
        f = self.config.upsample_channels
        match self.config.upsampler:
            case "none":
                self.conv_last = ConvAct(c, colors)
            case "pixelshuffledirect":
                shuffle_channels = colors * scale**2
                self.upsample = nn.Sequential(
                    nn.Conv2d(c, shuffle_channels, 3, padding=1),
                    nn.PixelShuffle(scale),
                )
            case "pixelshuffle":
                self.conv_before_upsample = _conv_before_upsample(c, f)
                self.upsample = shuffle_stages(f, _UPSAMPLE_FACTORS[scale])
                self.conv_last = ConvAct(f, colors)
            case "nearest+conv":
                act = LeakyReLU(_NEAREST_CONV_SLOPE)
                self.conv_before_upsample = _conv_before_upsample(c, f)
                for i in range(len(_UPSAMPLE_FACTORS[scale])):
                    self.add_module(f"conv_up{i + 1}", UpsampleConv(f, f, act=act))
                self.conv_hr = ConvAct(f, f, act=act)
                self.conv_last = ConvAct(f, colors)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a clip, one frame after the other.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].
        """
        return stack_frames(self._restored_frames(lq), lq.shape[1])

    def _restored_frames(self, lq: Tensor) -> Iterator[Tensor]:
        """Yield sr (B, 3, sH, sW) of each frame, from the first to the last."""
        batch, num_frames, rgb, height, width = lq.shape
        colors = self.config.image_channels
        sr_shape = (batch, rgb, height * self.config.scale, -1)
        for t in range(num_frames):
            # A network of gray images gets R, G and B as three images.
            images = lq[:, t].reshape(-1, colors, height, width)
            yield self._restore(images).reshape(sr_shape)

    def _restore(self, images: Tensor) -> Tensor:
        """Map (B, C', H, W) to (B, C', sH, sW), where C' is `image_channels`."""
        height, width = images.shape[-2:]
        x = pad_to_windows(images, self.config.window)
        x = (x - self.mean) * self.config.img_range
        x = x.contiguous(memory_format=torch.channels_last)
        sr = self._upsample(self._extract_features(x), x)

        # Cut off the padding.
        scale = self.config.scale
        sr = sr[..., : scale * height, : scale * width]
        return (sr / self.config.img_range).add_(self.mean)

    def _extract_features(self, x: Tensor) -> Tensor:
        """Map (B, C', H, W) to features (B, C, H, W), channels last in memory (Eqs. 1 to 3)."""
        shallow = self.conv_first(x)  # Eq. 1
        deep = shallow.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        # Eqs. 2 and 3
        deep = self.patch_norm(deep)
        for group in self.layers:
            deep = group(deep)
        deep = self.norm(deep).permute(0, 3, 1, 2)  # (B, C, H, W)
        return self.conv_after_body(deep).add_(shallow)

    def _upsample(
        self,
        features: Tensor,
        x: Tensor,
    ) -> Tensor:
        """Turn features (B, C, H, W) into an image (B, C', sH, sW) (Eqs. 4 and 5).

        Args:
            features: Shallow plus deep features, (B, C, H, W).
            x: Input of the network, (B, C', H, W).

        Returns:
            (B, C', sH, sW), scaled by `img_range` and without the mean.
        """
        match self.config.upsampler:
            case "none":
                # Eq. 5
                return self.conv_last(features).add_(x)
            case "pixelshuffledirect":
                return self.upsample(features)
            case "pixelshuffle":
                features = self.conv_before_upsample(features)
                return shuffle_and_convolve(features, self.upsample, self.conv_last)
            case "nearest+conv":
                features = self.conv_before_upsample(features)
                doublings: list[UpsampleConv] = []
                for i in range(len(_UPSAMPLE_FACTORS[self.config.scale])):
                    doublings.append(cast(UpsampleConv, self.get_submodule(f"conv_up{i + 1}")))
                return repeat_and_convolve(features, doublings, self.conv_hr, self.conv_last)


def _conv_before_upsample(
    in_channels: int,
    out_channels: int,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.LeakyReLU(inplace=True),
    )


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"\.residual_group\.", "."),
    (r"patch_embed\.norm\.", "patch_norm."),
)
_DERIVED_NAMES = r".*(attn_mask|attn\.relative_position_index)"
"""Tensors of published files that follow from the sizes of the windows and training images."""
_FIRST_BLOCK = "layers.0.blocks.0."
_BIAS_TABLE = f"{_FIRST_BLOCK}attn.relative_position_bias_table"
_REQUIRED_NAMES = {
    "norm.weight",
    f"{_FIRST_BLOCK}attn.qkv.weight",
    f"{_FIRST_BLOCK}mlp.fc1.weight",
    f"{_FIRST_BLOCK}norm2.weight",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors, BasicSR, KAIR and MMagic, which are the same, to ours.

    Returns:
        The renamed tensors, or None if the state dict belongs to another network.
    """
    if "conv_first.weight" not in state:
        return None
    # HAT has the same attention, and overlapping attention besides.
    if any(".overlap" in name for name in state):
        return None
    own = rename(without(state, _DERIVED_NAMES), _AUTHORS_RULES)
    if not own.keys() >= _REQUIRED_NAMES:
        return None
    # The end of a group is one convolution or three.
    if own.keys().isdisjoint({"layers.0.conv.weight", "layers.0.conv.4.weight"}):
        return None
    # Grayscale or RGB images.
    if input_channels(own, "conv_first") not in (1, 3):
        return None
    if not is_bias_table(own, _BIAS_TABLE):
        return None
    upsampler = _infer_upsampler(own)
    scale = _infer_scale(own, upsampler)
    if scale not in _SCALES[upsampler]:
        return None
    return own


def _infer_upsampler(state: State) -> SwinIRUpsampler:
    if "conv_up1.weight" in state:
        return "nearest+conv"
    if "conv_before_upsample.0.weight" in state:
        return "pixelshuffle"
    if "upsample.0.weight" in state:
        return "pixelshuffledirect"
    return "none"


def _infer_scale(state: State, upsampler: SwinIRUpsampler) -> int:
    """Infer the scale from the convolutions of the upsampler; 0 if they fit no scale."""
    match upsampler:
        case "none":
            return 1
        case "nearest+conv":
            return 2 ** count_names(state, r"conv_up\d\.weight")
        case "pixelshuffle":
            return shuffle_scale(state, "upsample")
        case "pixelshuffledirect":
            shape = shape_of(state, "upsample.0.weight")
            if len(shape) != 4:
                return 0
            colors = state["conv_first.weight"].shape[1]
            return math.isqrt(shape[0] // colors)


def _infer(state: State) -> SwinIRConfig:
    channels, colors = state["conv_first.weight"].shape[:2]
    depths: list[int] = []
    num_heads: list[int] = []
    for i in range(count_names(state, r"layers\.\d+\.blocks\.0\.norm1\.weight")):
        depths.append(count_names(state, rf"layers\.{i}\.blocks\.\d+\.norm1\.weight"))
        table = state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"]
        num_heads.append(table.shape[1])

    # The table of relative positions has (2 · window − 1)² entries.
    entries = len(state[_BIAS_TABLE])
    window = (math.isqrt(entries) + 1) // 2
    upsampler = _infer_upsampler(state)
    is_jpeg = window == _JPEG_WINDOW and upsampler == "none"
    conv_before = state.get("conv_before_upsample.0.weight")
    return SwinIRConfig(
        scale=_infer_scale(state, upsampler),
        channels=channels,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window=window,
        mlp_ratio=state[f"{_FIRST_BLOCK}mlp.fc1.weight"].shape[0] / channels,
        upsampler=upsampler,
        resi_connection="1conv" if "layers.0.conv.weight" in state else "3conv",
        img_range=255.0 if is_jpeg else 1.0,
        image_channels=colors,
        upsample_channels=64 if conv_before is None else conv_before.shape[0],
        qkv_bias=f"{_FIRST_BLOCK}attn.qkv.bias" in state,
        patch_norm="patch_norm.weight" in state,
    )


def _contract(config: SwinIRConfig) -> Contract:
    window = config.window
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        # Deviation: a block reaches one and a half windows further, so that 36 blocks see a large
        # part of an image; the influence of distant pixels is faint.
        halo_px=math.ceil(_HALO_PX / window) * window,
        size_multiple=window,
        # The smallest size that mirroring can extend to a whole window.
        min_size_px=window // 2 + 1,
        precisions=("fp32", "bf16"),
    )


ARCHITECTURE = Architecture(
    name=SwinIR.__name__,
    config=SwinIRConfig,
    build=SwinIR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/2108.10257",
)
