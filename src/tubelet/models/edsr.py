"""EDSR: residual blocks without normalization, at input resolution; upsampling at the end.

    lq (B, T, 3, H, W), frame by frame; x = (lq − mean) · img_range
      conv_first ─┬─ residual block × num_blocks ─ conv_after_body ─┐
                  └─────────────────────────────────────────────────┴(+) (B·T, C, H, W)
      ─ (conv ─ pixel shuffle) up to ×s ─ conv_last ─ / img_range + mean ─ sr (B, T, 3, sH, sW)

    residual block    x + res_scale · conv(ReLU(conv(x)))                              Fig. 2c

Published configurations (Table 1):
    baseline, "M"     64 channels, 16 blocks, res_scale 1
    EDSR, "L"         256 channels, 32 blocks, res_scale 0.1

Source: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.layers.convolution import ConvAct, ConvAdd
from tubelet.layers.upsampling import shuffle_and_convolve, shuffle_stages
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.config_checks import check_choice, check_min, check_positive
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

__all__ = ["ARCHITECTURE", "EDSR", "EDSRConfig"]

_UPSAMPLE_FACTORS: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (3,),
    4: (2, 2),
    8: (2, 2, 2),
}
"""Factors of the successive pixel shuffles of each scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_WIDE_CHANNELS = 256
"""From this width on, the published networks scale their residuals by 0.1 (Section 3.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EDSRConfig:
    """Configuration of an `EDSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
    }

    scale: int = 4
    """Upscaling factor: 2, 3, 4 or 8."""
    channels: int = 64
    """Width of the features."""
    num_blocks: int = 16
    """Number of residual blocks."""
    res_scale: float = 1.0
    """Factor of each block's residual. Checkpoints do not store it: `infer` takes 0.1 for 256
    channels or more, as published, otherwise 1."""
    img_range: float = 255.0
    """Inner value of a full-scale pixel."""
    rgb_mean: tuple[float, float, float] = _DIV2K_MEAN
    """Mean color of DIV2K, in [0, 1]; subtracted from the input and added to the output."""

    def __post_init__(self) -> None:
        check_choice(self, "scale", _UPSAMPLE_FACTORS)
        check_min(self, "channels", 1)
        check_min(self, "num_blocks", 0)
        check_positive(self, "img_range")


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, and a skip, without normalization (Fig. 2c).

    Args:
        channels: Width of the features.
        res_scale: Factor of the residual.
    """

    def __init__(
        self,
        channels: int,
        res_scale: float,
    ) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = ConvAct(channels, channels, act="relu")
        # Without a factor, the convolution and the skip are fused.
        self.conv2 = ConvAdd(channels, channels) if res_scale == 1 else ConvAct(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.conv1(x)
        if isinstance(self.conv2, ConvAdd):
            return self.conv2(y, x)
        return torch.add(x, self.conv2(y), alpha=self.res_scale)


class EDSR(nn.Module):
    """EDSR, applied to each frame independently; see the drawing at the top of this file.

    Args:
        config: Configuration of the network.
    """

    mean: Tensor

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        mean = torch.tensor(config.rgb_mean).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.body = nn.Sequential()
        for _ in range(config.num_blocks):
            self.body.append(ResidualBlock(c, config.res_scale))
        self.conv_after_body = ConvAdd(c, c)
        self.upsample = shuffle_stages(c, _UPSAMPLE_FACTORS[config.scale])
        self.conv_last = ConvAct(c, 3)

    def forward(self, lq: Tensor) -> Tensor:
        """Upscale a clip.

        Args:
            lq: Low-quality clip, (B, T, 3, H, W), in [0, 1].

        Returns:
            (B, T, 3, sH, sW); values can exceed [0, 1].
        """
        frames = lq.flatten(0, 1)  # (B·T, 3, H, W)
        x = self.conv_first((frames - self.mean) * self.config.img_range)
        x = self.conv_after_body(self.body(x), x)
        sr = shuffle_and_convolve(x, self.upsample, self.conv_last)  # (B·T, 3, sH, sW)
        sr = sr / self.config.img_range + self.mean
        return sr.view(*lq.shape[:2], *sr.shape[1:])


_AUTHORS_RULES: tuple[Rule, ...] = (
    (r"^head\.0\.", "conv_first."),
    (r"^body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
    (r"^body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
    (r"^body\.\d+\.(weight|bias)$", r"conv_after_body.\1"),
    (r"^tail\.0\.(\d+)\.", r"upsample.\1."),
    (r"^tail\.1\.", "conv_last."),
)
"""Names of the authors' PyTorch version, whose `sub_mean` and `add_mean` are constants here."""


def _translate(state: State) -> dict[str, Tensor] | None:
    """Take our names, which are those of BasicSR, or rename those of the authors.

    Returns:
        The tensors by our names, or None if the state dict belongs to another network.
    """
    if state.keys() >= {"head.0.weight", "tail.0.0.weight"}:
        state = rename(without(state, r"(sub|add)_mean\..*"), _AUTHORS_RULES)
    if not state.keys() >= {"conv_last.weight", "body.0.conv1.weight"}:
        return None
    if input_channels(state, "conv_first") != 3:
        return None
    channels = state["conv_first.weight"].shape[0]
    if shape_of(state, "conv_after_body.weight") != (channels, channels, 3, 3):
        return None
    if shuffle_scale(state, "upsample") not in _UPSAMPLE_FACTORS:
        return None
    return dict(state)


def _infer(state: State) -> EDSRConfig:
    channels = state["conv_first.weight"].shape[0]
    return EDSRConfig(
        scale=shuffle_scale(state, "upsample"),
        channels=channels,
        num_blocks=count_names(state, r"body\.\d+\.conv1\.weight"),
        res_scale=0.1 if channels >= _WIDE_CHANNELS else 1.0,
    )


def _contract(config: EDSRConfig) -> Contract:
    # Two convolutions a block, conv_first, conv_after_body, the first of the upsampling, and less
    # than a pixel after it.
    reach_px = 2 * config.num_blocks + 4
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=reach_px,
    )


ARCHITECTURE = Architecture(
    name=EDSR.__name__,
    config=EDSRConfig,
    build=EDSR,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1707.02921",
)
