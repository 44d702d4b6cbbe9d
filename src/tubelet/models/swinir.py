"""SwinIR: attention within shifted windows, in residual groups that each end with a convolution.

    lq (B, T, 3, H, W), frame by frame; x = (lq − mean) · img_range, mirrored to whole windows
      conv_first ─┬─ norm ─ group × G ─ norm ─ conv_after_body ─(+)─ upsampler ─ / img_range + mean → sr
                  └─────────────────────────────────────────────┘       features (B, H, W, C), channels last
    group           ┬─ block × D ─ conv ─(+)                                                   Eqs. 8 and 9
    block           x + attention(norm x), then x + MLP(norm x); every second one shifted by half a window

    upsampler                                                                                   published as
      pixelshuffle        conv, then (conv ─ shuffle) up to ×s, conv                            classical, ×2 ×3 ×4 ×8
      pixelshuffledirect  one conv ─ shuffle × s                                                lightweight
      nearest+conv        conv, then (nearest × 2 ─ conv), conv, conv                           real-world, ×2 ×4
      none                conv, added to x                                                      denoising, JPEG

Published, blocks in groups of 6, windows of 8:
    classical, real-world M, denoising    180 channels, 6 groups, 6 heads
    lightweight                            60 channels, 4 groups, 6 heads
    real-world L                          240 channels, 9 groups, 8 heads, three convolutions a group
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
from tubelet.layers.attention import Mlp, WindowAttention
from tubelet.layers.convolution import ConvAct, LeakyReLU, UpsampleConv
from tubelet.layers.frames import stack_frames
from tubelet.layers.inference import SwitchableLayer
from tubelet.layers.upsampling import repeat_and_convolve
from tubelet.layers.windows import map_windows, pad_to_windows
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

__all__ = ["ARCHITECTURE", "SwinIR", "SwinIRConfig", "SwinIRUpsampler"]

SwinIRUpsampler = Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", "none"]

_SCALES: dict[SwinIRUpsampler, tuple[int, ...]] = {
    "pixelshuffle": (2, 3, 4, 8),
    "pixelshuffledirect": (1, 2, 3, 4, 5, 6, 7, 8),
    "nearest+conv": (2, 4),
    "none": (1,),
}
_STEPS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""Factors of the enlargements that make a scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_SLOPE = 0.2  # of the activations after repeated pixels
_JPEG_WINDOW = 7
"""Of the published networks for JPEG alone (Sec. 4.1); they work in [0, 255]."""
_HALO_PX = 32
"""Overlap of tiles in the authors' own script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinIRConfig:
    """Shape of a `SwinIR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "embed_dim": "channels",
        "num_feat": "upsample_channels",
        "window_size": "window",
        "in_chans": "image_channels",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"heads": "num_heads", "colours": "image_channels"}

    scale: int = 4
    """Factor of the output size."""
    channels: int = 180
    """Width of the features."""
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    """Blocks of each group."""
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    """Heads of the attention in each group."""
    window: int = 8
    """Side of a window, lq pixels."""
    mlp_ratio: float = 2.0
    """Inner width of the MLPs over `channels`."""
    upsampler: SwinIRUpsampler = "pixelshuffle"
    """How features become an image."""
    resi_connection: Literal["1conv", "3conv"] = "1conv"
    """What ends a group: one convolution, or three over a quarter of the channels."""
    img_range: float = 1.0
    """What one stands for inside. No file tells it: `infer` takes 255 for windows of 7, as published, otherwise 1."""
    image_channels: int = 3
    """3 for RGB; 1 for a network of gray images, which then restores each color by itself."""
    upsample_channels: int = 64
    """Width behind the groups, where the upsampler has a width of its own."""
    qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    patch_norm: bool = True
    """Whether features are normalized before the first group."""

    def __post_init__(self) -> None:
        if self.scale not in _SCALES[self.upsampler]:
            raise ConfigError(
                f"SwinIR: scale {self.scale} does not go with the upsampler {self.upsampler!r}"
            )
        if len(self.depths) != len(self.num_heads) or not self.depths or min(self.depths) < 1:
            raise ConfigError(
                f"SwinIR: depths {self.depths} and heads {self.num_heads} must be of the same length, ≥ 1"
            )
        if any(heads < 1 or self.channels % heads for heads in self.num_heads):
            raise ConfigError(
                f"SwinIR: heads {self.num_heads} must divide the {self.channels} channels"
            )
        if (
            self.window < 1
            or self.image_channels not in (1, 3)
            or self.mlp_ratio <= 0
            or self.img_range <= 0
        ):
            raise ConfigError(
                f"{self} is out of range: window ≥ 1; colors 1 or 3; mlp_ratio, img_range > 0"
            )


class SwinBlock(SwitchableLayer):
    """Attention within windows, then an MLP, each on normalized features and added (Eq. 10).

    Everything passes through `attn` and `mlp`, so that an adapter can replace or wrap them; both
    keep the shape of their input. `attn(tokens, size)` gets the tokens (n, N, C) of n windows of
    this size, N = ∏ size, and `mlp(tokens)` gets the same tokens. The block itself, (B, H, W, C) to
    the same shape, can be wrapped as well: it leaves its input as it is.

    Args:
        config: shape of the network.
        heads: of the attention.
        shift: of the windows, lq pixels.
    """

    def __init__(self, config: SwinIRConfig, heads: int, shift: int) -> None:
        super().__init__()
        c = config.channels
        self.window, self.shift = (config.window, config.window), (shift, shift)
        self.norm1 = nn.LayerNorm(c)
        self.attn = WindowAttention(c, heads, self.window, qkv_bias=config.qkv_bias)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c, round(c * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        return map_windows(
            self._restore_windows,
            [x],
            window=self.window,
            shift=self.shift,
            backend=self.backend,
        )

    def _restore_windows(self, windows: tuple[Tensor, ...], size: tuple[int, ...]) -> Tensor:
        """Map the tokens of windows, (n, N, C), to the same shape."""
        (x,) = windows
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x))


def _residual_conv(channels: int, kind: Literal["1conv", "3conv"]) -> nn.Module:
    if kind == "1conv":
        return nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(channels, channels // 4, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(channels // 4, channels // 4, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(channels // 4, channels, 3, padding=1),
    )


class RSTB(nn.Module):
    """Residual Swin Transformer block: blocks, every second one shifted, a convolution, a skip (Eqs. 8 and 9).

    Args:
        config: shape of the network.
        depth: number of blocks.
        heads: of their attention.
    """

    def __init__(self, config: SwinIRConfig, depth: int, heads: int) -> None:
        super().__init__()
        half = config.window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(config, heads, half if i % 2 else 0) for i in range(depth)
        )
        self.conv = _residual_conv(config.channels, config.resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        y = x
        for block in self.blocks:
            y = block(y)
        return self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x


class SwinIR(nn.Module):
    """Restore every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    mean: Tensor

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__()
        self.config = config
        c, f, colors, kind = (
            config.channels,
            config.upsample_channels,
            config.image_channels,
            config.upsampler,
        )
        mean = torch.tensor(_DIV2K_MEAN if colors == 3 else (0.0,)).view(1, colors, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(colors, c, 3, padding=1)
        self.patch_norm = nn.LayerNorm(c) if config.patch_norm else nn.Identity()
        self.layers = nn.ModuleList(
            RSTB(config, *group) for group in zip(config.depths, config.num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(c)
        self.conv_after_body = _residual_conv(c, config.resi_connection)
        if kind == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(c, colors * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale)
            )
            return
        if kind != "none":
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(c, f, 3, padding=1), nn.LeakyReLU(inplace=True)
            )
        if kind == "pixelshuffle":
            self.upsample = nn.Sequential()
            for step in _STEPS[config.scale]:
                self.upsample.extend(
                    [nn.Conv2d(f, f * step**2, 3, padding=1), nn.PixelShuffle(step)]
                )
        elif kind == "nearest+conv":
            for i in range(len(_STEPS[config.scale])):
                self.add_module(f"conv_up{i + 1}", UpsampleConv(f, f, act=LeakyReLU(_SLOPE)))
            self.conv_hr = ConvAct(f, f, act=LeakyReLU(_SLOPE))
        self.conv_last = ConvAct(c if kind == "none" else f, colors)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore `lq` (B, T, 3, H, W), one frame after the other: (B, T, 3, sH, sW); values can overshoot [0, 1]."""
        return stack_frames(self._frames(lq), lq.shape[1])

    def _frames(self, lq: Tensor) -> Iterator[Tensor]:
        """Yield sr (B, 3, sH, sW) from the first frame to the last."""
        colors, (height, width) = self.config.image_channels, lq.shape[-2:]
        for frame in lq.unbind(1):
            images = frame.reshape(
                -1, colors, height, width
            )  # three for one where the network is gray
            yield self._restore(images).reshape(
                lq.shape[0], lq.shape[2], height * self.config.scale, -1
            )

    def _restore(self, frame: Tensor) -> Tensor:
        """Map (B, C', H, W) to (B, C', sH, sW), C' the colors of the network."""
        height, width = (self.config.scale * side for side in frame.shape[-2:])
        x = (pad_to_windows(frame, self.config.window) - self.mean) * self.config.img_range
        x = x.contiguous(memory_format=torch.channels_last)
        sr = self._upsample(self._features(x), x)
        return (sr[..., :height, :width] / self.config.img_range).add_(self.mean)

    def _features(self, x: Tensor) -> Tensor:
        """Map (B, C', H, W) to features (B, C, H, W), channels last (Eqs. 1 to 3)."""
        shallow = self.conv_first(x)
        deep = self.patch_norm(shallow.permute(0, 2, 3, 1).contiguous())  # (B, H, W, C)
        for group in self.layers:
            deep = group(deep)
        return self.conv_after_body(self.norm(deep).permute(0, 3, 1, 2)).add_(shallow)

    def _upsample(self, features: Tensor, x: Tensor) -> Tensor:
        """Make the image (B, C', sH, sW) of features and what the network was given (Eqs. 4 and 5)."""
        kind = self.config.upsampler
        if kind == "none":
            return self.conv_last(features).add_(x)
        if kind == "pixelshuffledirect":
            return self.upsample(features)
        up = self.conv_before_upsample(features)
        if kind == "pixelshuffle":
            return self.conv_last(self.upsample(up))
        steps = range(len(_STEPS[self.config.scale]))
        doublings = [cast(UpsampleConv, self.get_submodule(f"conv_up{i + 1}")) for i in steps]
        return repeat_and_convolve(up, doublings, self.conv_hr, self.conv_last)


_AUTHORS: tuple[Rule, ...] = ((r"\.residual_group\.", "."), (r"patch_embed\.norm\.", "patch_norm."))
_DERIVED = r".*(attn_mask|attn\.relative_position_index)"
"""Of the published files: what follows from the size of the windows and of the training images."""
_FIRST = "layers.0.blocks.0."
_TABLE = f"{_FIRST}attn.relative_position_bias_table"
_NEEDED = {
    "norm.weight",
    f"{_FIRST}attn.qkv.weight",
    f"{_FIRST}mlp.fc1.weight",
    f"{_FIRST}norm2.weight",
}


def _translate(state: State) -> dict[str, Tensor] | None:
    """Map the names of the authors, BasicSR, KAIR and MMagic, which are the same; None where they are others."""
    if "conv_first.weight" not in state or any(".overlap" in name for name in state):
        return None  # HAT has such attention besides
    own = rename(without(state, _DERIVED), _AUTHORS)
    if not own.keys() >= _NEEDED:
        return None
    if "layers.0.conv.weight" not in own and "layers.0.conv.4.weight" not in own:
        return None
    first = shape_of(own, "conv_first.weight")
    if len(first) != 4 or first[1] not in (1, 3) or not is_bias_table(own, _TABLE):
        return None
    upsampler = _upsampler(own)
    return own if _scale(own, upsampler) in _SCALES[upsampler] else None


def _upsampler(state: State) -> SwinIRUpsampler:
    if "conv_up1.weight" in state:
        return "nearest+conv"
    if "conv_before_upsample.0.weight" in state:
        return "pixelshuffle"
    return "pixelshuffledirect" if "upsample.0.weight" in state else "none"


def _scale(state: State, upsampler: SwinIRUpsampler) -> int:
    """Read the scale off the convolutions of the upsampler; 0 where they fit none."""
    if upsampler == "none":
        return 1
    if upsampler == "nearest+conv":
        return 2 ** count_names(state, r"conv_up\d\.weight")
    if upsampler == "pixelshuffle":
        return shuffle_scale(state, "upsample")
    first = shape_of(state, "upsample.0.weight")
    return math.isqrt(first[0] // state["conv_first.weight"].shape[1]) if len(first) == 4 else 0


def _infer(state: State) -> SwinIRConfig:
    channels, colors = state["conv_first.weight"].shape[:2]
    groups = range(count_names(state, r"layers\.\d+\.blocks\.0\.norm1\.weight"))
    tables = [state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in groups]
    upsampler = _upsampler(state)
    window = (math.isqrt(len(tables[0])) + 1) // 2
    before = state.get("conv_before_upsample.0.weight")
    return SwinIRConfig(
        scale=_scale(state, upsampler),
        channels=channels,
        depths=tuple(
            count_names(state, rf"layers\.{i}\.blocks\.\d+\.norm1\.weight") for i in groups
        ),
        num_heads=tuple(table.shape[1] for table in tables),
        window=window,
        mlp_ratio=state[f"{_FIRST}mlp.fc1.weight"].shape[0] / channels,
        upsampler=upsampler,
        resi_connection="1conv" if "layers.0.conv.weight" in state else "3conv",
        img_range=255.0 if window == _JPEG_WINDOW and upsampler == "none" else 1.0,
        image_channels=colors,
        upsample_channels=64 if before is None else before.shape[0],
        qkv_bias=f"{_FIRST}attn.qkv.bias" in state,
        patch_norm="patch_norm.weight" in state,
    )


def _contract(config: SwinIRConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        # Deviation: a block sees a window and a half further, 36 blocks most of an image, and faintly so.
        halo_px=math.ceil(_HALO_PX / config.window) * config.window,
        size_multiple=config.window,
        min_size_px=config.window // 2 + 1,  # which mirroring can make a whole window of
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
