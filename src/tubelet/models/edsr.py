"""EDSR: residual blocks without normalization, at input resolution; the upsampling comes last.

    lq (B, T, 3, H, W), frame by frame; x = (lq − mean) · img_range
      conv_first ─┬─ (conv ─ ReLU ─ conv, × res_scale, + skip) × num_blocks ─ conv_after_body ─┐
                  └───────────────────────────────────────────────────────────────────────────┴ (B·T, C, H, W)
      ─ (conv ─ pixel shuffle) up to ×s ─ conv_last ─ / img_range + mean → sr (B, T, 3, sH, sW)

Published configurations (Table 1):
    baseline, "M"     64 features, 16 blocks, res_scale 1
    EDSR, "L"         256 features, 32 blocks, res_scale 0.1

Source: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.layers.convolution import ConvAct, ConvAdd
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import (
    Rule,
    State,
    count_names,
    rename,
    shape_of,
    shuffle_scale,
    without,
)
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "EDSR", "EDSRConfig"]

_STEPS: dict[int, tuple[int, ...]] = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""Factors of the pixel shuffles that make a scale."""
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_WIDE = 256
"""From this width on, the published networks scale their residuals by 0.1 (Section 3.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EDSRConfig:
    """Shape of an `EDSR`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "num_feat": "channels",
        "num_block": "num_blocks",
    }

    scale: int = 4
    """Factor of the output size: 2, 3, 4 or 8."""
    channels: int = 64
    """Width of the features."""
    num_blocks: int = 16
    """Residual blocks."""
    res_scale: float = 1.0
    """Factor of each block's residual. No file tells it: `infer` takes 0.1 from 256 features on, as published."""
    img_range: float = 255.0
    """What one stands for inside the network."""
    rgb_mean: tuple[float, float, float] = _DIV2K_MEAN
    """Subtracted before and added after, in [0, 1]; of DIV2K's images."""

    def __post_init__(self) -> None:
        if (
            self.scale not in _STEPS
            or self.channels < 1
            or self.num_blocks < 0
            or self.img_range <= 0
        ):
            raise ConfigError(
                f"{self} is out of range: scale 2, 3, 4 or 8; channels ≥ 1; num_blocks ≥ 0; img_range > 0"
            )


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, skip: (B, C, H, W) → (B, C, H, W) (Fig. 2c)."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = ConvAct(channels, channels, act="relu")
        self.conv2 = ConvAdd(channels, channels) if res_scale == 1 else ConvAct(channels, channels)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        y = self.conv1(x)
        if isinstance(self.conv2, ConvAdd):
            return self.conv2(y, x)
        return torch.add(x, self.conv2(y), alpha=self.res_scale)


class EDSR(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    mean: Tensor

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.register_buffer(
            "mean", torch.tensor(config.rgb_mean).view(1, 3, 1, 1), persistent=False
        )
        self.conv_first = nn.Conv2d(3, c, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualBlock(c, config.res_scale) for _ in range(config.num_blocks))
        )
        self.conv_after_body = ConvAdd(c, c)
        self.upsample = nn.Sequential()
        for step in _STEPS[config.scale]:
            self.upsample.extend([ConvAct(c, c * step**2), nn.PixelShuffle(step)])
        self.conv_last = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge `lq` (B, T, 3, H, W) to (B, T, 3, sH, sW); values can overshoot [0, 1]."""
        x = self.conv_first(
            (lq.flatten(0, 1) - self.mean) * self.config.img_range
        )  # (B·T, C, H, W)
        x = self.conv_after_body(self.body(x), x)
        for layer in self.upsample:  # one by one, so that each input is freed
            x = layer(x)
        x = self.conv_last(x)  # (B·T, 3, sH, sW)
        return (x / self.config.img_range + self.mean).unflatten(0, lq.shape[:2])


_AUTHORS: tuple[Rule, ...] = (
    (r"^head\.0\.", "conv_first."),
    (r"^body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
    (r"^body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
    (r"^body\.\d+\.(weight|bias)$", r"conv_after_body.\1"),
    (r"^tail\.0\.(\d+)\.", r"upsample.\1."),
    (r"^tail\.1\.", "conv_last."),
)
"""Names of the authors' PyTorch version; its `sub_mean` and `add_mean` are constants of the configuration."""


def _translate(state: State) -> dict[str, Tensor] | None:
    if "head.0.weight" in state and "tail.0.0.weight" in state:
        state = rename(without(state, r"(sub|add)_mean\..*"), _AUTHORS)
    first = shape_of(state, "conv_first.weight")
    if (
        len(first) != 4
        or first[1] != 3
        or "conv_last.weight" not in state
        or "body.0.conv1.weight" not in state
    ):
        return None
    if shape_of(state, "conv_after_body.weight") != (first[0], first[0], 3, 3):
        return None
    return dict(state) if shuffle_scale(state, "upsample") in _STEPS else None


def _infer(state: State) -> EDSRConfig:
    channels = state["conv_first.weight"].shape[0]
    return EDSRConfig(
        scale=shuffle_scale(state, "upsample"),
        channels=channels,
        num_blocks=count_names(state, r"body\.\d+\.conv1\.weight"),
        res_scale=0.1 if channels >= _WIDE else 1.0,
    )


def _contract(config: EDSRConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=2 * config.num_blocks
        + 4,  # first, body, first of the upsampling, and less than a pixel after it
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
