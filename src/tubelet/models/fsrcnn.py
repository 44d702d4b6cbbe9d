"""FSRCNN: features are shrunk, mapped and expanded at input resolution; a transposed convolution enlarges them.

    lq (B, T, 3, H, W), frame by frame
      luma (B·T, 1, H, W) ─ 5×5, d ─ 1×1, s ─ (3×3, s) × m ─ 1×1, d ─ 9×9 transposed, stride scale ─ luma of sr
      color ─ bicubic ×scale ────────────────────────────────────────────────────────────────────┴ sr (B, T, 3, sH, sW)

PReLU after every convolution. Luma is Y of BT.601, 16/255 to 235/255. Files with three channels exist too: those
enlarge R, G and B. Published configuration: d = 56, s = 12, m = 4, luma, ×2, ×3, ×4.

Source: Dong et al., Accelerating the Super-Resolution Convolutional Neural Network, ECCV 2016, Section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.models.architecture import Architecture, Contract
from tubelet.models.state_dict import State, count_names, has_convolutions, shape_of
from tubelet.ops.resize import resample
from tubelet.types import Temporal

__all__ = ["ARCHITECTURE", "FSRCNN", "FSRCNNConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FSRCNNConfig:
    """Shape of an `FSRCNN`."""

    PUBLISHED_NAMES: ClassVar[Mapping[str, str]] = {
        "d": "channels",
        "s": "shrunk_channels",
        "m": "num_blocks",
    }
    FORMER_NAMES: ClassVar[Mapping[str, str]] = {
        "channels": "image_channels",
        "d": "channels",
        "s": "shrunk_channels",
        "m": "num_blocks",
    }

    scale: int = 4
    """Factor of the output size, up to 4. No file tells it, as the last kernel is 9×9 for all: `infer` takes 4."""
    image_channels: Literal[1, 3] = 1
    """1 enlarges luma by the network and color by bicubic; 3 enlarges R, G and B by the network."""
    channels: int = 56
    """Width of the features."""
    shrunk_channels: int = 12
    """Width of the shrunk features."""
    num_blocks: int = 4
    """3×3 convolutions between shrinking and expanding."""

    def __post_init__(self) -> None:
        if (
            self.scale not in (1, 2, 3, 4)
            or self.image_channels not in (1, 3)
            or min(self.channels, self.shrunk_channels) < 1
            or self.num_blocks < 0
        ):
            raise ConfigError(
                f"{self} is out of range: scale 1 to 4; channels 1 or 3; d, s ≥ 1; m ≥ 0"
            )


class FSRCNN(nn.Module):
    """Enlarge every frame by itself; see the drawing on top of this file.

    Args:
        config: shape of the network.
    """

    luma_of_rgb: Tensor

    def __init__(self, config: FSRCNNConfig) -> None:
        super().__init__()
        self.config = config
        d, s, scale = config.channels, config.shrunk_channels, config.scale
        self.first_part = nn.Sequential(
            nn.Conv2d(config.image_channels, d, 5, padding=2), nn.PReLU(d)
        )
        self.mid_part = nn.Sequential(nn.Conv2d(d, s, 1), nn.PReLU(s))
        for _ in range(config.num_blocks):
            self.mid_part.extend([nn.Conv2d(s, s, 3, padding=1), nn.PReLU(s)])
        self.mid_part.extend([nn.Conv2d(s, d, 1), nn.PReLU(d)])
        self.last_part = nn.ConvTranspose2d(
            d, config.image_channels, 9, scale, padding=4, output_padding=scale - 1
        )
        weights = torch.tensor([65.481, 128.553, 24.966]) / 255  # BT.601, times 219/255
        self.register_buffer("luma_of_rgb", weights.view(1, 3, 1, 1), persistent=False)

    def forward(self, lq: Tensor) -> Tensor:
        """Enlarge a clip.

        Args:
            lq: (B, T, 3, H, W), RGB; or (B, T, 1, H, W), luma from 16/255 to 235/255, if the network has one channel.

        Returns:
            (B, T, 3 or 1, sH, sW); values can overshoot [0, 1].
        """
        frames = lq.flatten(0, 1)  # (B·T, 3 or 1, H, W)
        color = frames.shape[1] > self.config.image_channels
        x = self._luma(frames) if color else frames
        x = self.last_part(self.mid_part(self.first_part(x)))  # (B·T, channels, sH, sW)
        if color:
            # Y, Cb and Cr are linear in R, G and B: new luma over bicubic Cb and Cr is bicubic RGB plus the same
            # difference of luma in all three, times 255/219.
            rgb = resample(frames.contiguous(), (x.shape[-2], x.shape[-1]))
            x = rgb + (x - self._luma(rgb)) * (255 / 219)  # (B·T, 3, sH, sW)
        return x.unflatten(0, lq.shape[:2])

    def _luma(self, rgb: Tensor) -> Tensor:
        return (rgb * self.luma_of_rgb).sum(1, keepdim=True) + 16 / 255


def _translate(state: State) -> dict[str, Tensor] | None:
    first = shape_of(state, "first_part.0.weight")
    last = shape_of(state, "last_part.weight")
    if not has_convolutions(state, "first_part.0", "mid_part.0", "last_part"):
        return None
    if first[1] not in (1, 3) or first[2:] != (5, 5) or last[2:] != (9, 9):
        return None
    return dict(state) if _depth(state) >= 0 else None


def _depth(state: State) -> int:
    """Count the 3×3 convolutions: those between the first and the last of `mid_part`."""
    convs = count_names(state, r"mid_part\.\d+\.bias")
    return convs - 2


def _infer(state: State) -> FSRCNNConfig:
    d, channels = state["first_part.0.weight"].shape[:2]
    return FSRCNNConfig(
        image_channels=1 if channels == 1 else 3,
        channels=d,
        shrunk_channels=state["mid_part.0.weight"].shape[0],
        num_blocks=_depth(state),
    )


def _contract(config: FSRCNNConfig) -> Contract:
    return Contract(
        scale=config.scale,
        temporal=Temporal("frame"),
        halo_px=config.num_blocks
        + 2
        + math.ceil(4 / config.scale),  # 3×3, 5×5, and 4 output pixels of 9×9
    )


ARCHITECTURE = Architecture(
    name=FSRCNN.__name__,
    config=FSRCNNConfig,
    build=FSRCNN,
    translate=_translate,
    infer=_infer,
    contract=_contract,
    source="https://arxiv.org/abs/1608.00367",
)
